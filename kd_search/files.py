"""Files that are there whole or not at all, and as they were written."""

import contextlib
import json
import os
import zipfile
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


def check_torch_archive(path: Union[str, "os.PathLike[str]"]) -> None:
    """Compare a file of ``torch.save`` with its own checksums.

    torch writes them, but does not look at them: a flipped bit would go unnoticed.

    Raises:
        ValueError: a checksum is wrong.
    """
    if not zipfile.is_zipfile(path):
        return  # torch's old format, which has none
    with zipfile.ZipFile(path) as archive:
        harmed = archive.testzip()
    if harmed is not None:
        raise ValueError(f"the checksum of {harmed} in it is wrong")


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself survive a power failure; some systems have no such call."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
