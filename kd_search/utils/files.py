"""Atomic writing of files, and checks that their content is what was written."""

import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Optional, Union

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # no module

#: Key of the SHA-256 of the rest of the content in a sealed JSON file.
_SEAL = "sha256"
#: Names of temporary files: process and a random number.
_TEMPORARY = re.compile(r"\.kd_search-(\d+)-[0-9a-f]{8}\.tmp")
_MINUTE, _DAY = 60.0, 86400.0
#: Folders from which this process has removed temporary files of dead processes.
_cleaned: set[str] = set()

PathLike = Union[str, "os.PathLike[str]"]


@contextlib.contextmanager
def atomic_write(path: PathLike) -> Iterator[BinaryIO]:
    """Open a temporary binary file that replaces ``path`` if the block ends without an error.

    Readers see the old or the complete new file, also after a crash and if several processes write
    to the same path; the last one wins. Missing folders are created. The first write of a process
    to a folder removes the temporary files that dead processes left there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_overs(path.parent)
    temporary = path.with_name(f".kd_search-{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:
            lock_file(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def lock_file(handle: int) -> Optional[bool]:
    """Lock a file that is open for writing until this process closes it or ends.

    Forked processes do not inherit the lock, so that workers that outlive a killed process hold
    nothing.

    Returns:
        Whether it was free; ``None`` if the file system has no locks.
    """
    if fcntl is None:
        return None
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def check_writable(path: PathLike, name: str) -> None:
    """Raise an ``OSError`` if a file cannot be written, before long work; creates its folder.

    Args:
        path: of the file.
        name: config key or option that sets the path, for the message.
    """
    folder = Path(path).parent
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{name} {path} cannot be written ({reason}): name another place") from None


def write_json(path: PathLike, value: Any, *, sealed: bool = False) -> None:
    """Write strict JSON (no NaN) atomically.

    ``sealed`` adds the checksum of the content, a dict, under "sha256" for :func:`read_json`.
    """
    if sealed:
        value = {**value, _SEAL: _sha256(value)}
    content = json.dumps(value, indent=1, allow_nan=False)
    with atomic_write(path) as file:
        file.write(content.encode())


def read_json(path: PathLike, what: str = "file", *, sealed: bool = False) -> Any:
    """Read a JSON file.

    Args:
        path: of the file.
        what: kind of file, for the message if it does not exist.
        sealed: check and remove the checksum of :func:`write_json` if the file has one. Older files
            do not, and users remove it when they edit a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or its checksum is wrong; one line that names the file.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            value = json.load(stream)
        sealed = sealed and isinstance(value, dict) and _SEAL in value
        whole = not sealed or value.pop(_SEAL) == _sha256(value)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such {what}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None
    if not whole:
        raise ValueError(
            f"{path}: the content does not match its {_SEAL}: the file is damaged or was edited; "
            f"if you edited it, remove {_SEAL!r}"
        )
    return value


def _sha256(value: Any) -> str:
    # Of the value and not of the text, which may be indented differently.
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()


def printable(text: str) -> str:
    """Text with file names that any terminal and any encoder can show."""
    return text.encode("utf-8", "backslashreplace").decode()


def file_sha256(path: PathLike) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def check_torch_archive(path: Union[PathLike, BinaryIO]) -> None:
    """Check a file of ``torch.save`` against its checksums, which torch writes but does not read.

    Raises:
        ValueError: a checksum is wrong, or the archive is truncated or corrupt.
    """
    if not zipfile.is_zipfile(path):
        return  # torch's old format, which has none
    try:
        with zipfile.ZipFile(path) as archive:
            harmed = archive.testzip()
    except Exception as error:  # corrupt bytes may raise anything
        raise ValueError(f"the archive is truncated or corrupt ({error})") from None
    if harmed is not None:
        raise ValueError(f"the checksum of {harmed} in it is wrong")


def _remove_left_overs(folder: Path) -> None:
    """Remove temporary files that no process writes to any more.

    Their lock is free, but locks may not reach other machines on a shared disk: files that were
    modified within a minute stay. Without locks, files of the last day stay.
    """
    key = os.path.realpath(folder)
    if key in _cleaned:
        return
    _cleaned.add(key)
    for entry in os.scandir(folder):
        found = _TEMPORARY.fullmatch(entry.name)
        if found is None or int(found[1]) == os.getpid():
            continue
        with contextlib.suppress(OSError), open(entry.path, "r+b") as file:
            age = time.time() - entry.stat().st_mtime
            free = lock_file(file.fileno())
            if free is not False and age > (_MINUTE if free else _DAY):
                os.unlink(entry.path)


def sync_folder(folder: Path) -> None:
    """Make a rename survive a power failure, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
