"""People in the order of their camera and time, for filters that keep few of very many."""

from collections.abc import Sequence
from typing import Optional

import numpy as np

#: Share of the people below which the order is faster than a look at all.
_FEW = 0.05


class Order:
    """Pairs of a row and a file in the order of their camera and time.

    Args:
        camera: (N,) codes; -1 for none.
        first, last: (N,) when they are seen, NaN if unknown.
    """

    def __init__(self, camera: np.ndarray, first: np.ndarray, last: np.ndarray):
        order = np.lexsort((first, camera))  # unknown times, NaN, are the last of their camera
        self.pairs, self.first = order.astype(np.int32), first[order]
        codes = np.arange(-1, camera.max(initial=-1) + 1)
        self.ends = np.searchsorted(camera[order], codes, "right")
        spans = last - first
        #: No tracklet is longer. A second more is for rounding.
        self.longest = float(np.max(spans, initial=0.0, where=~np.isnan(spans))) + 1

    def near(
        self, codes: Sequence[int], start: Optional[float], end: Optional[float]
    ) -> Optional[np.ndarray]:
        """Those of the cameras that may be in a time, ascending; ``None`` if they are many."""
        found = []
        for code in codes:
            begin, stop = self.ends[code], self.ends[code + 1]
            times, bounds = self.first[begin:stop], [0, stop - begin]
            if start is not None:
                bounds[0] = np.searchsorted(times, start - self.longest)
            if end is not None:
                bounds[1] = np.searchsorted(times, end, "right")
            found.append(self.pairs[begin + bounds[0] : begin + max(bounds)])
        pairs = np.sort(np.concatenate(found))
        return pairs if len(pairs) < _FEW * len(self.pairs) else None
