"""Marks of right and wrong results, which refine a search and can be undone."""

import os
from collections.abc import Iterable, Sequence
from typing import Optional

import numpy as np

from kd_search.utils.files import PathLike, read_json, write_json

from .manifest import GalleryError

_FORMAT = "kd_search marks"
#: Weights of the query, of the mean of the right and of the mean of the wrong results: Rocchio,
#: "Relevance feedback in information retrieval", 1971, with the weights of Manning et al.,
#: "Introduction to Information Retrieval", 2008, section 9.1.1.
_QUERY, _RIGHT, _WRONG = 1.0, 0.75, 0.15


class Marks:
    """Marks in the order in which they were given; the last one of a result counts."""

    def __init__(self, marks: Iterable[tuple[str, bool]] = ()):
        """
        Args:
            marks: ids of hits, and whether they are right.
        """
        self._marks = list(marks)

    def add(self, hit_ids: Iterable[str], right: bool) -> None:
        """Mark results."""
        self._marks += ((hit_id, right) for hit_id in hit_ids)

    def undo(self) -> Optional[str]:
        """Remove the last mark; returns its id, ``None`` if there was no mark."""
        return self._marks.pop()[0] if self._marks else None

    @property
    def right(self) -> list[str]:
        """Ids of results that are marked as right."""
        return [hit_id for hit_id, right in dict(self._marks).items() if right]

    @property
    def wrong(self) -> list[str]:
        """Ids of results that are marked as wrong."""
        return [hit_id for hit_id, right in dict(self._marks).items() if not right]

    def refine(
        self, query: np.ndarray, right: Sequence[np.ndarray], wrong: Sequence[np.ndarray]
    ) -> np.ndarray:
        """Move a query towards right and away from wrong results.

        Args:
            query: (D,) of unit length.
            right, wrong: embeddings (D,) of the marked results.

        Returns:
            (D,) float32 of unit length.
        """
        moved = _QUERY * np.asarray(query, np.float64)
        if len(right):
            moved = moved + _RIGHT * np.mean(np.asarray(right, np.float64), axis=0)
        if len(wrong):
            moved = moved - _WRONG * np.mean(np.asarray(wrong, np.float64), axis=0)
        return (moved / np.linalg.norm(moved)).astype(np.float32)

    @classmethod
    def read(cls, path: PathLike) -> "Marks":
        """Read a file of :meth:`write`; no marks if there is none.

        Raises:
            GalleryError: it is another file.
        """
        if not os.path.exists(path):
            return cls()
        value = read_json(path, "file of marks")
        try:
            if value["format"] != _FORMAT:
                raise ValueError
            marks = [(mark["id"], mark["right"]) for mark in value["marks"]]
            if not all(isinstance(i, str) and isinstance(right, bool) for i, right in marks):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise GalleryError(f"{path}: is no file of marks: name another one") from None
        return cls(marks)

    def write(self, path: PathLike) -> None:
        """Write the marks as JSON, atomically."""
        marks = [{"id": hit_id, "right": right} for hit_id, right in self._marks]
        write_json(path, {"format": _FORMAT, "marks": marks})
