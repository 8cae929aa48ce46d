"""The inputs of the re-ID metric: flat arrays over crops or tracklets."""

from dataclasses import dataclass
from typing import Optional

import numpy as np

from kd_search.evaluation.flat_arrays import (
    check_floats,
    check_integers,
)

#: Identity of a gallery entry that is nobody a query looks for: wrong for every query. The
#: distractors of Market-1501 and MARS (0 in their files), and people without an identity.
DISTRACTOR = -1
#: Identity of a gallery entry that is left out for every query, as if it were not there: the junk
#: of Market-1501 and MARS (-1 in their files). The loaders of kd_search leave it out already.
JUNK = -2
#: Camera or frame that is not known.
UNKNOWN = -1


@dataclass
class ReIDSet:
    """N queries, or N entries of a gallery: embeddings of crops or tracklets.

    Raises ValueError, naming the array, where shapes do not fit or a number is not finite.
    """

    embeddings: np.ndarray  # (N, D), of any length
    person_ids: np.ndarray  # (N,) int; in a gallery also DISTRACTOR or JUNK
    camera_ids: Optional[np.ndarray] = None  # (N,) int; UNKNOWN is no camera
    frame_ids: Optional[np.ndarray] = None  # (N,) int, in the video of the camera; or UNKNOWN
    #: (N,) int, the thing of which an entry is a picture; nothing is searched for in pictures of
    #: itself. Negative: of its own.
    items: Optional[np.ndarray] = None

    def __post_init__(self):
        self.embeddings = check_floats("embeddings", self.embeddings, (None, None))
        count = (len(self.embeddings),)
        self.person_ids = check_integers("person_ids", self.person_ids, count)
        for name in ("camera_ids", "frame_ids", "items"):
            values = getattr(self, name)
            values = np.full(count, UNKNOWN) if values is None else values
            setattr(self, name, check_integers(name, values, count))

    def __len__(self) -> int:
        return len(self.embeddings)

    def select(self, rows: np.ndarray) -> "ReIDSet":
        """The entries of these rows (mask or indices), in that order."""
        return ReIDSet(
            self.embeddings[rows],
            self.person_ids[rows],
            self.camera_ids[rows],
            self.frame_ids[rows],
            self.items[rows],
        )


@dataclass(frozen=True)
class JunkRule:
    """Which entries of a query's own person are left out of its gallery.

    They are too easy: pictures of the same moment. ``kind`` is

    - "camera": all in the query's camera, where that is known (Market-1501, MARS, Duke, VeRi-776);
    - "frames": those in the query's camera that are at most ``frames`` frames away, where both are
      known (ATRW);
    - "none": none.

    What is left out is neither right nor wrong, and takes no place in the ranking. Pictures of the
    query itself (``items``) are left out in any case.
    """

    kind: str = "camera"
    frames: int = 0

    def __post_init__(self):
        if self.kind not in ("camera", "frames", "none"):
            raise ValueError(f"junk rule {self.kind!r} is none of 'camera', 'frames', 'none'")
        if self.frames < 0:
            raise ValueError(f"junk rule of {self.frames} frames: it cannot be negative")

    def applies(
        self, queries: ReIDSet, query_rows: np.ndarray, gallery: ReIDSet, columns: np.ndarray
    ) -> np.ndarray:
        """(P,) bool for pairs of a query and an entry of the same identity."""
        if self.kind == "none":
            return np.zeros(len(columns), dtype=bool)
        camera = queries.camera_ids[query_rows]
        same = (camera >= 0) & (camera == gallery.camera_ids[columns])
        if self.kind == "frames":
            frame, other = queries.frame_ids[query_rows], gallery.frame_ids[columns]
            same &= (frame >= 0) & (other >= 0) & (np.abs(frame - other) <= self.frames)
        return same
