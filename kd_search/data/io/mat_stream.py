"""Incremental reading of struct arrays in MAT-files.

``scipy.io.loadmat`` makes three arrays of each entry of CUHK-SYSU's galleries: 8 microseconds and
0.8 kB an entry, so that the 11.6 million of TestG4000 would take a minute and a half and 9 GB. This
module reads the part of version 5 of the format ("MAT-File Format", The MathWorks, chapter 1) that
those files use, a struct array of structs, and raises :class:`OtherLayoutError` on anything else,
which is left to scipy.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, Union

import numpy as np

# Data types of elements.
_INT8, _UINT8, _INT32, _UINT32, _MATRIX, _COMPRESSED, _UTF8 = 1, 2, 5, 6, 14, 15, 16
_NUMBERS = dict(zip((1, 2, 3, 4, 5, 6, 7, 9, 12, 13), "i1 u1 i2 u2 i4 u4 f4 f8 i8 u8".split()))
# Classes of matrices.
_STRUCT, _CHAR = 2, 4

_CHUNK = 1 << 18


class OtherLayoutError(Exception):
    """The file has a layout that this module does not read."""


def iterate_structs(stream: BinaryIO, key: str) -> Iterator[dict[str, bytes]]:
    """Entries of a struct array that is the first variable of a MAT-file.

    Args:
        stream: the file, at its start.
        key: name of the variable.

    Yields:
        The matrix of each field, without its tag, as :func:`struct_cells` takes it.

    Raises:
        OtherLayoutError: the file does not start with such a variable, or is truncated.
    """
    if _exactly(stream, 128)[126:] != b"IM":
        raise OtherLayoutError
    kind, size = struct.unpack("<II", _exactly(stream, 8))
    inflated = None
    if kind == _COMPRESSED:
        inflated = _Inflated(stream, size)
        stream = io.BufferedReader(inflated, _CHUNK)
        kind, size = struct.unpack("<II", _exactly(stream, 8))
    if kind != _MATRIX:
        raise OtherLayoutError
    flags = _read_element(stream, _UINT32)
    dims = _read_element(stream, _INT32)
    name = _read_element(stream, _INT8)
    if flags[0] != _STRUCT or name != key.encode():
        raise OtherLayoutError
    fields = _field_names(_read_element(stream, _INT32), _read_element(stream, _INT8))
    for _ in range(int(np.frombuffer(dims, "<i4").prod(dtype=np.int64))):
        entry = {}
        for field in fields:
            kind, size = struct.unpack("<II", _exactly(stream, 8))
            if kind != _MATRIX:
                raise OtherLayoutError
            entry[field] = _exactly(stream, size)
        yield entry
    # The checksum follows the last byte.
    if inflated is not None and (stream.read(1) or not inflated.is_whole):
        raise OtherLayoutError


def struct_cells(matrix: bytes) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Places of the cells of a struct array in its matrix.

    Returns:
        Names of the F fields, and start and size in bytes of the cells, (n, F) int64 each. A cell
        is a matrix without its tag; zero bytes are MATLAB's short form of an empty one.

    Raises:
        OtherLayoutError: it is no struct array.
    """
    flags, place = _element_at(matrix, 0, _UINT32)
    dims, place = _element_at(matrix, place, _INT32)
    _, place = _element_at(matrix, place, _INT8)
    length, place = _element_at(matrix, place, _INT32)
    names, place = _element_at(matrix, place, _INT8)
    if flags[0] != _STRUCT:
        raise OtherLayoutError
    fields = _field_names(length, names)
    count = int(np.frombuffer(dims, "<i4").prod(dtype=np.int64))
    if (len(matrix) - place) % 8:
        raise OtherLayoutError
    words = np.frombuffer(matrix, "<u8", offset=place)
    # Every element starts on a word, so these are all tags of matrices, and words of data that look
    # like one: in that case the chain from cell to cell is not closed.
    tags = np.flatnonzero((words & 0xFFFFFFFF) == _MATRIX)
    sizes = (words[tags] >> 32).astype(np.int64)
    begins = place + tags * 8 + 8
    ends = np.append(place, begins + sizes)
    if (
        len(tags) != count * len(fields)
        or (ends[:-1] != begins - 8).any()
        or ends[-1] != len(matrix)
    ):
        begins, sizes = _follow_chain(matrix, place, count * len(fields))
    shape = (count, len(fields))
    return fields, begins.reshape(shape), sizes.reshape(shape)


def texts_at(matrix: bytes, begins: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Strings of char cells with one byte per character, (n,) bytes (kind "S").

    Raises:
        OtherLayoutError: a cell is something else, or too short for the vectorized reading.
    """
    if not len(begins):
        return np.zeros(0, "S1")
    if (sizes < 48).any() or (begins % 8).any():
        raise OtherLayoutError
    words = np.frombuffer(matrix, "<u8", count=len(matrix) // 8)
    at = begins // 8
    # Flags (2 words), dimensions (2), the empty name (1), then the characters: their tag and bytes,
    # or up to four of them in the tag.
    tags = words[at + 5]
    in_tag = ((tags >> 16) & 0xFFFF).astype(np.int64)
    kinds = tags & 0xFFFF
    lengths = np.where(in_tag > 0, in_tag, (tags >> 32).astype(np.int64))
    starts = np.where(in_tag > 0, 44, 48)
    regular = (
        (words[at] == (_UINT32 | 8 << 32))
        & (words[at + 1] & 0xFF == _CHAR)
        & (words[at + 2] == (_INT32 | 8 << 32))
        & (words[at + 4] == _INT8)
        & ((kinds == _UTF8) | (kinds == _UINT8))
        & (in_tag <= 4)
        & (lengths > 0)
        & (starts + lengths <= sizes)
    )
    if not regular.all():
        raise OtherLayoutError
    characters = np.arange(lengths.max())
    places = np.minimum((begins + starts)[:, None] + characters, len(matrix) - 1)
    taken = np.frombuffer(matrix, np.uint8)[places]
    taken[characters >= lengths[:, None]] = 0
    return np.ascontiguousarray(taken).view(f"S{taken.shape[1]}").ravel()


def is_empty_at(matrix: bytes, begin: int, size: int) -> bool:
    """Whether a cell is an empty matrix."""
    if size == 0:
        return True
    _, place = _element_at(matrix, begin, _UINT32)
    dims, _ = _element_at(matrix, place, _INT32)
    return int(np.frombuffer(dims, "<i4").prod(dtype=np.int64)) == 0


def numbers_at(matrix: bytes, begin: int, size: int) -> np.ndarray:
    """Numbers of a real matrix cell, (n,) float64.

    Raises:
        OtherLayoutError: it is no such matrix.
    """
    if size == 0:
        return np.zeros(0)
    flags, place = _element_at(matrix, begin, _UINT32)
    dims, place = _element_at(matrix, place, _INT32)
    _, place = _element_at(matrix, place, _INT8)
    data, _ = _element_at(matrix, place, None)
    kind = _kind_at(matrix, place)
    # Classes 6 to 15 are numbers; the second byte has the flag of complex ones.
    if not 6 <= flags[0] <= 15 or flags[1] & 0x08 or kind not in _NUMBERS:
        raise OtherLayoutError
    values = np.frombuffer(data, f"<{_NUMBERS[kind]}")
    if len(values) != np.frombuffer(dims, "<i4").prod(dtype=np.int64):
        raise OtherLayoutError
    return values.astype(np.float64)


class _Inflated(io.RawIOBase):
    """Decompressed content of an element of ``size`` bytes."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._left = stream, size
        self._inflate = zlib.decompressobj()

    def readable(self) -> bool:
        return True

    @property
    def is_whole(self) -> bool:
        """Whether the element was read to its end and matches its checksum."""
        return self._inflate.eof and self._left == 0

    def readinto(self, target: Any) -> int:
        buffer = memoryview(target)
        while True:
            pending = self._inflate.unconsumed_tail
            if not pending:
                pending = self._stream.read(min(_CHUNK, self._left))
                self._left -= len(pending)
            try:
                data = self._inflate.decompress(pending, len(buffer))
            except zlib.error:
                raise OtherLayoutError from None
            if data or not pending:
                buffer[: len(data)] = data
                return len(data)


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise OtherLayoutError
    return data


def _read_element(stream: BinaryIO, kind: int) -> bytes:
    tag = _exactly(stream, 8)
    size = _small_size(tag, 0)
    if size is None:
        size = struct.unpack("<I", tag[4:])[0]
        # Names and dimensions are short; a corrupt file must not allocate gigabytes.
        if size > 1 << 20:
            raise OtherLayoutError
        tag += _exactly(stream, -(-size // 8) * 8)
    return _element_at(tag, 0, kind)[0]


def _element_at(buffer: bytes, place: int, kind: Union[int, None]) -> tuple[bytes, int]:
    """Data of the element of that kind at ``place``, and the place after it."""
    if place + 8 > len(buffer) or kind is not None and _kind_at(buffer, place) != kind:
        raise OtherLayoutError
    size = _small_size(buffer, place)
    if size is not None:
        return buffer[place + 4 : place + 4 + size], place + 8
    size = struct.unpack_from("<I", buffer, place + 4)[0]
    end = place + 8 + size
    if end > len(buffer):
        raise OtherLayoutError
    return buffer[place + 8 : end], place + 8 + -(-size // 8) * 8


def _kind_at(buffer: bytes, place: int) -> int:
    return struct.unpack_from("<H", buffer, place)[0]


def _small_size(buffer: bytes, place: int) -> Union[int, None]:
    """Size of an element of up to four bytes, which is stored in its tag; else ``None``."""
    size = struct.unpack_from("<H", buffer, place + 2)[0]
    if size > 4:
        raise OtherLayoutError
    return size or None


def _field_names(length: bytes, names: bytes) -> list[str]:
    width = struct.unpack("<i", length)[0] if len(length) == 4 else 0
    if width < 1 or len(names) % width:
        raise OtherLayoutError
    parts = [names[i : i + width] for i in range(0, len(names), width)]
    return [part.split(b"\0", 1)[0].decode("ascii", "replace") for part in parts]


def _follow_chain(matrix: bytes, place: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    begins, sizes = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for i in range(count):
        if place + 8 > len(matrix):
            raise OtherLayoutError
        kind, size = struct.unpack_from("<II", matrix, place)
        if kind != _MATRIX or place + 8 + size > len(matrix):
            raise OtherLayoutError
        begins[i], sizes[i] = place + 8, size
        place += 8 + size
    if place != len(matrix):
        raise OtherLayoutError
    return begins, sizes
