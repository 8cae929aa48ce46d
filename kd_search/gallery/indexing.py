"""Finding and embedding everybody in pictures, with a state for each file."""

import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Callable, Optional, Protocol, Union

import numpy as np

from kd_search.utils.pictures import ImageError, decode_image

from .capture import Capture, wall_clock
from .database import FileRow
from .footage import PICTURES, Content, Found, find_files, hash_content, read_content
from .manifest import GalleryError
from .new_file import NewFile
from .removal import are_forgotten
from .segments import PEOPLE
from .store import GalleryWriter
from .video import VIDEOS, find_people, is_video, start_time

#: A commit takes so many people or files, or follows after so many seconds. What a kill loses is
#: computed again.
_PEOPLE, _FILES, _SECONDS = 512, 64, 3.0
#: Files that are read ahead of the network.
_AHEAD = 4
#: Files whose states are asked for at once.
_ASKED = 256
#: Seconds that a clock may be behind without being wrong.
_CLOCK = 60.0
_DAY = 86400.0


class Searcher(Protocol):
    """What indexing needs of :class:`kd_search.runtime.PersonSearcher`."""

    #: Has ``embedding_dim``, ``max_pixels``, ``file_sha256``, ``file``, ``calibration`` and
    #: ``search_score_threshold``.
    manifest: Mapping[str, Any]

    def detect(self, picture: Any) -> Any:
        """Boxes (N, 4), scores (N,) and embeddings (N, D) of (H, W, 3) uint8 RGB pixels."""

    def embed(self, picture: Any, boxes: Any) -> np.ndarray:
        """Embeddings (Q, D) of boxes (Q, 4)."""


@dataclass
class Report:
    """What a run did."""

    #: Files that were looked at, and how many of them had not changed since an earlier run.
    files: int = 0
    unchanged: int = 0
    #: Files that are new or changed, by what was found.
    with_people: int = 0
    nobody: int = 0
    #: Content that the gallery had already, under another name or with other rules.
    copies: int = 0
    #: Content that must not be indexed, and people that must not.
    do_not_index: int = 0
    do_not_index_people: int = 0
    #: Older than the retention allows.
    too_old: int = 0
    people: int = 0
    #: A line for each file that could not be read.
    problems: list[str] = field(default_factory=list)
    #: Files of the gallery that are not in their folder any more, and whether they were removed.
    missing: int = 0
    removed: int = 0
    #: Files that the retention removed.
    expired: int = 0
    seconds: float = 0.0


@dataclass
class Settings:
    """How to index.

    Args:
        max_bytes: larger pictures are refused before they are read.
        max_pixels: larger pictures are refused from their header, before they are decoded.
        frame_step: seconds between the frames of a video that the network sees.
        retry: look again at files that could not be read.
        remove_missing: remove files that are not in the folders any more.
        retention_days: remove files, and leave out new ones, whose time is longer ago. Their time
            is that of capture, or of the last change of the file where that is unknown.
    """

    max_bytes: int = 200_000_000
    max_pixels: int = 50_000_000
    frame_step: float = 0.5
    retry: bool = False
    remove_missing: bool = False
    retention_days: Optional[float] = None


class _ChangedError(ImageError):
    """A video changed while it was decoded: its state must not be kept."""


@dataclass
class _Loaded:
    """A file that the network has to see, or not (``pixels`` is ``None``)."""

    content: Content
    camera: Optional[str]
    time: Optional[float]
    pixels: Optional[np.ndarray] = None
    message: str = ""


class Indexer:
    """Indexes folders into a gallery."""

    def __init__(
        self, writer: GalleryWriter, searcher: Searcher, capture: Capture, settings: Settings
    ):
        self._writer, self._searcher = writer, searcher
        self._capture, self._settings = capture, settings
        self._batch: list[NewFile] = []
        self._hashes: set[str] = set()
        self._people = 0
        self._committed = time.monotonic()
        self._limit = -np.inf
        self.report = Report()

    def run(
        self,
        sources: Sequence[str],
        progress: Optional[Callable[[int, int, Report], None]] = None,
    ) -> Report:
        """Index what is new or changed. An interrupted run is continued by the next one.

        Args:
            sources: folders and files.
            progress: called after each file with the number of files that were looked at, the
                number of all and the report so far.

        Raises:
            GalleryError, OSError: a source is missing, or the gallery cannot be written.
            KeyboardInterrupt: Ctrl-C, after what was computed is committed.
        """
        start, report = time.monotonic(), self.report
        self._expire()
        found = list(find_files(sources, report.problems, PICTURES | VIDEOS))
        report.files = len(found)
        try:
            for done, loaded in enumerate(self._load_ahead(found), 1):
                if loaded is not None:
                    self._take(loaded)
                self._commit_if_due()
                if progress is not None:
                    progress(done, len(found), report)
        except KeyboardInterrupt:
            self._commit()
            raise
        self._commit()
        self._look_for_missing(sources, {file.path for file in found})
        self._writer.compact(if_worth_it=True)
        report.seconds = time.monotonic() - start
        return report

    # -- reading, in a thread of its own ---------------------------------------------------------

    def _load_ahead(self, found: Sequence[Found]) -> Iterator[Optional[_Loaded]]:
        """What to do for each file, in their order; ``None`` for nothing."""
        waiting: deque[Union[None, Future[Optional[_Loaded]]]] = deque()
        with ThreadPoolExecutor(1) as pool:
            try:
                for file, row in self._with_states(found):
                    # Unchanged files cost no memory and no thread.
                    known = self._is_known(file, row)
                    waiting.append(None if known else pool.submit(self._load, file))
                    while len(waiting) > _AHEAD:
                        yield _result(waiting.popleft())
                while waiting:
                    yield _result(waiting.popleft())
            finally:
                for future in waiting:
                    if future is not None:
                        future.cancel()

    def _with_states(self, found: Sequence[Found]) -> Iterator[tuple[Found, Optional[FileRow]]]:
        """Files with their states in the gallery; a database is asked for many at once."""
        for start in range(0, len(found), _ASKED):
            part = found[start : start + _ASKED]
            states = self._writer.files_at([file.path for file in part])
            for file in part:
                yield file, states.get(file.path)

    def _is_known(self, found: Found, row: Optional[FileRow]) -> bool:
        known = (
            row is not None
            and (row.size, row.mtime_ns) == (found.size, found.mtime_ns)
            and row.rules == self._capture.key
            and not (self._settings.retry and row.message)
        )
        self.report.unchanged += known
        return known

    def _load(self, found: Found) -> Optional[_Loaded]:
        report, settings = self.report, self._settings
        try:
            video = is_video(found.path)
            content = hash_content(found) if video else read_content(found, settings.max_bytes)
            if self._writer.forgotten(content.sha256) is None:
                report.do_not_index += 1
                return None
            loaded = _Loaded(content, *self._capture(found.path, content.data))
            if video and loaded.time is None:
                loaded.time = start_time(found.path)
        except (ImageError, GalleryError) as error:
            # It may be readable, or have a valid time, next time: no state is kept.
            report.problems.append(str(error))
            return None
        if _moment(loaded.time, content.mtime_ns) < self._limit:
            report.too_old += 1
            return None
        if not video and self._writer.content(content.sha256) is None:
            try:
                loaded.pixels = decode_image(
                    found.path, content.data, "RGB", settings.max_pixels, "--max-pixels"
                )
            except (ImageError, MemoryError) as error:
                loaded.message = str(error) or f"{found.path}: not enough memory to decode it"
        loaded.content = Content(content.path, content.size, content.mtime_ns, b"", content.sha256)
        return loaded

    # -- embedding and writing -------------------------------------------------------------------

    def _take(self, loaded: _Loaded) -> None:
        content, report = loaded.content, self.report
        if content.sha256 in self._hashes:
            self._commit()  # now it is known
        unknown = self._writer.content(content.sha256) is None
        video = is_video(content.path)
        if unknown and loaded.pixels is None and not loaded.message and not video:
            # It was known when it was read, by a file that has another content now.
            again = self._load(Found(content.path, content.size, content.mtime_ns))
            if again is None:
                return
            loaded, content = again, again.content
        new = NewFile(
            content.path,
            content.size,
            content.mtime_ns,
            content.sha256,
            camera=loaded.camera,
            time=loaded.time,
            rules=self._capture.key,
            message=loaded.message,
        )
        if unknown and not new.message:
            try:
                if video:
                    self._embed_video(new)
                else:
                    self._embed(new, loaded.pixels)
            except _ChangedError as error:
                report.problems.append(str(error))
                return
            except ImageError as error:
                new.message = str(error)
                if content.path not in new.message:
                    new.message = f"{content.path}: {error}"
        if new.message:
            report.problems.append(new.message)
        elif new.embeddings is None:
            report.copies += 1
        elif len(new.embeddings):
            report.with_people += 1
        else:
            report.nobody += 1
        self._batch.append(new)
        if not new.message:
            self._hashes.add(content.sha256)

    def _embed(self, new: NewFile, pixels: Any) -> None:
        new.height, new.width = pixels.shape[:2]
        boxes, scores, embeddings = self._searcher.detect(pixels)
        keep = scores >= self._searcher.manifest["search_score_threshold"]
        people = np.zeros(len(boxes), PEOPLE)
        people["box"], people["score"] = boxes, scores
        people["person"] = np.arange(len(boxes))
        people["frame"], people["frames"] = -1, 1
        self._keep(new, np.asarray(embeddings, np.float32)[keep], people[keep])

    def _embed_video(self, new: NewFile) -> None:
        settings, threshold = self._settings, self._searcher.manifest["search_score_threshold"]
        video = find_people(
            new.path, self._searcher, settings.frame_step, settings.max_pixels, threshold
        )
        new.width, new.height, new.seconds = video.width, video.height, video.seconds
        status = os.stat(new.path)
        if (status.st_size, status.st_mtime_ns) != (new.size, new.mtime_ns):
            raise _ChangedError(f"{new.path}: changes while it is read; the next run reads it")
        if video.problem:
            self.report.problems.append(video.problem)
        self._keep(new, video.embeddings, video.people)

    def _keep(self, new: NewFile, embeddings: np.ndarray, people: np.ndarray) -> None:
        """Give a file its people, without those that must not be indexed."""
        again = are_forgotten(people, self._writer.forgotten(new.sha256) or [])
        self.report.do_not_index_people += int(again.sum())
        new.embeddings, new.people = embeddings[~again], people[~again]
        self._people += len(new.people)
        self.report.people += len(new.people)

    def _commit_if_due(self) -> None:
        waited = time.monotonic() - self._committed > _SECONDS
        if self._people >= _PEOPLE or len(self._batch) >= _FILES or waited:
            self._commit()

    def _commit(self) -> None:
        batch, self._batch = self._batch, []
        self._hashes.clear()
        self._people = 0
        if batch:
            self._writer.add(batch)
        self._committed = time.monotonic()

    # -- removing --------------------------------------------------------------------------------

    def _expire(self) -> None:
        """Remove files that are older than the retention."""
        days = self._settings.retention_days
        if days is None:
            return
        now = time.time()
        if now < self._writer.clock - _CLOCK:
            self.report.problems.append(
                "the clock is behind the gallery's last change: the retention is not applied"
            )
            return
        self._limit = wall_clock(now) - days * _DAY
        old = [row for row in self._writer.files() if _moment(row.time, row.mtime_ns) < self._limit]
        self._writer.remove(old, for_good=True)
        self.report.expired = len(old)

    def _look_for_missing(self, sources: Sequence[str], there: set[str]) -> None:
        # A file that was given by name is not below itself, and is in ``there``.
        roots = tuple(os.path.join(os.path.abspath(source), "") for source in sources)
        missing: list[FileRow] = [
            row
            for row in self._writer.files()
            if row.path.startswith(roots) and row.path not in there
        ]
        missing = [row for row in missing if _is_gone(row.path)]
        self.report.missing = len(missing)
        if self._settings.remove_missing:
            self._writer.remove(missing)
            self.report.removed = len(missing)


def _result(waiting: Optional["Future[Optional[_Loaded]]"]) -> Optional[_Loaded]:
    return None if waiting is None else waiting.result()


def _is_gone(path: str) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # a folder that cannot be read, or a disk with errors
        return False
    return False


def _moment(seconds: Optional[float], mtime_ns: int) -> float:
    return wall_clock(mtime_ns / 1e9) if seconds is None else seconds
