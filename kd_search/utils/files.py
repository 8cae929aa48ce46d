"""Files that are there whole or not at all, and as they were written."""

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
    fcntl = None


#: Where a sealed JSON file keeps the SHA-256 of the rest of its content.
_SEAL = "sha256"
#: Temporary files: process and a random number.
_TEMPORARY = re.compile(r"\.kd_search-(\d+)-[0-9a-f]{8}\.tmp")
_MINUTE, _DAY = 60.0, 86400.0
#: Folders in which this process has removed what dead ones left behind.
_cleaned: set[str] = set()


@contextlib.contextmanager
def atomic_write(path: Union[str, "os.PathLike[str]"]) -> Iterator[BinaryIO]:
    """Open a binary file beside ``path`` that takes its place if the block ends without an error.

    A reader, or a crash, meets the old file or the whole new one, also where several processes
    write to the same path: the last one wins. Folders are made if absent. The first writing of a
    process to a folder removes the temporary files that dead processes left there.
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
    _sync_folder(path.parent)


def lock_file(handle: int) -> Optional[bool]:
    """Lock a file that is open for writing, for this process alone, until it closes it or ends.

    Processes that are forked off do not inherit the lock: workers that outlive a killed process
    hold nothing.

    Returns:
        whether it was free; ``None`` where the file system has no locks.
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


def check_writable(path: Union[str, "os.PathLike[str]"], name: str) -> None:
    """Refuse, before long work, a file that could not be written afterwards; makes its folder.

    Args:
        path: of the file.
        name: what the user calls it: a config key or an option.

    Raises:
        OSError: naming both, and the reason.
    """
    folder = Path(path).parent
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"{name} {path} cannot be written ({error.strerror or error}): name another place"
        ) from None


def write_json(path: Union[str, "os.PathLike[str]"], value: Any, *, sealed: bool = False) -> None:
    """Write strict JSON (no NaN) atomically.

    ``sealed`` adds the checksum of the content, under "sha256", for :func:`read_json`; ``value`` is
    a dict then.
    """
    if sealed:
        value = {**value, _SEAL: _sha256(value)}
    content = json.dumps(value, indent=1, allow_nan=False)
    with atomic_write(path) as file:
        file.write(content.encode())


def read_json(
    path: Union[str, "os.PathLike[str]"], what: str = "file", *, sealed: bool = False
) -> Any:
    """Read a JSON file.

    Args:
        path: of the file.
        what: the file is, for the message where there is none.
        sealed: the checksum of :func:`write_json`, where the file has it, must be right; it is not
            returned. Older files have none, and who edits a file by hand takes it out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, or was changed; one line that names it.
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
            f"{path}: the content is not that of its {_SEAL}: the file is damaged, or was edited; "
            f"in the latter case, remove {_SEAL!r} from it"
        )
    return value


def _sha256(value: Any) -> str:
    """Of a JSON value, however it is indented."""
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()


def check_torch_archive(path: Union[str, "os.PathLike[str]", BinaryIO]) -> None:
    """Compare a file of ``torch.save`` with its own checksums.

    torch writes them, but does not look at them: a flipped bit would go unnoticed.

    Raises:
        ValueError: a checksum is wrong, or the archive is torn.
    """
    if not zipfile.is_zipfile(path):
        return  # torch's old format, which has none
    try:
        with zipfile.ZipFile(path) as archive:
            harmed = archive.testzip()
    except Exception as error:  # a torn archive fails in whatever way its next byte says
        raise ValueError(f"the archive is torn ({error})") from None
    if harmed is not None:
        raise ValueError(f"the checksum of {harmed} in it is wrong")


def _remove_left_overs(folder: Path) -> None:
    """Remove temporary files that no process writes to any more.

    A lock tells on one machine. Of another machine on a shared disk it may not, so that a file that
    was touched in the last minute stays; without any locks one of the last day.
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


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself survive a power failure; some systems have no such call."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def file_sha256(path: Union[str, os.PathLike]) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        for chunk in iter(lambda: f.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()
