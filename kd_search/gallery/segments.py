"""Append-only files of embeddings and of what is known about each, with checksums of blocks.

A segment is a pair of files: ``rows-N.f32``, the embeddings, (rows, D) float32 little endian, and
``people-N.bin``, a record of type :data:`PEOPLE` for each row. The database says how many rows of a
segment are valid; what lies beyond was never acknowledged, and is cut off by the next writer.
"""

import mmap
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np

from kd_search.utils.files import sync_folder

from .manifest import GalleryError

#: What is known about a row. A row is a person in a picture, or in a video a tracklet: the same
#: person over several frames, shown by the best one.
PEOPLE = np.dtype(
    [
        ("box", "<f4", (4,)),  # XYXY, pixels of the upright picture or frame
        ("score", "<f4"),  # of the detector
        ("frame", "<i4"),  # number of the video frame with that box; -1 in a picture
        ("second", "<f4"),  # of that frame since the start of the video; 0 in a picture
        ("first", "<f4"),  # second of the first and of the last frame of the tracklet
        ("last", "<f4"),
        ("frames", "<i4"),  # frames of the tracklet; 1 in a picture
        ("person", "<i4"),  # number within the picture or video; stays when others are removed
    ]
)
#: A segment takes no more rows when it has that many.
SEGMENT_ROWS = 65_536
_NAMES = re.compile(r"(?:rows|people)-(\d{6})\.(?:f32|bin)")


class Block(NamedTuple):
    """Rows that were committed together, and the CRC-32 of their bytes in both files."""

    segment: int
    start: int
    count: int  # type: ignore[assignment]  # hides a method of tuples
    rows_crc: int
    people_crc: int


class Place(NamedTuple):
    """Where the rows of one picture or video are."""

    segment: int
    start: int
    count: int  # type: ignore[assignment]


Group = tuple[np.ndarray, np.ndarray]


def rows_file(folder: Path, segment: int) -> Path:
    return folder / f"rows-{segment:06d}.f32"


def people_file(folder: Path, segment: int) -> Path:
    return folder / f"people-{segment:06d}.bin"


def valid_rows(blocks: Sequence[Block], where: object) -> dict[int, int]:
    """Rows of each segment.

    Raises:
        GalleryError: the blocks leave a gap or overlap, so that some of them were lost.
    """
    ends: dict[int, int] = {}
    for block in sorted(blocks):
        if block.start != ends.get(block.segment, 0) or block.count < 1:
            raise GalleryError(f"{where}: the list of blocks is damaged; restore it from a copy")
        ends[block.segment] = block.start + block.count
    return ends


class SegmentWriter:
    """Appends rows to the segments of a folder. Rows count once the database names their blocks."""

    def __init__(
        self, folder: Path, embedding_dim: int, ends: Mapping[int, int], *, append: bool = True
    ):
        """
        Args:
            folder: with the files.
            embedding_dim: D.
            ends: acknowledged rows of each segment.
            append: to the last segment if it has space, instead of beginning a new one.

        Raises:
            GalleryError: a file is missing or shorter than acknowledged.
        """
        self.folder, self.embedding_dim = folder, embedding_dim
        self.ends = dict(ends)
        self._first = max(ends, default=0) + (0 if append and ends else 1)
        for segment, rows in self.ends.items():
            for path, width in self._files(segment):
                _check_size(path, rows * width)
        self.cut()

    def append(self, groups: Sequence[Group]) -> tuple[list[Optional[Place]], list[Block]]:
        """Write rows and wait until the disk has them.

        Args:
            groups: of each picture embeddings (N, D) float32 and :data:`PEOPLE` (N,); the rows of a
                picture stay together.

        Returns:
            The place of each group, ``None`` for an empty one, and the blocks for the database. If
            they are committed, :meth:`keep` them; otherwise they will be overwritten.
        """
        ends = dict(self.ends)
        written: dict[int, list[Group]] = {}
        places: list[Optional[Place]] = []
        last = max(self._first, *ends, 1)
        for group in groups:
            count = len(group[0])
            if not count:
                places.append(None)
                continue
            if ends.get(last, 0) and ends[last] + count > SEGMENT_ROWS:
                last += 1
            places.append(Place(last, ends.get(last, 0), count))
            ends[last] = ends.get(last, 0) + count
            written.setdefault(last, []).append(group)
        blocks = [self._write(segment, parts) for segment, parts in written.items()]
        if any(segment not in self.ends for segment in written):
            sync_folder(self.folder)
        return places, blocks

    def keep(self, blocks: Sequence[Block]) -> None:
        """Continue after these blocks, which were committed."""
        for block in blocks:
            self.ends[block.segment] = block.start + block.count

    def cut(self) -> None:
        """Remove rows that were never acknowledged, which also frees a full disk."""
        for entry in list(os.scandir(self.folder)):
            found = _NAMES.fullmatch(entry.name)
            if found and int(found[1]) not in self.ends:
                os.unlink(entry.path)
        for segment, rows in self.ends.items():
            for path, width in self._files(segment):
                if os.path.getsize(path) > rows * width:
                    with open(path, "r+b") as file:
                        file.truncate(rows * width)
                        os.fsync(file.fileno())

    def _files(self, segment: int) -> tuple[tuple[Path, int], tuple[Path, int]]:
        return (
            (rows_file(self.folder, segment), 4 * self.embedding_dim),
            (people_file(self.folder, segment), PEOPLE.itemsize),
        )

    def _write(self, segment: int, groups: Sequence[Group]) -> Block:
        start = self.ends.get(segment, 0)
        rows = np.concatenate([group[0] for group in groups]).astype("<f4", copy=False)
        people = np.concatenate([group[1] for group in groups]).astype(PEOPLE, copy=False)
        if rows.shape != (len(people), self.embedding_dim):
            raise ValueError(f"rows {rows.shape} for {len(people)} people, D {self.embedding_dim}")
        crcs = []
        for (path, width), array in zip(self._files(segment), (rows, people)):
            content = array.tobytes()
            with open(path, "r+b" if path.exists() else "x+b") as file:
                file.seek(start * width)
                file.write(content)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
            crcs.append(zlib.crc32(content))
        return Block(segment, start, len(people), *crcs)


class SegmentReader:
    """The rows of one segment, mapped into memory and compared with their checksums."""

    def __init__(self, folder: Path, segment: int, embedding_dim: int, blocks: Sequence[Block]):
        """
        Args:
            folder, segment, embedding_dim: as of the writer.
            blocks: of this segment.

        Raises:
            GalleryError: rows are missing or differ from their checksum.
        """
        count = max(block.start + block.count for block in blocks)
        self._paths = rows_file(folder, segment), people_file(folder, segment)
        self._maps = [
            _map(path, count * width)
            for path, width in zip(self._paths, (4 * embedding_dim, PEOPLE.itemsize))
        ]
        #: (rows, D) float32
        self.rows = np.frombuffer(self._maps[0], "<f4", count * embedding_dim)
        self.rows = self.rows.reshape(count, embedding_dim)
        #: (rows,) of :data:`PEOPLE`
        self.people = np.frombuffer(self._maps[1], PEOPLE, count)
        self._verified = 0
        self.verify(blocks)

    def verify(self, blocks: Sequence[Block]) -> None:
        """Compare the blocks with their checksums."""
        for block in blocks:
            span = slice(block.start, block.start + block.count)
            parts = (self.rows[span], block.rows_crc), (self.people[span], block.people_crc)
            for path, (part, crc) in zip(self._paths, parts):
                if zlib.crc32(part.data) != crc:
                    raise _damaged(path, block)


def read_people(folder: Path, blocks: Sequence[Block], place: Place) -> np.ndarray:
    """(count,) of :data:`PEOPLE` at a place, compared with the checksums of their blocks."""
    path = people_file(folder, place.segment)
    end = place.start + place.count
    found = []
    for block in sorted(b for b in blocks if b.segment == place.segment):
        if block.start < end and block.start + block.count > place.start:
            with open(path, "rb") as file:
                file.seek(block.start * PEOPLE.itemsize)
                content = file.read(block.count * PEOPLE.itemsize)
            if zlib.crc32(content) != block.people_crc:
                raise _damaged(path, block)
            span = slice(max(place.start - block.start, 0), end - block.start)
            found.append(np.frombuffer(content, PEOPLE)[span])
    return np.concatenate(found)


def _damaged(path: Path, block: Block) -> GalleryError:
    return GalleryError(
        f"{path}: rows {block.start} to {block.start + block.count - 1} are damaged (their "
        "checksum differs); restore the gallery from a copy, or index into a new one"
    )


def _map(path: Path, size: int) -> mmap.mmap:
    _check_size(path, size)
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)


def _check_size(path: Path, size: int) -> None:
    actual = os.path.getsize(path) if path.exists() else 0
    if actual < size:
        raise GalleryError(
            f"{path}: has {actual} of the {size} bytes that were written; restore the gallery "
            "from a copy, or index into a new one"
        )


def split(groups: Sequence[Group], rows: int) -> Iterator[Sequence[Group]]:
    """Parts of the groups of about ``rows`` rows each."""
    part: list[Group] = []
    count = 0
    for group in groups:
        part.append(group)
        count += len(group[0])
        if count >= rows:
            yield part
            part, count = [], 0
    if part:
        yield part
