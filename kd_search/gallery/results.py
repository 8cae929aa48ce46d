"""What a search may find, and what it found."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Optional


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
