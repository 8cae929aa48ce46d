"""Reading of MATLAB's .mat files and of the structs, cells and strings in them."""

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
from detectron2.utils.file_io import PathManager
from scipy.io import loadmat

from kd_search.data.io.files import first_repeat

#: First bytes of HDF5, which MATLAB writes with "-v7.3" after 512 bytes of its own.
_HDF5 = b"\x89HDF\r\n\x1a\n"
#: Types of top-level elements.
_MATRIX, _COMPRESSED = 14, 15
_CHUNK = 1 << 18


def read_mat(path: str, key: str) -> np.ndarray:
    """One variable of a .mat file as scipy returns it: structs as record arrays, cells as objects.

    Nothing is squeezed: a struct array of one entry stays an array, and a box stays (1, 4).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no MAT-file, one of version 7.3, or lacks the variable; the line has the
            file and the variables in it.
    """
    return read_first_variable(path, (key,))[1]


def read_first_variable(path: str, keys: tuple[str, ...]) -> tuple[str, np.ndarray]:
    """The first of several variables that a file contains, and its name; see :func:`read_mat`."""
    check_mat_version(path)
    try:
        with PathManager.open(path, "rb") as stream:
            _check_sums(stream)
            stream.seek(0)
            content = loadmat(stream)
    # What scipy raises on truncated and foreign files has no common type.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read as a MAT-file ({reason})") from None
    for key in keys:
        if key in content:
            return key, content[key]
    names = ", ".join(name for name in content if not name.startswith("__")) or "none"
    raise ValueError(f"{path}: expected a variable {' or '.join(keys)}, the file has: {names}")


def check_mat_version(path: str) -> None:
    """Refuse missing files and those of MATLAB 7.3.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_mat`.
    """
    try:
        with PathManager.open(path, "rb") as stream:
            head = stream.read(520)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path}: no such file") from None
    if head.startswith((b"MATLAB 7.3", _HDF5)) or head[512:].startswith(_HDF5):
        raise ValueError(
            f"{path}: a MATLAB 7.3 file (HDF5), which is not supported; load it in MATLAB and save "
            "it again with '-v7'"
        )


def struct_entries(array: Any, fields: tuple[str, ...], where: str) -> Iterator[tuple[str, Any]]:
    """Entries of a struct array, or of a cell array of structs, with their places for messages.

    Args:
        array: as scipy returns it, of any shape.
        fields: required in every entry.
        where: file and variable, for messages.

    Yields:
        ``("<where>(<number from 1>)", entry)``; ``entry[field]`` is the array of a field.

    Raises:
        ValueError: it is no struct, or an entry lacks a field.
    """
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{where}: expected a struct, got {type(array).__name__}")
    names = array.dtype.names
    if names is None and array.size and array.dtype != object:
        raise ValueError(f"{where}: expected a struct with {', '.join(fields)}, got {array.dtype}")
    if names is not None:
        _require_fields(names, fields, where)
    for number, entry in enumerate(array.ravel(order="F"), 1):
        at = f"{where}({number})"
        if names is None:
            inner = getattr(getattr(entry, "dtype", None), "names", None)
            if inner is None or entry.size != 1:
                raise ValueError(f"{at}: expected one struct with {', '.join(fields)}")
            _require_fields(inner, fields, at)
            entry = entry.ravel()[0]
        yield at, entry


def text_of(value: Any, where: str) -> str:
    """The string in a field.

    Raises:
        ValueError: it is no string, or empty.
    """
    array = np.asarray(value)
    while array.dtype == object and array.size == 1:
        array = np.asarray(array.ravel()[0])
    if array.dtype.kind != "U" or array.size != 1 or not str(array.ravel()[0]):
        raise ValueError(f"{where}: expected a string, got {_shown(array)}")
    return str(array.ravel()[0])


def numbers_of(value: Any, count: int, where: str) -> np.ndarray:
    """``count`` finite numbers of a field, (count,) float64; (0,) where the field is empty.

    Raises:
        ValueError: it holds something else.
    """
    array = np.asarray(value)
    if array.size == 0:
        return np.zeros(0)
    if array.dtype.kind not in "iuf" or array.size != count or not np.isfinite(array).all():
        raise ValueError(f"{where}: expected {count} numbers, got {_shown(array)}")
    return array.astype(np.float64).ravel()


def texts_of(array: Any, where: str) -> list[str]:
    """Strings of a cell array, in MATLAB's order.

    Raises:
        ValueError: an entry is no string.
    """
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "OU":
        raise ValueError(f"{where}: expected a cell array of strings")
    return [
        text_of(cell, f"{where}({number})") for number, cell in enumerate(array.ravel(order="F"), 1)
    ]


def refuse_repeats(names: Iterable[str], where: str) -> None:
    """Check that the names of the entries of an array are different.

    Raises:
        ValueError: one occurs twice; the message has both entries.
    """
    names = list(names)
    repeat = first_repeat(names)
    if repeat:
        raise ValueError(
            f"{where}({repeat[0] + 1}): {names[repeat[0]]} is already entry {repeat[1] + 1}"
        )


def _check_sums(stream: BinaryIO) -> None:
    """Compare the compressed elements of a file with their checksums.

    scipy checks them too late: on some truncated content it hangs or crashes. Elements that are not
    compressed have no checksum.
    """
    order = {b"IM": "<", b"MI": ">"}.get(stream.read(128)[126:])
    if order is None:
        return  # Version 4, or no MAT-file: left to scipy.
    while tag := stream.read(8):
        kind, size = struct.unpack(order + "II", tag)
        if kind == _COMPRESSED:
            inflate = zlib.decompressobj()
            while size and (part := stream.read(min(_CHUNK, size))):
                size -= len(part)
                while part:
                    inflate.decompress(part, 8 * _CHUNK)
                    part = inflate.unconsumed_tail
            if not inflate.eof:
                raise ValueError("the file is truncated")
        elif kind == _MATRIX:
            body = stream.read(size)
            if len(body) < size or body[:8] != struct.pack(order + "II", 6, 8):
                raise ValueError("the file is truncated")
        else:
            raise ValueError(f"unknown element {kind}")


def _require_fields(names: tuple[str, ...], fields: tuple[str, ...], where: str) -> None:
    missing = [name for name in fields if name not in names]
    if missing:
        raise ValueError(f"{where}: no field {missing[0]!r} (there are: {', '.join(names)})")


def _shown(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}" if array.size != 1 else repr(array.ravel()[0])
