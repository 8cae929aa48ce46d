"""Choosing what a gallery must forget."""

import os
from collections.abc import Collection, Sequence
from typing import Any, Optional

import numpy as np

from .database import FileRow
from .manifest import GalleryError
from .store import GalleryWriter
from .tracklets import overlap

#: How much a person and a forgotten one must overlap to be the same.
_SAME = 0.5


def chosen_files(
    writer: GalleryWriter,
    *,
    start: Optional[float] = None,
    end: Optional[float] = None,
    cameras: Collection[str] = (),
    folders: Collection[str] = (),
) -> list[FileRow]:
    """Files that fit all that is given, those without people included.

    Args:
        writer: of the gallery.
        start, end: seconds since 1970 on the wall clock of the cameras, both included. Files of
            unknown time do not fit.
        cameras: names.
        folders: absolute; their subfolders are included.
    """
    roots = tuple(os.path.join(folder, "") for folder in folders)
    fitting = []
    for row in writer.files():
        if start is not None or end is not None:
            if row.time is None:
                continue
            begin, finish = row.time, row.time + row.seconds
            if (start is not None and finish < start) or (end is not None and begin > end):
                continue
        if cameras and row.camera not in cameras:
            continue
        if roots and not row.path.startswith(roots):
            continue
        fitting.append(row)
    return fitting


def find_person(writer: GalleryWriter, hit_id: str) -> tuple[FileRow, int]:
    """The file and the number of a person, from the id of a hit.

    Raises:
        GalleryError: it is not in the gallery.
    """
    content, _, person = hit_id.partition(".")
    for row in writer.files():
        if str(row.content) == content and row.place is not None and person.isdecimal():
            if int(person) in writer.people(row)["person"]:
                return row, int(person)
    raise GalleryError(f"{hit_id!r}: no person in {writer.folder} has that id (any more)")


def are_forgotten(people: np.ndarray, boxes: Sequence[Sequence[Any]]) -> np.ndarray:
    """(N,) bool: whose box overlaps that of a forgotten person by half.

    Args:
        people: (N,) of :data:`~kd_search.gallery.segments.PEOPLE`.
        boxes: of the forgotten people of the same content.
    """
    forgotten = np.array(boxes, np.float64).reshape(-1, 4)
    same = overlap(people["box"].astype(np.float64), forgotten) >= _SAME
    return np.asarray(same.any(1))
