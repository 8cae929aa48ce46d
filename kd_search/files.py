"""Files that are there whole or not at all."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Union


@contextlib.contextmanager
def atomic_write(path: Union[str, "os.PathLike[str]"]) -> Iterator[BinaryIO]:
    """Open a binary file beside ``path`` that takes its place if the block ends without an error.

    A reader, or a crash, meets the old file or the whole new one. Folders are made if absent.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # One name per target: what a killed process left behind is overwritten by the next one.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_json(path: Union[str, "os.PathLike[str]"], value: Any) -> None:
    """Write strict JSON (no NaN) atomically."""
    content = json.dumps(value, indent=1, allow_nan=False)
    with atomic_write(path) as file:
        file.write(content.encode())


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself survive a power failure; some systems have no such call."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
