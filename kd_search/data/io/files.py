"""Files and folders of data sets, with errors that name what is missing."""

import contextlib
import glob
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Optional

from detectron2.utils.file_io import PathManager

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")


def datasets_folder(name: str) -> str:
    """``$DETECTRON2_DATASETS/<name>``; ``datasets/<name>`` where unset, as in Detectron2."""
    return os.path.join(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")), name)


def datasets_hint(folder: str) -> str:
    """What to do if files of ``datasets_folder(folder)`` are missing."""
    return f"set DETECTRON2_DATASETS to the folder that holds {folder}/"


def require_paths(name: str, paths: Iterable[str], hint: str) -> None:
    """Check that files or folders of a data set exist.

    Raises:
        FileNotFoundError: one line with the set, the first missing path and what to do.
    """
    for path in paths:
        if not os.path.exists(path):
            raise FileNotFoundError(f"{name}: {path} is missing; {hint} (see docs/datasets.md)")


def require_file(path: str, hint: str = "", what: str = "file") -> str:
    """Return ``path``.

    Raises:
        FileNotFoundError: it is no file.
    """
    if not PathManager.isfile(path):
        raise FileNotFoundError(f"{path}: no such {what}" + (f"; {hint}" if hint else ""))
    return path


def _entries(folder: str, hint: str) -> list[os.DirEntry]:
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder}: no such folder" + (f"; {hint}" if hint else ""))
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def image_names(folder: str, hint: str = "") -> list[str]:
    """Sorted names of the image files of a folder; other files are ignored.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    names = [entry.name for entry in _entries(folder, hint)]
    return [name for name in names if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES]


def folder_names(folder: str, hint: str = "") -> list[str]:
    """Sorted names of the folders in a folder.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    return [entry.name for entry in _entries(folder, hint) if entry.is_dir()]


def read_lines(path: str, what: str = "file", hint: str = "") -> list[tuple[int, str]]:
    """Stripped lines of a UTF-8 text file with their numbers from 1; blank ones are left out.

    Args:
        path: text file, by any path that Detectron2's PathManager opens.
        what: kind of file, for messages.
        hint: what to do if it is missing.

    Raises:
        FileNotFoundError, ValueError: the file is missing, or no text.
    """
    require_file(path, hint, what)
    try:
        with PathManager.open(path, "r", encoding="utf-8") as stream:
            lines = stream.read().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error})") from None
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def first_repeat(values: Iterable[Any]) -> Optional[tuple[int, int]]:
    """Indices of the first value that occurred before, and of its first occurrence."""
    seen: dict[Any, int] = {}
    for index, value in enumerate(values):
        if seen.setdefault(value, index) != index:
            return index, seen[value]
    return None


def refuse_repeated_lines(path: str, lines: list[tuple[int, str]]) -> None:
    """Check that the lines of a list of names, as of :func:`read_lines`, are different.

    Raises:
        ValueError: one is repeated; the message has its number.
    """
    repeat = first_repeat(text for _, text in lines)
    if repeat:
        number, text = lines[repeat[0]]
        raise ValueError(f"{path}, line {number}: {text} is listed twice")


@contextlib.contextmanager
def whole_folder(root: Path) -> Iterator[Path]:
    """A folder to write to, which becomes ``root`` if the block ends without an error.

    It lies beside ``root``; an existing ``root`` stays until then and is replaced. Leftovers of
    processes that were killed are removed.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    for folder in root.parent.glob(f".{glob.escape(root.name)}.*-*"):
        match = re.fullmatch(r".*\.(?:partial|old)-(\d+)", folder.name)
        if match and not _is_alive(int(match[1])):
            shutil.rmtree(folder, ignore_errors=True)
    partial, old = (
        root.with_name(f".{root.name}.{what}-{os.getpid()}") for what in ("partial", "old")
    )
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial
        if root.exists():
            os.replace(root, old)
        os.replace(partial, root)
    finally:
        for folder in (partial, old):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
