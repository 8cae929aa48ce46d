"""Exclusive use of folders, also after the holder was killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import REPO

from kd_search.utils import folder_lock
from kd_search.utils.folder_lock import (
    LOCK_FILE,
    FolderInUseError,
    alone_in,
    hold_folder,
    release_folder,
)

HOLDER = """
import os, sys, time
from kd_search.utils.folder_lock import hold_folder
print("taken over:", hold_folder(sys.argv[1]), flush=True)
if os.fork() == 0:  # as a loader's worker, which may outlive it
    time.sleep(30)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """A process that holds ``tmp_path / "run"``, and has forked."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        start_new_session=True,
    )
    assert process.stdout.readline() == "taken over: \n"
    yield process
    # The test may have ended the process and the one it forked.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def lock(folder: Path, age: float = 0.0, **changes) -> Path:
    """Write a lock file of another process."""
    folder.mkdir(exist_ok=True)
    path = folder / LOCK_FILE
    content = {"host": "elsewhere", "pid": 12, "started": "2026-01-02 03:04:05", "kernel": "k"}
    path.write_text(json.dumps({**content, **changes}))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_a_second_process_is_refused_with_the_name_of_the_first(tmp_path, other):
    with pytest.raises(FolderInUseError) as caught:
        hold_folder(tmp_path / "run")
    message = str(caught.value)
    started = json.loads((tmp_path / "run" / LOCK_FILE).read_text())["started"]
    assert f"process {other.pid} on {folder_lock._own()['host']}" in message
    assert str(tmp_path / "run") in message and started in message and "\n" not in message


def test_a_killed_process_leaves_the_folder_free_at_once(tmp_path, other):
    other.kill()
    other.wait()
    with alone_in(tmp_path / "run") as message:
        assert f"process {other.pid} on" in message and "has ended" in message
    assert not (tmp_path / "run" / LOCK_FILE).exists()


def test_a_process_that_ends_leaves_nothing(tmp_path, other):
    other.stdin.close()
    other.wait()
    assert not (tmp_path / "run" / LOCK_FILE).exists()
    assert hold_folder(tmp_path / "run") == ""
    release_folder(tmp_path / "run")


def test_a_process_may_hold_a_folder_several_times_by_any_name(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with alone_in(tmp_path), alone_in(tmp_path / "link") as message:
        assert message == ""
        release_folder(tmp_path)
        assert (tmp_path / LOCK_FILE).exists()
        hold_folder(tmp_path)
    assert not (tmp_path / LOCK_FILE).exists()
    release_folder(tmp_path)  # nothing is held: nothing happens


def test_a_folder_that_was_removed_meanwhile_is_released(tmp_path):
    with alone_in(tmp_path / "run"):
        (tmp_path / "run" / LOCK_FILE).unlink()
        (tmp_path / "run").rmdir()
    with alone_in(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK_FILE).exists()


@pytest.mark.parametrize("has_locks", [True, False])
def test_another_machine_with_a_heartbeat_keeps_the_folder(tmp_path, has_locks, monkeypatch):
    if not has_locks:
        monkeypatch.setattr(folder_lock, "lock_file", lambda handle: None)
    path = lock(tmp_path / "run", age=30)
    with pytest.raises(FolderInUseError) as caught:
        hold_folder(tmp_path / "run")
    message = str(caught.value)
    assert "process 12 on elsewhere" in message and f"remove {path}" in message
    assert json.loads(path.read_text())["host"] == "elsewhere"
    path.unlink()
    with alone_in(tmp_path / "run") as message:
        assert message == ""


@pytest.mark.parametrize("has_locks", [True, False])
def test_another_machine_without_a_heartbeat_is_taken_over_from(tmp_path, has_locks, monkeypatch):
    if not has_locks:
        monkeypatch.setattr(folder_lock, "lock_file", lambda handle: None)
    lock(tmp_path / "run", age=200)
    with alone_in(tmp_path / "run") as message:
        assert "process 12 on elsewhere" in message and "heartbeat" in message
        assert json.loads((tmp_path / "run" / LOCK_FILE).read_text())["pid"] == os.getpid()


def test_a_machine_that_has_rebooted_is_taken_over_from(tmp_path):
    lock(tmp_path, host=folder_lock._own()["host"], pid=os.getpid())
    with alone_in(tmp_path) as message:
        assert "rebooted" in message


@pytest.mark.parametrize("alive", [True, False])
def test_without_locks_the_process_number_tells_on_one_machine(tmp_path, alive, monkeypatch):
    monkeypatch.setattr(folder_lock, "lock_file", lambda handle: None)
    ended = subprocess.Popen(["true"])
    ended.wait()
    pid = os.getppid() if alive else ended.pid
    lock(tmp_path, age=9999, pid=pid, kernel=folder_lock._own()["kernel"])
    if alive:
        with pytest.raises(FolderInUseError, match=f"process {pid} on"):
            hold_folder(tmp_path)
    else:
        with alone_in(tmp_path) as message:
            assert "has ended" in message


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 1}', "\0" * 5000])
def test_a_corrupt_lock_file_is_free(tmp_path, content):
    (tmp_path / LOCK_FILE).write_text(content)
    with alone_in(tmp_path) as message:
        assert message == ""


def test_a_holder_has_a_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "_BEAT", 0.01)
    monkeypatch.setattr(folder_lock, "_beating", None)
    with alone_in(tmp_path):
        os.utime(tmp_path / LOCK_FILE, (0, 0))
        deadline = time.monotonic() + 20
        while (tmp_path / LOCK_FILE).stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / LOCK_FILE).stat().st_mtime > 0


@pytest.mark.parametrize("place", ["file/run", "/proc/self/run"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=f"{place} cannot be written"):
        hold_folder(tmp_path / place)
