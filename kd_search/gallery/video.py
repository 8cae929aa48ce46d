"""People of a video: frames at a step, detections linked to tracklets.

PyAV decodes: its wheels bring FFmpeg's libraries along, so that no program has to be installed and
no process is started for each video, and it says the time of each frame. It is imported only for
videos: ``pip install av``.
"""

import contextlib
import datetime
import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from kd_search.utils.pictures import ImageError, refuse_large

from .capture import wall_clock
from .segments import PEOPLE
from .tracklets import Tracklets

VIDEOS = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm", ".ts", ".mpg", ".mpeg", ".wmv", ".flv"}
)
#: Demuxers of FFmpeg that read nothing but the file itself.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,asf,flv"


@dataclass
class Video:
    """What was found in a video."""

    #: (N, D) float32 of unit length and (N,) of :data:`PEOPLE`, a row for each tracklet.
    embeddings: np.ndarray
    people: np.ndarray
    width: int = 0
    height: int = 0
    #: Of the last frame that was decoded.
    seconds: float = 0.0
    #: Why it ended early.
    problem: str = ""


@dataclass
class Frame:
    """A decoded frame."""

    #: Number in the order of decoding, from 0.
    number: int
    second: float
    #: As PyAV has it.
    picture: Any


def find_people(path: str, searcher: Any, step: float, max_pixels: int, min_score: float) -> Video:
    """Find, embed and link the people of a video.

    Args:
        path: file.
        searcher: see :class:`kd_search.gallery.indexing.Searcher`.
        step: seconds between the frames that the network sees.
        max_pixels: videos with larger frames are refused before decoding.
        min_score: detections with a lower score are left out.

    Raises:
        ImageError: it is no video, or no frame can be decoded; names the file.
    """
    tracklets = Tracklets()
    with _Reader(path, max_pixels) as reader:
        video = Video(np.zeros((0, 0), np.float32), np.zeros(0, PEOPLE))
        due = -np.inf
        frames = reader.frames()
        while True:
            try:
                frame = next(frames, None)
            except ImageError as error:
                if not video.width:
                    raise
                video.problem = f"{error}; indexed up to {video.seconds:.0f} s"
                break
            if frame is None:
                break
            video.seconds = frame.second
            if frame.second < due:
                continue
            due = frame.second + step * (1 - 1e-6)
            pixels = reader.pixels(frame)
            video.height, video.width = pixels.shape[:2]
            boxes, scores, embeddings = searcher.detect(pixels)
            keep = scores >= min_score
            tracklets.add(frame.number, frame.second, boxes[keep], scores[keep], embeddings[keep])
        if not video.width:
            raise ImageError(f"{path}: has no frame that can be decoded")
    video.embeddings, video.people = tracklets.rows(searcher.manifest["embedding_dim"])
    return video


def read_frame(path: str, second: float, max_pixels: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB, upright: the frame at a second that :func:`find_people` has found.

    Raises:
        ImageError: the video cannot be read, or ends earlier; names the file.
    """
    with _Reader(path, max_pixels) as reader:
        for frame in reader.frames(second):
            if frame.second >= second - 1e-3:
                return reader.pixels(frame)
    raise ImageError(f"{path}: has no frame at {second:.2f} s: was it changed?")


def start_time(path: str) -> Optional[float]:
    """Start of a video by its own metadata, on the wall clock of this machine; ``None`` without."""
    try:
        with _Reader(path, sys.maxsize) as reader:
            return reader.time
    except ImageError:
        return None


def is_video(path: str) -> bool:
    """Whether a file is a video by its name.

    Raises:
        ImageError: it is, and PyAV is not installed.
    """
    if os.path.splitext(path)[1].lower() not in VIDEOS:
        return False
    if importlib.util.find_spec("av") is None:
        raise ImageError(f"{path}: videos need PyAV: pip install av")
    return True


class _Reader:
    """Frames of a file."""

    def __init__(self, path: str, max_pixels: int):
        import av  # type: ignore[import-not-found,unused-ignore]

        self._av, self._path, self._max_pixels = av, path, max_pixels
        #: Start by the metadata of the file, on the wall clock of this machine.
        self.time: Optional[float] = None

    def __enter__(self) -> "_Reader":
        with self._errors():
            # Playlists and other formats that name further files or hosts are refused.
            options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
            self._container = self._av.open(self._path, options=options, metadata_errors="replace")
        try:
            with self._errors():
                if not self._container.streams.video:
                    raise ImageError(f"{self._path}: has no video stream")
                self._stream = self._container.streams.video[0]
                unit = self._stream.time_base
                if unit is None:
                    raise ImageError(f"{self._path}: its frames have no times")
                self._unit = unit
                context = self._stream.codec_context
                refuse_large(
                    self._path, (context.width, context.height), self._max_pixels, "--max-pixels"
                )
                self._stream.thread_type = "AUTO"
            self.time = _written_time(self._container.metadata.get("creation_time"))
        except BaseException:
            self._container.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def frames(self, second: float = 0.0) -> Iterator[Frame]:
        """Frames from the last key frame before a second on; numbers count from there."""
        start = float((self._stream.start_time or 0) * self._unit)
        rate = float(self._stream.average_rate or 25)
        with self._errors():
            if second > 0:
                offset = int((second + start) / self._unit)
                self._container.seek(offset, stream=self._stream)
            decoded = self._container.decode(self._stream)
        number = 0
        while True:
            with self._errors():
                frame = next(decoded, None)
            if frame is None:
                return
            time = number / rate if frame.time is None else frame.time - start
            yield Frame(number, time, frame)
            number += 1

    def pixels(self, frame: Frame) -> np.ndarray:
        """(H, W, 3) uint8 RGB, upright."""
        picture = frame.picture
        refuse_large(self._path, (picture.width, picture.height), self._max_pixels, "--max-pixels")
        with self._errors():
            rgb = picture.to_ndarray(format="rgb24")
        turns = round(getattr(picture, "rotation", 0) / 90)
        return np.ascontiguousarray(np.rot90(rgb, turns))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (ImageError, MemoryError):
            raise
        # PyAV's errors are of many types, OSError and ValueError among them.
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ImageError(f"{self._path}: cannot be decoded ({reason})") from None


def _written_time(text: Optional[str]) -> Optional[float]:
    """Wall-clock time of a creation time as containers hold it, in UTC."""
    try:
        moment = datetime.datetime.strptime(str(text)[:19], "%Y-%m-%dT%H:%M:%S")
        seconds = moment.replace(tzinfo=datetime.timezone.utc).timestamp()
        # Devices that do not know the time write the start of 1904 or 1970.
        return wall_clock(seconds) if seconds > 86400 * 365 else None
    except (ValueError, OverflowError, OSError):
        return None
