"""JSON files with a checksum, schemas, and atomic writing of files."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import REPO

from kd_search.utils import files
from kd_search.utils.files import file_sha256, read_json, write_json
from kd_search.utils.schema import Count, Schema, check_schema

VALUE = {"b": [1, 2.5, None, True], "a": {"ü": "x", "10": 1, "9": 2}}


def test_a_sealed_file_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, VALUE, sealed=True)
    assert read_json(path, sealed=True) == VALUE
    raw = json.loads(path.read_text())
    assert len(raw.pop("sha256")) == 64 and raw == VALUE
    # However it is indented.
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert read_json(path, sealed=True) == VALUE


def test_an_edited_file_is_refused_until_its_checksum_is_taken_out(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, VALUE, sealed=True)
    edited = {**json.loads(path.read_text()), "b": [1]}
    path.write_text(json.dumps(edited))
    with pytest.raises(ValueError, match=r"a\.json.*sha256"):
        read_json(path, sealed=True)
    del edited["sha256"]
    path.write_text(json.dumps(edited))
    assert read_json(path, sealed=True) == edited


def test_the_checksum_of_a_file_is_that_of_all_its_bytes(tmp_path):
    content = bytes(range(256)) * 5000  # more than one block
    (tmp_path / "a").write_bytes(content)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_the_seal_of_others_means_nothing_here(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"sha256": "of something else"}')
    assert read_json(path) == {"sha256": "of something else"}


def test_numbers_as_keys_do_not_break_the_seal(tmp_path):
    write_json(tmp_path / "a.json", {"t": {10: 1, 9: (2, 3)}}, sealed=True)
    assert read_json(tmp_path / "a.json", sealed=True) == {"t": {"10": 1, "9": [2, 3]}}


class Inner(Schema):
    number: Count


class Outer(Schema):
    items: list[Inner]
    by_name: dict[str, Inner] = {}


@pytest.mark.parametrize(
    "value, message",
    [
        ({"items": [{"number": 1}, {"number": "2"}]}, r"f: items\[1\]\.number .*found '2'"),
        ({"items": [{"number": True}]}, r"f: items\[0\]\.number .*found True"),
        ({"items": [{"number": -1}]}, r"f: items\[0\]\.number .*found -1"),
        ({"items": [{"number": 10**5000}]}, r"f: items\[0\]\.number .*found a int"),
        ({"items": [{}]}, r"f: items\[0\]\.number is missing$"),
        ({"items": [], "by_name": {"a.b\n": {}}}, r"f: by_name\['a\.b\\n'\]\.number is missing$"),
        ({"items": [], "by_name": {3: {}}}, r"f: by_name.*found 3"),
        ({"items": [{"number": "x\n" * 999}]}, r"f: items\[0\]\.number .*found '.{1,60}$"),
        ([], "f: is wrong: .*found"),
    ],
)
def test_the_first_wrong_field_is_named_on_one_line(value, message):
    with pytest.raises(ValueError, match=message) as error:
        check_schema(value, Outer, "f")
    assert "\n" not in str(error.value)


def test_what_fits_comes_back_typed_and_other_keys_may_be_there():
    assert check_schema({"items": [{"number": 1}], "new": 3}, Outer, "f").items[0].number == 1


WRITER = """
import os, sys
from kd_search.utils.files import atomic_write
with atomic_write(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    print(flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def writer(tmp_path):
    """A process in the middle of writing ``tmp_path / "model.pth"``."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "model.pth")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def write(folder: Path) -> None:
    files._cleaned.clear()  # as a new process
    with files.atomic_write(folder / "model.pth") as file:
        file.write(b"whole")


def test_two_processes_write_to_one_path_without_harm(tmp_path, writer):
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))  # however long ago it wrote last
    write(tmp_path)
    assert (tmp_path / "model.pth").read_bytes() == b"whole"
    assert writer.communicate("")[0] == "" and writer.returncode == 0
    assert (tmp_path / "model.pth").read_bytes() == b"half"
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_what_dead_processes_left_behind_is_removed(tmp_path, writer):
    writer.kill()
    writer.wait()
    (left,) = tmp_path.iterdir()
    write(tmp_path)
    assert left.exists()  # another machine may be writing to it
    os.utime(left, (time.time() - 100,) * 2)
    write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_without_locks_left_overs_of_a_day_are_removed(tmp_path, writer, monkeypatch):
    writer.kill()
    writer.wait()
    (left,) = tmp_path.iterdir()
    monkeypatch.setattr(files, "lock_file", lambda handle: None)
    for age, stays in ((100, True), (90000, False)):
        os.utime(left, (time.time() - age,) * 2)
        write(tmp_path)
        assert left.exists() == stays


@pytest.mark.parametrize("place", ["file/table.pth", "/proc/self/table.pth", "folder"])
def test_a_file_that_cannot_be_written_is_refused_beforehand(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=f"--output .*{place} cannot be written"):
        files.check_writable(tmp_path / place, "--output")
    files.check_writable(tmp_path / "new" / "table.pth", "--output")
    assert list((tmp_path / "new").iterdir()) == []
