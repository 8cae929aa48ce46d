"""What a search may find, and what it found."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

import numpy as np

from .database import FileRow

#: What gives one result each.
PER = ("person", "picture", "camera")


@dataclass(frozen=True)
class Filter:
    """Which people a search may find; empty fields do not restrict.

    Args:
        cameras: names.
        start, end: seconds since 1970 on the wall clock of the cameras, both included. Pictures of
            unknown time are not found then. A tracklet of a video is found if a part of it is in
            that time.
        folders: absolute; their subfolders are included.
        min_score: of the detector.
    """

    cameras: Collection[str] = ()
    start: Optional[float] = None
    end: Optional[float] = None
    folders: Collection[str] = ()
    min_score: Optional[float] = None

    def __bool__(self) -> bool:
        return bool(self.cameras or self.folders) or any(
            value is not None for value in (self.start, self.end, self.min_score)
        )


@dataclass(frozen=True)
class Hit:
    """A person that was found."""

    #: "content.person": stays the same as long as the picture is in the gallery.
    id: str
    path: str
    #: Other files with the same content.
    also: tuple[str, ...]
    #: XYXY, pixels of the upright picture or frame.
    box: tuple[float, ...]
    score: float
    similarity: float
    camera: Optional[str]
    #: Of the picture or of the frame, seconds since 1970 on the wall clock of the camera.
    time: Optional[float]
    #: Number and second of the frame in a video; ``None`` for pictures.
    frame: Optional[int]
    second: Optional[float]
    #: Seconds of the first and last frame of the tracklet.
    first: Optional[float]
    last: Optional[float]
    width: int
    height: int


def hit_of(file: FileRow, also: tuple[str, ...], person: Sequence[Any], similarity: float) -> Hit:
    """The hit of a person.

    Args:
        file: that is shown.
        also: other files with the same content.
        person: a record of :data:`~kd_search.gallery.segments.PEOPLE`, as ``tolist`` returns it.
        similarity: to the wanted person.
    """
    box, score, frame, second, first, last, _, number = person
    video = frame >= 0
    return Hit(
        id=f"{file.content}.{number}",
        path=file.path,
        also=also,
        box=tuple(box.tolist()),
        score=score,
        similarity=similarity,
        camera=file.camera,
        time=None if file.time is None else file.time + second,
        frame=frame if video else None,
        second=second if video else None,
        first=first if video else None,
        last=last if video else None,
        width=file.width,
        height=file.height,
    )


def parts_of_id(hit_id: str) -> Optional[tuple[int, int]]:
    """Number of the content and of the person of an id; ``None`` if it is none."""
    content, _, person = hit_id.partition(".")
    if content.isdecimal() and person.isdecimal() and len(content) < 19 and len(person) < 10:
        return int(content), int(person)
    return None


def mean_query(query: Union[np.ndarray, Sequence[np.ndarray]], embedding_dim: int) -> np.ndarray:
    """(D,) float32 of unit length: the mean of (Q, D) embeddings, or (D,).

    Raises:
        ValueError: another shape.
    """
    query = np.atleast_2d(np.asarray(query, np.float64))
    if query.ndim != 2 or not len(query) or query.shape[1] != embedding_dim:
        raise ValueError(
            f"query of shape {query.shape}: the gallery's embeddings have {embedding_dim}"
        )
    mean = query.mean(0)
    return (mean / np.linalg.norm(mean)).astype(np.float32)
