"""Exclusive use of folders by one process at a time."""

import contextlib
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import util
from pathlib import Path
from typing import Any, Optional

from kd_search.utils.files import PathLike, lock_file

LOCK_FILE = ".lock"
#: Seconds between heartbeats, and without any until a process of another machine counts as dead.
_BEAT, _SILENCE = 20.0, 120.0


class FolderInUseError(ValueError):
    """Another process works in a folder. The message names it and a remedy."""


@dataclass
class _Held:
    handle: int
    path: str
    pid: int
    users: int = 1


_held: dict[str, _Held] = {}
_beating: Optional[threading.Thread] = None


def hold_folder(folder: PathLike) -> str:
    """Reserve a folder for this process until :func:`release_folder` or its end.

    The file ``.lock`` in it names the holder. The kernel's lock on that file is released when the
    holder ends, however it ends: after ``kill -9`` or a reboot the folder is free at once. If the
    holder ran on another machine and their shared disk does not pass locks on, the time of the file
    decides: a holder touches it every 20 seconds, and counts as dead after two minutes without.

    A process may hold a folder several times, and must release it as often. Forked processes do not
    inherit the reservation.

    Returns:
        A message to log that names the dead process that left the folder locked; "" if none did.

    Raises:
        FolderInUseError: another process holds it.
        OSError: the folder cannot be created or written; the message names it.
    """
    key = os.path.realpath(folder)
    held = _held.get(key)
    if held is not None and held.pid == os.getpid():
        held.users += 1
        return ""
    # Absolute, as the process may change its working directory.
    path = os.path.join(key, LOCK_FILE)
    try:
        os.makedirs(folder, exist_ok=True)
        handle, free = _open(path)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{folder} cannot be written ({reason}): name another folder") from None
    try:
        holder = _read(handle)
        message = _check(holder, free, _silence(handle, folder), folder)
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, json.dumps(_own()).encode())
    except BaseException:
        os.close(handle)
        raise
    _held[key] = _Held(handle, path, os.getpid())
    _start_beating()
    return message


def release_folder(folder: PathLike) -> None:
    """Release what :func:`hold_folder` reserved; the last user removes the file."""
    held = _held.get(os.path.realpath(folder))
    if held is None or held.pid != os.getpid():
        return
    held.users -= 1
    if held.users == 0:
        del _held[os.path.realpath(folder)]
        _remove(held)


@contextlib.contextmanager
def alone_in(folder: PathLike) -> Iterator[str]:
    """Reserve a folder as :func:`hold_folder` for a block."""
    message = hold_folder(folder)
    try:
        yield message
    finally:
        release_folder(folder)


def _check(holder: dict[str, Any], free: Optional[bool], silence: float, folder: PathLike) -> str:
    """Return the message of :func:`hold_folder`, or raise its FolderInUseError."""
    if not holder and free is not False:
        return ""
    name = "another process"
    if holder:
        name = f"process {holder['pid']} on {holder['host']} (since {holder['started']})"
    gone = "" if free is False else _why_gone(holder, free, silence)
    if gone:
        return f"{folder} is taken over from {name}: {gone}"
    refusal = f"{folder} is in use by {name}: wait for it, end it, or name another folder"
    if free is not False:
        refusal += (
            f". Its last heartbeat was {silence:.0f} seconds ago; if it is gone, remove "
            f"{os.path.join(folder, LOCK_FILE)}"
        )
    raise FolderInUseError(refusal)


def _remove(held: _Held) -> None:
    # Before the lock is released: a process that has opened the file finds it removed, and retries.
    with contextlib.suppress(OSError):
        if _is_at(held.handle, held.path):
            os.unlink(held.path)
    os.close(held.handle)


def _release_all() -> None:
    for key, held in list(_held.items()):
        if held.pid == os.getpid():
            del _held[key]
            _remove(held)


# Unlike atexit functions, these also run in processes that multiprocessing has started.
util.Finalize(None, _release_all, exitpriority=0)


def _open(path: str) -> tuple[int, Optional[bool]]:
    """Return the open file, locked if possible, and the result of ``lock_file``."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        free = lock_file(handle)
        if not free or _is_at(handle, path):
            return handle, free
        os.close(handle)


def _is_at(handle: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False


def _own() -> dict[str, Any]:
    host = socket.gethostname()
    try:  # differs between machines and between boots, and is the same in a machine's containers
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        kernel = host
    started = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return {"host": host, "pid": os.getpid(), "started": started, "kernel": kernel}


def _read(handle: int) -> dict[str, Any]:
    """Return what :func:`_own` wrote; empty if it is incomplete."""
    os.lseek(handle, 0, os.SEEK_SET)
    try:
        holder: dict[str, Any] = json.loads(os.read(handle, 4096))
        complete = all(isinstance(holder[key], type(value)) for key, value in _own().items())
    except (ValueError, KeyError, TypeError):
        return {}
    return holder if complete else {}


def _why_gone(holder: dict[str, Any], free: Optional[bool], silence: float) -> str:
    """Return why the holder of a file that is not locked counts as dead; "" if it may live."""
    own = _own()
    if holder["kernel"] == own["kernel"]:
        ended = bool(free) or not _lives(holder["pid"])
        return "its process has ended" if ended else ""
    if holder["host"] == own["host"]:
        return "its machine has rebooted"
    return f"no heartbeat for {silence:.0f} seconds" if silence > _SILENCE else ""


def _lives(pid: int) -> bool:
    if os.name != "posix":
        return True  # signal 0 would end it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


def _silence(handle: int, folder: PathLike) -> float:
    """Return the seconds since the last heartbeat, by the clock of the disk."""
    with tempfile.TemporaryFile(dir=folder) as now:
        return os.fstat(now.fileno()).st_mtime - os.fstat(handle).st_mtime


def _start_beating() -> None:
    global _beating
    if _beating is None or not _beating.is_alive():
        _beating = threading.Thread(target=_beat, name="kd_search folder locks", daemon=True)
        _beating.start()


def _beat() -> None:
    while True:
        time.sleep(_BEAT)
        for held in list(_held.values()):
            with contextlib.suppress(OSError):
                os.utime(held.path)
