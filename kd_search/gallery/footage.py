"""Finding pictures in folders, and reading a file as it was at one moment."""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Callable

from kd_search.utils.pictures import ImageError

from .manifest import GalleryError, is_gallery

PICTURES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"}
)


@dataclass(frozen=True)
class Content:
    """A file as it was read."""

    path: str
    size: int
    mtime_ns: int
    data: bytes
    sha256: str


@dataclass(frozen=True)
class Found:
    """A file to look at."""

    #: Absolute.
    path: str
    size: int
    mtime_ns: int


def check_sources(sources: Sequence[str]) -> None:
    """Raise :class:`GalleryError` if one of the files and folders is missing."""
    for source in sources:
        if not os.path.exists(source):
            raise GalleryError(f"{source}: no such file or folder")


def find_files(
    sources: Sequence[str], problems: list[str], suffixes: frozenset[str] = PICTURES
) -> Iterator[Found]:
    """Find files in folders and their subfolders, by their suffixes; in the order of their names.

    Hidden files and folders and galleries are left out, links to folders are not followed.

    Args:
        sources: folders and files; files count whatever their suffix is.
        problems: takes a line for each folder or file that cannot be read.

    Raises:
        GalleryError: as :func:`check_sources`.
    """
    check_sources(sources)
    seen = set()
    for source in sources:
        for path in _walk(os.path.abspath(source), problems, suffixes):
            if path in seen:
                continue
            seen.add(path)
            try:
                status = os.stat(path)
            except OSError as error:
                problems.append(f"{path}: {error.strerror or error}")
                continue
            if stat.S_ISREG(status.st_mode):  # reading a pipe or device may not end
                yield Found(path, status.st_size, status.st_mtime_ns)


def _walk(source: str, problems: list[str], suffixes: frozenset[str]) -> Iterator[str]:
    if not os.path.isdir(source):
        yield source
        return

    def note(error: OSError) -> None:
        problems.append(f"{error.filename}: {error.strerror or error}")

    for root, folders, files in os.walk(source, onerror=note):
        if is_gallery(root):
            folders[:] = []
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes:
                yield os.path.join(root, name)


def read_content(found: Found, max_bytes: int) -> Content:
    """Read a file, and make sure that it did not change meanwhile.

    Raises:
        ImageError: it is gone, unreadable, larger than ``max_bytes``, or still being written.
    """
    with _steady(found.path) as (file, size, check):
        if size > max_bytes:
            raise ImageError(
                f"{found.path}: {size} bytes are more than the allowed {max_bytes} (--max-bytes)"
            )
        data = file.read(max_bytes + 1)
        state = check(len(data))
    return Content(found.path, *state, data, hashlib.sha256(data).hexdigest())


def hash_content(found: Found) -> Content:
    """As :func:`read_content`, for a file that may be larger than the memory: without its data."""
    digest, length = hashlib.sha256(), 0
    with _steady(found.path) as (file, _, check):
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            length += len(chunk)
        state = check(length)
    return Content(found.path, *state, b"", digest.hexdigest())


@contextlib.contextmanager
def _steady(path: str) -> Iterator[tuple[BinaryIO, int, Callable[[int], tuple[int, int]]]]:
    """An open file, its size, and a function that returns size and time if it did not change."""
    try:
        with open(path, "rb") as file:
            before = os.fstat(file.fileno())

            def check(length: int) -> tuple[int, int]:
                after = os.fstat(file.fileno())
                state = after.st_size, after.st_mtime_ns
                if state != (before.st_size, before.st_mtime_ns) or length != after.st_size:
                    raise ImageError(f"{path}: changes while it is read; the next run reads it")
                return state

            yield file, before.st_size, check
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from None
