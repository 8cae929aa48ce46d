"""What a writer was given is found again, and nothing of what it was told to forget."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from kd_search.gallery import Gallery, GalleryError, GalleryWriter, is_gallery
from kd_search.gallery import catalogue as catalogue_module
from kd_search.gallery import segments as segments_module
from kd_search.gallery.database import NOBODY, UNREADABLE, Database
from kd_search.utils.folder_lock import FolderInUseError
from tests.gallery.gallery_inputs import (
    DIM,
    copy_of,
    embeddings,
    filled,
    manifest,
    new_file,
    people,
    sha,
)


def everything(folder):
    """Ids, paths and similarities of everybody."""
    gallery = Gallery(folder)
    query = np.eye(DIM)[0]
    return {(h.id, h.path, h.similarity) for h in gallery.search(query, 10**6, per="person")}


def bytes_of(folder) -> dict[str, bytes]:
    found = {}
    for root, _, files in os.walk(folder):
        for name in files:
            path = os.path.join(root, name)
            with open(path, "rb") as file:
                found[path] = file.read()
    return found


def test_a_reader_sees_exactly_what_was_added(tmp_path):
    filled(tmp_path / "g")
    gallery = Gallery(tmp_path / "g")
    assert len(gallery) == sum((3, 0, 1, 4)) * 5
    hit = gallery.search(embeddings(7, 4)[2], 1)[0]
    assert hit.path == "/footage/cam3/0007.jpg" and hit.box == (20, 5, 28, 30)
    assert hit.score == pytest.approx(0.7) and hit.similarity == pytest.approx(1, abs=1e-6)
    assert (hit.camera, hit.time, hit.frame, hit.width) == ("cam3", 1007.0, None, 640)
    nobody = [row for row in gallery.files if row.state == NOBODY]
    assert {row.path for row in nobody} == {f"/footage/cam1/{n:04d}.jpg" for n in range(1, 20, 4)}


def test_a_changed_file_replaces_its_people(tmp_path):
    filled(tmp_path / "g")
    with GalleryWriter(tmp_path / "g") as writer:
        before = writer.rows
        writer.add([new_file(0, 1, content=99, embeddings=embeddings(99, 1))])
        assert writer.rows == before - 2 and writer.rows_to_remove == 3
    hit = Gallery(tmp_path / "g").search(embeddings(99, 1), 1)[0]
    assert hit.path == "/footage/cam0/0000.jpg" and hit.similarity > 0.999
    assert Gallery(tmp_path / "g").search(embeddings(0, 3)[0], 1)[0].similarity < 0.999


def test_a_copy_shares_the_rows_and_keeps_them_when_the_first_goes(tmp_path):
    filled(tmp_path / "g")
    with GalleryWriter(tmp_path / "g") as writer:
        before = writer.rows
        writer.add([copy_of(0, "/other/copy.jpg", camera="cam9")])
        assert writer.rows == before
        hit = Gallery(tmp_path / "g").search(embeddings(0, 3)[1], 1)[0]
        assert hit.also == ("/other/copy.jpg",)
        writer.remove([writer.file("/footage/cam0/0000.jpg")])
        assert writer.rows == before
        writer.compact()
    hit = Gallery(tmp_path / "g").search(embeddings(0, 3)[1], 1)[0]
    assert (hit.path, hit.camera, hit.also) == ("/other/copy.jpg", "cam9", ())


def test_an_unreadable_file_has_a_state_and_no_content(tmp_path):
    with GalleryWriter(tmp_path / "g", manifest()) as writer:
        broken = {"embeddings": None, "people": None, "message": "no image"}
        writer.add([new_file(3, **broken)])
        row = writer.file("/footage/cam3/0003.jpg")
        assert (row.state, row.message) == (UNREADABLE, "no image")
        assert writer.content(sha(3)) is None


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"/footage/\xff\xfe.jpg")
    with GalleryWriter(tmp_path / "g", manifest()) as writer:
        writer.add([new_file(1, 2, path=name, camera=os.fsdecode(b"\xff"))])
    assert Gallery(tmp_path / "g").search(embeddings(1, 2), 1)[0].path == name
    with GalleryWriter(tmp_path / "g") as writer:
        assert writer.file(name).found == 2


@pytest.mark.parametrize("value", [np.nan, 2.0])
def test_embeddings_that_are_not_of_unit_length(tmp_path, value):
    with GalleryWriter(tmp_path / "g", manifest()) as writer:
        wrong = embeddings(1, 2)
        wrong[1, 0] = value
        with pytest.raises(ValueError, match="0001.jpg"):
            writer.add([new_file(0), new_file(1, 2, embeddings=wrong)])
        assert writer.rows == 0
    assert len(Gallery(tmp_path / "g")) == 0


def test_segments_are_filled_and_joined(tmp_path, monkeypatch):
    monkeypatch.setattr(segments_module, "SEGMENT_ROWS", 10)
    monkeypatch.setattr("kd_search.gallery.compaction.SEGMENT_ROWS", 10)
    filled(tmp_path / "g", range(40))
    folder = tmp_path / "g" / "generation-000001"
    assert len(list(folder.glob("rows-*.f32"))) >= 8
    before = everything(tmp_path / "g")
    with GalleryWriter(tmp_path / "g") as writer:
        writer.remove([writer.file("/footage/cam0/0004.jpg")])
        segments = {f.name: os.stat(f).st_ino for f in folder.glob("rows-*.f32")}
        assert writer.compact() == 3
        writer.add([new_file(100, 4)])
    kept = {id_ for id_ in before if "0004" not in id_[1]}
    after = everything(tmp_path / "g")
    assert {a for a in after if "0100" not in a[1]} == kept and len(after) == len(kept) + 4
    folder = tmp_path / "g" / "generation-000002"
    now = {f.name: os.stat(f).st_ino for f in folder.glob("rows-*.f32")}
    # Segments that lost nothing are the same files, and nothing was appended to them.
    assert len(now.items() & segments.items()) >= 6
    assert not (tmp_path / "g" / "generation-000001").exists()


def test_compaction_appends_nothing_to_a_segment_that_is_shared_with_the_old_generation(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(segments_module, "SEGMENT_ROWS", 10)
    monkeypatch.setattr("kd_search.gallery.compaction.SEGMENT_ROWS", 10)
    with GalleryWriter(tmp_path / "g", manifest()) as writer:
        writer.add([new_file(1, 7), new_file(2, 4)])
        writer.forget([], [(writer.file("/footage/cam2/0002.jpg"), 0)])
        writer.compact()
        shared = tmp_path / "g" / "generation-000002" / "rows-000001.f32"
        assert shared.stat().st_size == 7 * 4 * DIM
        assert writer.rows == 10


def test_nothing_of_what_was_forgotten_is_left_in_any_file(tmp_path):
    folder = tmp_path / "g"
    filled(folder)
    with GalleryWriter(folder) as writer:
        writer.add([copy_of(4, "/secret/copy-of-four.jpg")])
        assert writer.forget([sha(4)], [(writer.file("/footage/cam3/0007.jpg"), 2)]) == (2, 4)
    gone = [row.tobytes() for row in embeddings(4, 3)] + [embeddings(7, 4)[2].tobytes()]
    gone += [b"/footage/cam0/0004.jpg", b"copy-of-four"]
    contents = b"".join(bytes_of(folder).values())
    assert any(part in contents for part in gone[:4])  # tombstones alone do not remove them
    assert gone[4] not in contents and gone[5] not in contents
    with GalleryWriter(folder) as writer:
        assert writer.compact() == 4
        contents = b"".join(bytes_of(folder).values())
        assert not [part for part in gone if part in contents]
        assert embeddings(7, 4)[1].tobytes() in contents
        # What must not come back is known by its hash and box alone.
        assert writer.forgotten(sha(4)) is None
        assert writer.forgotten(sha(7)) == [(20, 5, 28, 30)] and writer.forgotten(sha(5)) == []
    ids = {h[0] for h in everything(folder) if "0007" in h[1]}
    assert ids == {"8.0", "8.1", "8.3"}


def test_forgetting_everybody_of_a_picture_keeps_its_state(tmp_path):
    filled(tmp_path / "g")
    with GalleryWriter(tmp_path / "g") as writer:
        row = writer.file("/footage/cam2/0002.jpg")
        assert writer.forget([], [(row, 0), (row, 0)]) == (0, 1)
        writer.compact()
        row = writer.file("/footage/cam2/0002.jpg")
        assert (row.found, row.count) == (1, 0)
    assert not [h for h in everything(tmp_path / "g") if "0002" in h[1]]


def test_people_who_were_forgotten_before_count_once(tmp_path):
    filled(tmp_path / "g")
    with GalleryWriter(tmp_path / "g") as writer:
        names = {n: f"/footage/cam{n % 4}/{n:04d}.jpg" for n in (0, 2, 3, 7)}
        people = [(writer.file(names[n]), person) for n, person in ((0, 2), (3, 0), (3, 3), (7, 0))]
        assert writer.forget([], people) == (0, 4)
        assert writer.forget([sha(2), sha(3)]) == (2, 1 + 2)
        assert writer.forget([sha(0), sha(1)]) == (2, 2)
        assert writer.rows == 40 - 4 - 5 and writer.rows_to_remove == 4 + 5


def test_ids_are_not_used_again(tmp_path):
    filled(tmp_path / "g")
    with GalleryWriter(tmp_path / "g") as writer:
        last = writer.file("/footage/cam3/0019.jpg")
        writer.remove([last])
        writer.compact()
    with GalleryWriter(tmp_path / "g") as writer:
        writer.add([new_file(30)])
        assert writer.file("/footage/cam2/0030.jpg").content > last.content


def test_compaction_only_where_it_is_worth_it(tmp_path):
    filled(tmp_path / "g")
    with GalleryWriter(tmp_path / "g") as writer:
        writer.remove([writer.file("/footage/cam3/0003.jpg")])
        assert writer.compact(if_worth_it=True) == 0 and writer.rows_to_remove == 4
        writer.remove([writer.file(f"/footage/cam0/{n:04d}.jpg") for n in range(0, 20, 4)])
        assert writer.compact(if_worth_it=True) == 19 and writer.rows_to_remove == 0


def test_a_reader_keeps_its_view_until_it_looks(tmp_path):
    filled(tmp_path / "g")
    reader = Gallery(tmp_path / "g")
    with GalleryWriter(tmp_path / "g") as writer:
        assert not reader.refresh()
        writer.compact()
        writer.remove([writer.file("/footage/cam0/0004.jpg")])
        # The files of the old generation are gone, but open.
        assert reader.search(embeddings(4, 3)[0], 1)[0].similarity > 0.999
        assert reader.refresh()
        assert reader.search(embeddings(4, 3)[0], 1)[0].similarity < 0.999
        writer.add([new_file(50, 2)])
        assert reader.refresh() and not reader.refresh()
        assert reader.search(embeddings(50, 2)[1], 1)[0].similarity > 0.999


def test_a_second_writer_is_refused(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from kd_search.gallery import GalleryWriter\n"
        "try: GalleryWriter(sys.argv[1])\n"
        "except ValueError as error: print(type(error).__name__, error)"
    )
    filled(tmp_path / "g")
    with GalleryWriter(tmp_path / "g"):
        command = [sys.executable, "-c", code, str(tmp_path / "g"), os.getcwd()]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith(FolderInUseError.__name__) and str(os.getpid()) in said
    assert said.count("\n") == 1


def test_what_is_no_gallery(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    assert not is_gallery(tmp_path / "photos")
    for call in (Gallery, GalleryWriter):
        with pytest.raises(GalleryError, match="photos"):
            call(tmp_path / "photos")
    with pytest.raises(GalleryError, match="not empty"):
        GalleryWriter(tmp_path / "photos", manifest())
    assert os.listdir(tmp_path / "photos") == ["a.jpg"]
    filled(tmp_path / "g")
    with GalleryWriter(tmp_path / "g", manifest()) as writer:  # one that is there is kept
        assert writer.rows == 40


def test_another_network_is_refused(tmp_path):
    with pytest.raises(GalleryError) as error:
        manifest().check_model(tmp_path, "cd" * 32, "teacher.onnx")
    assert "student.onnx" in str(error.value) and "teacher.onnx" in str(error.value)
    manifest().check_model(tmp_path, "ab" * 32, "renamed.onnx")


def test_an_edited_manifest_is_refused(tmp_path):
    filled(tmp_path / "g")
    path = tmp_path / "g" / "gallery.json"
    value = json.loads(path.read_text())
    for change in ({"generation": 3}, {"sha256": None}, {"version": 9}, {"extra": 1}):
        edited = {**value, **change}
        if edited["sha256"] is None:
            del edited["sha256"]
        path.write_text(json.dumps(edited))
        with pytest.raises(GalleryError, match="gallery.json"):
            Gallery(tmp_path / "g")
    path.write_text(json.dumps(value))
    shutil.rmtree(tmp_path / "g" / "generation-000001")
    with pytest.raises(GalleryError, match="gallery.sqlite"):
        Gallery(tmp_path / "g")


def test_rows_that_were_changed_by_hand_are_noticed(tmp_path):
    filled(tmp_path / "g")
    path = tmp_path / "g" / "generation-000001" / "gallery.sqlite"
    for change in (
        "UPDATE files SET camera = 'cam1' WHERE id = 3",
        "DELETE FROM files WHERE id = 4",
        "INSERT INTO do_not_index VALUES ('ab', 0, 0, 1, 1, 5)",
        "UPDATE state SET next_id = 3",
    ):
        shutil.copytree(tmp_path / "g", tmp_path / "copy")
        connection = sqlite3.connect(str(path).replace("/g/", "/copy/"))
        connection.execute(change)
        connection.commit()
        connection.close()
        for call in (Gallery, GalleryWriter):
            with pytest.raises(GalleryError, match="gallery.sqlite"):
                call(tmp_path / "copy")
        shutil.rmtree(tmp_path / "copy")


def test_the_number_of_people_must_fit(tmp_path):
    with GalleryWriter(tmp_path / "g", manifest()) as writer:
        with pytest.raises(ValueError, match="0001.jpg"):
            writer.add([new_file(1, 2, people=people(3))])


def test_a_search_while_files_are_removed_sees_the_rest(tmp_path):
    filled(tmp_path / "g")
    reader = Gallery(tmp_path / "g")
    with GalleryWriter(tmp_path / "g") as writer:
        writer.forget([sha(4)])
        assert reader.search(embeddings(4, 3)[0], 1)[0].similarity < 0.999
        assert not reader.refresh()


def test_the_catalogue_gives_the_same_answers_and_is_one_of_the_database_as_it_is(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(catalogue_module, "_WORTH_IT", 5)
    folder = tmp_path / "g"
    filled(folder)
    with GalleryWriter(folder) as writer:
        writer.add([copy_of(4, os.fsdecode(b"/other/\xff.jpg"), camera=os.fsdecode(b"\xfe"))])
        writer.forget([], [(writer.file("/footage/cam3/0007.jpg"), 2)])
    cache = folder / "generation-000001" / "catalogue.cache"
    content, found = cache.read_bytes(), everything(folder)
    cameras = Gallery(folder).cameras
    loads = []
    load = Database.load
    monkeypatch.setattr(Database, "load", lambda self: loads.append(1) or load(self))
    assert everything(folder) == found and loads == []
    cache.unlink()
    assert everything(folder) == found and loads == [1]
    assert Gallery(folder).cameras == cameras and os.fsdecode(b"\xfe") in cameras
    # Damaged, cut off, or of an earlier state, it is not used.
    for harmed in (content[:-1], content[:200] + b"?" + content[201:], b"", b"kd_search catalogue"):
        cache.write_bytes(harmed)
        del loads[:]
        assert everything(folder) == found and loads == [1]
    with GalleryWriter(folder) as writer:
        writer.remove([writer.file("/footage/cam0/0000.jpg")])
        cache.write_bytes(content)
        assert not {hit for hit in everything(folder) if "0000.jpg" in hit[1]}
    assert everything(folder) < found


def test_the_catalogue_holds_nothing_of_what_was_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue_module, "_WORTH_IT", 5)
    filled(tmp_path / "g")
    with GalleryWriter(tmp_path / "g") as writer:
        writer.add([new_file(30, path="/hidden/place/30.jpg", camera="secret camera")])
    assert b"secret camera" in b"".join(bytes_of(tmp_path / "g").values())
    with GalleryWriter(tmp_path / "g") as writer:
        writer.forget([sha(30)])
        writer.compact()
    contents = b"".join(bytes_of(tmp_path / "g").values())
    assert (tmp_path / "g" / "generation-000002" / "catalogue.cache").exists()
    assert b"secret camera" not in contents and b"/hidden/place" not in contents


def test_what_must_be_gone_is_removed_by_a_later_run_if_the_first_was_interrupted(tmp_path):
    filled(tmp_path / "g")
    with GalleryWriter(tmp_path / "g") as writer:
        writer.remove([writer.file("/footage/cam3/0003.jpg")])
        assert writer.compact(if_worth_it=True) == 0
        writer.forget([sha(4)])  # and here it is killed
    assert embeddings(4, 3)[0].tobytes() in b"".join(bytes_of(tmp_path / "g").values())
    with GalleryWriter(tmp_path / "g") as writer:
        writer.add([new_file(30)])
    with GalleryWriter(tmp_path / "g") as writer:
        assert writer.compact(if_worth_it=True) == 7
        assert writer.compact(if_worth_it=True) == 0
    assert embeddings(4, 3)[0].tobytes() not in b"".join(bytes_of(tmp_path / "g").values())


def test_a_full_segment_with_a_removed_person_is_rewritten(tmp_path, monkeypatch):
    monkeypatch.setattr("kd_search.gallery.compaction.SEGMENT_ROWS", 10)
    with GalleryWriter(tmp_path / "g", manifest()) as writer:
        writer.add([new_file(1, 7)])
        writer.forget([], [(writer.file("/footage/cam1/0001.jpg"), 3)])
        assert writer.compact() == 1 and writer.rows == 6
    contents = b"".join(bytes_of(tmp_path / "g").values())
    gone, kept = embeddings(1, 7)[3], embeddings(1, 7)[4]
    assert gone.tobytes() not in contents and kept.tobytes() in contents
