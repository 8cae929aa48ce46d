"""A data set that appears whole or not at all."""

import glob
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(root: Path) -> Iterator[Path]:
    """A folder beside ``root`` to write into, which takes its place if the block ends well.

    An older ``root`` stays until then. What runs that were killed have left behind is removed.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(root)
    partial, old = (
        root.with_name(f".{root.name}.{what}-{os.getpid()}") for what in ("partial", "old")
    )
    try:
        yield partial
        if root.exists():
            os.replace(root, old)
        os.replace(partial, root)
    finally:
        for folder in (partial, old):
            shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(root: Path) -> None:
    for folder in root.parent.glob(f".{glob.escape(root.name)}.*-*"):
        match = re.fullmatch(r".*\.(?:partial|old)-(\d+)", folder.name)
        if match and not _alive(int(match.group(1))):
            shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
