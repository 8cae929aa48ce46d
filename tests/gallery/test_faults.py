"""Damage and full disks: nothing acknowledged is lost, and nothing wrong is returned."""

import os
import random
import resource
import subprocess
import sys

import numpy as np
import pytest

from kd_search.gallery import Gallery, GalleryError, GalleryWriter
from tests.gallery.gallery_inputs import DIM, copy_of, filled, new_file, sha

#: More of them with GALLERY_FAULTS=50 in the environment.
TIMES = int(os.environ.get("GALLERY_FAULTS", "3"))


def names(gallery) -> set[str]:
    return {row.path for row in Gallery(gallery).files}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A gallery with every kind of row, what it answers, and its files."""
    monkeypatch.setattr("kd_search.gallery.catalogue._WORTH_IT", 5)
    folder = tmp_path / "g"
    filled(folder, range(12), per_commit=4)
    with GalleryWriter(folder) as writer:
        writer.add([copy_of(4, "/other/copy.jpg", camera="cam9")])
        writer.forget([sha(8)], [(writer.file("/footage/cam3/0003.jpg"), 2)])
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    suffixes = {".json", ".sqlite", ".f32", ".bin", ".cache"}
    assert {path.suffix for path in files} == suffixes
    return folder, answers(folder), files


def answers(folder):
    """All that a reader and a writer know."""
    reader = Gallery(folder)
    hits = [reader.search(row, 50, per="person") for row in np.eye(DIM)[:2]]
    with GalleryWriter(folder) as writer:
        forgotten = writer.forgotten(sha(8)), writer.forgotten(sha(3))
        return reader.files, hits, forgotten, writer.rows, reader.manifest


def harmed(folder, truth) -> bool:
    """Whether damage was noticed, with one line that names a file of the gallery; asserts that
    nothing wrong is known otherwise."""
    try:
        assert answers(folder) == truth
        with GalleryWriter(folder) as writer:
            writer.compact()
        found = answers(folder)
        assert found[1] == truth[1] and found[2:4] == truth[2:4]
    except GalleryError as error:
        assert str(folder) in str(error) and "\n" not in str(error)
        return True
    return False


def restore(folder, contents) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()
    for path, content in contents.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_damaged_files(small, damage):
    folder, truth, files = small
    contents = {path: path.read_bytes() for path in files}
    rng = random.Random(5)
    noticed = 0
    for index in range(4 * max(TIMES, 5)):
        path = files[index % len(files)]
        content = bytearray(contents[path])
        place = rng.randrange(len(content))
        if damage == "flip":
            content[place] ^= 1 << rng.randrange(8)
        path.write_bytes(content if damage == "flip" else content[:place])
        found = harmed(folder, truth)
        noticed += found
        if path.suffix == ".cache":
            assert not found, place
        elif path.suffix in (".f32", ".bin", ".json") or damage == "cut":
            assert found, (path, place)
        restore(folder, contents)
    # A damaged cache is not used, and SQLite has unused bytes.
    assert noticed >= 2 * max(TIMES, 5)
    assert answers(folder) == truth


def test_a_file_that_lost_its_last_byte(small):
    folder, truth, files = small
    contents = {path: path.read_bytes() for path in files}
    for path in files:
        path.write_bytes(contents[path][:-1])
        assert harmed(folder, truth) != (path.suffix == ".cache")
        restore(folder, contents)


@pytest.mark.parametrize("name", ["rows-000001.f32", "people-000001.bin", "gallery.sqlite"])
def test_missing_files(small, name):
    folder, _, _ = small
    (folder / "generation-000001" / name).unlink()
    for call in (Gallery, GalleryWriter):
        with pytest.raises(GalleryError, match=name):
            call(folder)


def test_rows_that_were_never_acknowledged_are_cut_off(small):
    folder, truth, files = small
    appended = {path: path.stat().st_size for path in files if path.suffix in (".f32", ".bin")}
    for path in appended:
        with open(path, "ab") as file:
            file.write(b"more than was acknowledged")
    (folder / "generation-000001" / "rows-000002.f32").write_bytes(b"a segment of no commit")
    (folder / "generation-000002").mkdir()
    assert answers(folder) == truth
    assert {path: path.stat().st_size for path in appended} == appended
    assert not (folder / "generation-000001" / "rows-000002.f32").exists()
    assert not (folder / "generation-000002").exists()


FULL = """
import resource, signal, sys
sys.path.insert(0, sys.argv[1])
from kd_search.gallery import GalleryWriter, GalleryError
from tests.gallery.gallery_inputs import embeddings, manifest, new_file, people
with GalleryWriter(sys.argv[2], manifest()) as writer:
    writer.add([new_file(1)])
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
    number = 10
    while number < 10000:
        try:
            if sys.argv[3] == "rows":
                many = {"people": people(100), "embeddings": embeddings(1, 100)}
                writer.add([new_file(number, 100, **many)])
            else:
                writer.add([new_file(n, 0) for n in range(number, number + 50)])
        except GalleryError as error:
            print("refused", error)
            break
        print(number)
        number += 50
"""


@pytest.mark.parametrize("what", ["rows", "database"])
def test_a_full_disk(tmp_path, what):
    command = [sys.executable, "-c", FULL, os.getcwd(), str(tmp_path / "g"), what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *acknowledged, refused = done.stdout.splitlines()
    assert refused.startswith("refused") and str(tmp_path / "g") in refused
    assert "free space" in refused and len(acknowledged) > 2
    paths = {os.path.basename(name) for name in names(tmp_path / "g")}
    many = 1 if what == "rows" else 50
    assert len(paths) == 1 + many * len(acknowledged)
    assert all(f"{int(number):04d}.jpg" in paths for number in acknowledged)
    with GalleryWriter(tmp_path / "g") as writer:
        writer.add([new_file(20000)])
    assert len(Gallery(tmp_path / "g")) == 6 + (100 * len(acknowledged) if what == "rows" else 0)


def test_a_full_disk_while_compacting(small):
    folder, truth, _ = small
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with GalleryWriter(folder) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
        try:
            with pytest.raises(GalleryError, match="free space"):
                writer.compact()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert answers(folder) == truth
    assert [p.name for p in folder.glob("generation-*")] == ["generation-000001"]
