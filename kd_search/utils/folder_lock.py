"""Folders that one process works in at a time."""

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
from typing import Any, Optional, Union

from kd_search.utils.files import lock_file

LOCK_FILE = ".lock"
#: Seconds between two signs of life, and after which a silent process of another machine is dead.
_BEAT, _SILENCE = 20.0, 120.0


class FolderInUseError(ValueError):
    """Another process works in a folder; the message says which, and what to do."""


@dataclass
class _Held:
    handle: int
    path: str
    pid: int
    users: int = 1


_held: dict[str, _Held] = {}
_beating: Optional[threading.Thread] = None


def hold_folder(folder: Union[str, "os.PathLike[str]"]) -> str:
    """Reserve a folder for this process, until :func:`release_folder` or its end.

    The file ``.lock`` in it names the holder. The kernel's lock on that file tells whether the
    holder lives, and goes with it, however it ends: after ``kill -9`` the folder is free at once,
    and so it is when the machine was started anew. Where the kernel has no say, because the holder
    ran on another machine and the disk they share does not pass locks on, the file's time tells: a
    holder touches it every 20 seconds, and counts as dead when it has not for two minutes.

    A process may hold a folder several times, and must release it as often. Processes that it forks
    off hold nothing.

    Returns:
        what is to be logged: whom the folder was taken over from; "" for nobody.

    Raises:
        FolderInUseError: another process holds it.
        OSError: the folder cannot be made or written, naming it.
    """
    key = os.path.realpath(folder)
    held = _held.get(key)
    if held is not None and held.pid == os.getpid():
        held.users += 1
        return ""
    # Whole, as the process may go to another folder.
    path = os.path.join(key, LOCK_FILE)
    try:
        os.makedirs(folder, exist_ok=True)
        handle, free = _open(path)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{folder} cannot be written ({reason}): name another folder") from None
    try:
        holder = _read(handle)
        taken_over = _check(holder, free, _silence(handle, folder), folder)
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, json.dumps(_own()).encode())
    except BaseException:
        os.close(handle)
        raise
    _held[key] = _Held(handle, path, os.getpid())
    _start_beating()
    return taken_over


def _check(holder: dict, free: Optional[bool], silence: float, folder) -> str:
    """What :func:`hold_folder` returns, or its FolderInUseError."""
    if not holder and free is not False:
        return ""
    gone = "" if free is False else _why_gone(holder, free, silence)
    if gone:
        return f"{folder} is taken over from {_describe(holder)}: {gone}"
    refusal = (
        f"{folder} is in use by {_describe(holder)}: wait for it, end it, or name another folder"
    )
    if free is not False:
        refusal += (
            f". Its last sign of life is {silence:.0f} seconds old; if it is gone, remove "
            f"{os.path.join(folder, LOCK_FILE)}"
        )
    raise FolderInUseError(refusal)


def release_folder(folder: Union[str, "os.PathLike[str]"]) -> None:
    """Give back what :func:`hold_folder` took; the file goes with the last user."""
    held = _held.get(os.path.realpath(folder))
    if held is None or held.pid != os.getpid():
        return
    held.users -= 1
    if held.users == 0:
        del _held[os.path.realpath(folder)]
        _remove(held)


@contextlib.contextmanager
def alone_in(folder: Union[str, "os.PathLike[str]"]) -> Iterator[str]:
    """:func:`hold_folder` for a block."""
    message = hold_folder(folder)
    try:
        yield message
    finally:
        release_folder(folder)


def _remove(held: _Held) -> None:
    # While it is locked: who has opened it before sees that it is no longer there, and looks again.
    with contextlib.suppress(OSError):
        if _is_at(held.handle, held.path):
            os.unlink(held.path)
    os.close(held.handle)


def _release_all() -> None:
    for key, held in list(_held.items()):
        if held.pid == os.getpid():
            del _held[key]
            _remove(held)


# Unlike atexit's, these are called in processes that multiprocessing has started as well.
util.Finalize(None, _release_all, exitpriority=0)


def _open(path: str) -> tuple[int, Optional[bool]]:
    """The open file, locked if it can be, and what :func:`kd_search.utils.files.lock_file` says."""
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
    started = time.strftime("%Y-%m-%d %H:%M:%S %z")
    host = socket.gethostname()
    return {"host": host, "pid": os.getpid(), "started": started, "kernel": _kernel()}


def _kernel() -> str:
    """Differs between machines, and between two starts of one; the same in its containers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _read(handle: int) -> dict[str, Any]:
    """What :func:`_own` wrote; empty where it is not whole."""
    os.lseek(handle, 0, os.SEEK_SET)
    try:
        holder = json.loads(os.read(handle, 4096))
        whole = all(isinstance(holder[key], type(value)) for key, value in _own().items())
    except (ValueError, KeyError, TypeError):
        return {}
    return holder if whole else {}


def _why_gone(holder: dict[str, Any], free: Optional[bool], silence: float) -> str:
    """Why the holder, which left no lock, does not work any more; "" where it may."""
    own = _own()
    if holder["kernel"] == own["kernel"]:
        ended = bool(free) or not _lives(holder["pid"])
        return "its process has ended" if ended else ""
    if holder["host"] == own["host"]:
        return "its machine was started anew"
    return f"no sign of life for {silence:.0f} seconds" if silence > _SILENCE else ""


def _lives(pid: int) -> bool:
    if os.name != "posix":
        return True  # a signal 0 would end it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


def _silence(handle: int, folder: Union[str, "os.PathLike[str]"]) -> float:
    """Seconds since the last sign of life, by the clock of the disk."""
    with tempfile.TemporaryFile(dir=folder) as now:
        return os.fstat(now.fileno()).st_mtime - os.fstat(handle).st_mtime


def _describe(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    return f"process {holder['pid']} on {holder['host']} (since {holder['started']})"


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
