"""What is in a gallery, by camera and time: totals, a histogram and the order of its pictures."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Optional

import numpy as np

from kd_search.utils.files import printable

#: Folders to choose from.
_FOLDERS = 200


class Listing:
    """The files of a gallery with people, by camera and then by time."""

    def __init__(self, files: Iterable[Any]):
        """
        Args:
            files: :attr:`kd_search.gallery.Gallery.files`.
        """
        rows = [row for row in files if row.found and row.content and row.state == "indexed"]
        #: By the name that the API shows.
        self.cameras = {
            printable(name): name
            for name in sorted({row.camera for row in rows if row.camera is not None})
        }
        folders: Counter[str] = Counter()
        for row in rows:
            folders[os.path.dirname(row.path)] += row.found
        tree = folder_tree(folders)
        #: Folders by the name that the API shows, and people in each and in its subfolders.
        self.folders = {printable(name): name for name in tree}
        self.in_folders = {printable(name): people for name, people in tree.items()}
        codes: dict[Optional[str], int] = {None: -1}
        codes.update({name: code for code, name in enumerate(self.cameras.values())})
        camera = np.array([codes[row.camera] for row in rows], np.int32)
        time = np.array([np.nan if row.time is None else row.time for row in rows], np.float64)
        # Those of unknown time, NaN, come last, in the order in which they were indexed.
        order = np.lexsort((np.array([row.id for row in rows], np.int64), time, camera))
        self.camera, self.time = camera[order], time[order]
        self.seconds = np.array([row.seconds for row in rows], np.float64)[order]
        self.found = np.array([row.found for row in rows], np.int64)[order]
        self.content = np.array([row.content for row in rows], np.int64)[order]
        self._sha256 = np.array([bytes.fromhex(row.sha256) for row in rows], "V32")[order]

    def sha256(self, place: int) -> str:
        """Hash of the content of a file."""
        return bytes(self._sha256[place]).hex()

    def place(self, content: int, camera: Optional[str]) -> Optional[int]:
        """Where a content is in the order, at that camera if it is at several."""
        places = np.flatnonzero(self.content == content)
        names = list(self.cameras.values())
        for place in places:
            code = int(self.camera[place])
            if (names[code] if code >= 0 else None) == camera:
                return int(place)
        return int(places[0]) if len(places) else None

    def same_camera(self, place: int, step: int) -> Iterable[int]:
        """Places of the files before (step -1) or after (1) one at its camera, nearest first."""
        following = place + step
        while 0 <= following < len(self.camera) and self.camera[following] == self.camera[place]:
            yield following
            following += step

    def people(self) -> dict[str, int]:
        """People found at each camera."""
        return {
            name: int(self.found[self.camera == code].sum())
            for code, name in enumerate(self.cameras)
        }

    def histogram(self, bins: int) -> dict[str, Any]:
        """People by time.

        Args:
            bins: of equal length.

        Returns:
            ``start`` and ``end``, seconds since 1970 on the clock of the cameras, ``None`` if no
            time is known; ``counts``, a list of numbers for each camera, and under "" for files
            without one; and ``unknown``, how many people are in files of unknown time. Those of a
            video are spread over its length.
        """
        known = ~np.isnan(self.time)
        counts: dict[str, list[float]] = {}
        result: dict[str, Any] = {
            "start": None,
            "end": None,
            "counts": counts,
            "unknown": int(self.found[~known].sum()),
        }
        if not known.any():
            return result
        start = float(self.time[known].min())
        end = max(float((self.time + self.seconds)[known].max()), start + 1.0)
        scale = bins / (end - start)
        first = np.clip((self.time[known] - start) * scale, 0, bins - 1).astype(int)
        last = (self.time + self.seconds)[known]
        last = np.clip((last - start) * scale, first, bins - 1).astype(int)
        share = self.found[known] / (last - first + 1)
        for code, name in enumerate(["", *self.cameras], -1):
            mine = self.camera[known] == code
            if mine.any():
                # Where a share begins it is added, and behind its last bin taken off.
                change = np.zeros(bins + 1)
                np.add.at(change, first[mine], share[mine])
                np.add.at(change, last[mine] + 1, -share[mine])
                counts[name] = np.round(np.cumsum(change[:-1]), 3).tolist()
        result["start"], result["end"] = start, end
        return result


def folder_tree(people: Mapping[str, int], most: int = _FOLDERS) -> dict[str, int]:
    """People in each folder and its subfolders, parents before their subfolders.

    Args:
        people: in each folder itself.
        most: as many levels are left out, the deepest first, as give more folders. Those that have
            everybody are left out too.
    """
    total: Counter[str] = Counter()
    for name, number in people.items():
        while True:
            total[name] += number
            parent = os.path.dirname(name)
            if parent == name:
                break
            name = parent
    everybody = sum(people.values())
    parts = {name: name.split(os.sep) for name, number in total.items() if number < everybody}
    levels = Counter(map(len, parts.values()))
    deepest = shown = 0
    for level in sorted(levels):
        shown += levels[level]
        if shown > most:
            break
        deepest = level
    names = sorted((name for name in parts if len(parts[name]) <= deepest), key=parts.__getitem__)
    return {name: total[name] for name in names}
