"""Indexing touches what is new, keeps a state for each file, and goes on after anything."""

import io
import os
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from kd_search.gallery import Filter, Gallery, GalleryError, GalleryWriter
from kd_search.gallery.capture import Capture, CaptureRules, parse_time, wall_clock
from kd_search.gallery.database import INDEXED, NOBODY, UNREADABLE
from kd_search.gallery.indexing import Indexer, Settings
from tests.gallery.fake_searcher import FakeSearcher, colour_of, embedding_of, picture, save
from tests.gallery.gallery_inputs import manifest


@pytest.fixture
def footage(tmp_path):
    """Folders of two cameras, one with an empty picture, one with a broken file."""
    for i in range(4):
        save(tmp_path / "f" / "cam1" / f"2026110{i + 1}_120000.png", range(i))
    save(tmp_path / "f" / "cam2" / "a.png", (7, 8, 9, 10, 11))
    (tmp_path / "f" / "cam2" / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "f" / "cam2" / "notes.txt").write_text("no picture")
    save(tmp_path / "f" / ".hidden" / "b.png", (1,))
    return tmp_path / "f"


PATTERN = r"/(?P<camera>cam\d)/((?P<time>\d{8}_\d{6})\.|)"


def index(folder, *sources, searcher=None, rules=None, **settings):
    """Run once; returns the report and the number of pictures that the network has seen."""
    searcher = searcher or FakeSearcher()
    before = searcher.seen
    with GalleryWriter(folder, manifest()) as writer:
        capture = Capture(rules or CaptureRules())
        report = Indexer(writer, searcher, capture, Settings(**settings)).run(
            [str(source) for source in sources]
        )
    return report, searcher.seen - before


def rows(folder) -> dict:
    return {os.path.basename(row.path): row for row in Gallery(folder).files}


def test_first_and_second_run(tmp_path, footage):
    report, seen = index(tmp_path / "g", footage, rules=CaptureRules(PATTERN))
    assert (report.files, seen, report.people) == (6, 5, 3 + 2 + 1 + 4)
    assert (report.with_people, report.nobody) == (4, 1)
    assert len(report.problems) == 1 and "broken.jpg" in report.problems[0]
    states = {
        name: (row.state, row.found, row.camera) for name, row in rows(tmp_path / "g").items()
    }
    assert states == {
        "20261101_120000.png": (NOBODY, 0, "cam1"),
        "20261102_120000.png": (INDEXED, 1, "cam1"),
        "20261103_120000.png": (INDEXED, 2, "cam1"),
        "20261104_120000.png": (INDEXED, 3, "cam1"),
        "a.png": (INDEXED, 4, "cam2"),
        "broken.jpg": (UNREADABLE, 0, "cam2"),
    }
    report, seen = index(tmp_path / "g", footage, rules=CaptureRules(PATTERN))
    assert seen == 0 and report.people == 0


def test_people_are_found_where_they_are(tmp_path, footage):
    index(tmp_path / "g", footage, rules=CaptureRules(PATTERN))
    gallery = Gallery(tmp_path / "g")
    hit = gallery.search(embedding_of(colour_of(9)), 1)[0]
    assert (os.path.basename(hit.path), hit.box) == ("a.png", (40, 0, 60, 20))
    assert (hit.width, hit.height, hit.camera, hit.time) == (100, 40, "cam2", None)
    assert hit.similarity > 0.999 and hit.score == pytest.approx(0.9)
    hits = gallery.search(embedding_of(colour_of(2)), 9, Filter(start=parse_time("2026-11-04")))
    assert [os.path.basename(h.path) for h in hits] == ["20261104_120000.png"]
    # Below the network's threshold for searches.
    assert gallery.search(embedding_of(colour_of(11)), 1)[0].similarity < 0.99


def test_only_what_changed_is_read_again(tmp_path, footage):
    index(tmp_path / "g", footage)
    save(footage / "cam2" / "a.png", (20,))
    save(footage / "cam2" / "new.png", (21, 22))
    os.utime(footage / "cam1" / "20261104_120000.png", ns=(5, 5))
    report, seen = index(tmp_path / "g", footage)
    assert (report.unchanged, report.with_people, report.copies, seen) == (4, 2, 1, 2)
    gallery = Gallery(tmp_path / "g")
    assert gallery.search(embedding_of(colour_of(8)), 1)[0].similarity < 0.999
    assert gallery.search(embedding_of(colour_of(20)), 1)[0].similarity > 0.999
    assert rows(tmp_path / "g")["20261104_120000.png"].mtime_ns == 5


def test_copies_and_renamed_files_are_known_by_their_content(tmp_path, footage):
    index(tmp_path / "g", footage)
    people = len(Gallery(tmp_path / "g"))
    shutil.copy(footage / "cam2" / "a.png", footage / "cam1" / "copy.png")
    os.rename(footage / "cam1" / "20261103_120000.png", footage / "cam1" / "renamed.png")
    report, seen = index(tmp_path / "g", footage, remove_missing=True)
    assert (report.copies, report.removed, seen) == (2, 1, 0)
    gallery = Gallery(tmp_path / "g")
    assert len(gallery) == people
    hit = gallery.search(embedding_of(colour_of(8)), 1)[0]
    assert {os.path.basename(name) for name in (hit.path, *hit.also)} == {"a.png", "copy.png"}
    assert "renamed.png" in rows(tmp_path / "g") and "20261103_120000.png" not in rows(
        tmp_path / "g"
    )


def test_two_new_files_with_the_same_content(tmp_path):
    for name in ("a", "b", "c"):
        save(tmp_path / "f" / f"{name}.png", (1, 2))
    report, seen = index(tmp_path / "g", tmp_path / "f")
    assert (seen, report.with_people, report.copies) == (1, 1, 2)
    assert len(Gallery(tmp_path / "g")) == 2


def test_names_that_were_swapped(tmp_path):
    for name, person in (("a", 1), ("b", 2), ("c", 3)):
        save(tmp_path / "f" / f"{name}.png", (person,))
    index(tmp_path / "g", tmp_path / "f")
    os.rename(tmp_path / "f" / "a.png", tmp_path / "f" / "d.png")
    save(tmp_path / "f" / "a.png", (4,))
    report, _ = index(tmp_path / "g", tmp_path / "f")
    assert report.problems == []
    gallery = Gallery(tmp_path / "g")
    for name, person in (("a", 4), ("b", 2), ("c", 3), ("d", 1)):
        hit = gallery.search(embedding_of(colour_of(person)), 1)[0]
        assert os.path.basename(hit.path) == f"{name}.png" and hit.similarity > 0.999


def test_missing_files_stay_until_asked_for(tmp_path, footage):
    index(tmp_path / "g", footage)
    (footage / "cam2" / "a.png").unlink()
    report, _ = index(tmp_path / "g", footage / "cam1")  # another folder does not count
    assert report.missing == 0
    report, _ = index(tmp_path / "g", footage)
    assert (report.missing, report.removed) == (1, 0) and "a.png" in rows(tmp_path / "g")
    report, _ = index(tmp_path / "g", footage, remove_missing=True)
    assert report.removed == 1 and "a.png" not in rows(tmp_path / "g")


def test_a_run_that_was_interrupted_goes_on(tmp_path):
    for i in range(12):
        save(tmp_path / "f" / f"{i:02}.png", (i,))

    class Interrupted(FakeSearcher):
        def detect(self, rgb):
            if self.seen == 7:
                raise KeyboardInterrupt
            return super().detect(rgb)

    with pytest.raises(KeyboardInterrupt):
        index(tmp_path / "g", tmp_path / "f", searcher=Interrupted())
    assert len(Gallery(tmp_path / "g")) == 7
    report, seen = index(tmp_path / "g", tmp_path / "f")
    assert (report.unchanged, seen) == (7, 5) and len(Gallery(tmp_path / "g")) == 12


def test_rules_that_change_apply_to_what_is_there(tmp_path, footage):
    index(tmp_path / "g", footage)
    assert Gallery(tmp_path / "g").cameras == []
    report, seen = index(tmp_path / "g", footage, rules=CaptureRules(PATTERN))
    assert seen == 0 and report.copies == 5
    assert Gallery(tmp_path / "g").cameras == ["cam1", "cam2"]
    table = tmp_path / "times.csv"
    table.write_text("path,camera,time\nf/cam2/a.png,door,2026-11-05 10:00\n")
    rules = CaptureRules(PATTERN, table=str(table))
    index(tmp_path / "g", footage, rules=rules)
    row = rows(tmp_path / "g")["a.png"]
    assert (row.camera, row.time) == ("door", parse_time("2026-11-05T10:00:00"))
    table.write_text("path,camera,time\nf/cam2/a.png,gate,2026-11-05 10:00\n")
    report, _ = index(tmp_path / "g", footage, rules=rules)
    assert rows(tmp_path / "g")["a.png"].camera == "gate" and report.unchanged == 0
    report, _ = index(tmp_path / "g", footage, rules=rules)
    assert report.unchanged == 6


def test_what_must_not_be_indexed_does_not_come_back(tmp_path, footage):
    index(tmp_path / "g", footage)
    row = rows(tmp_path / "g")["a.png"]
    other = rows(tmp_path / "g")["20261104_120000.png"]
    with GalleryWriter(tmp_path / "g") as writer:
        writer.forget([row.sha256], [(other, 1)])
        writer.compact()
    shutil.copy(footage / "cam2" / "a.png", footage / "again.png")
    report, seen = index(tmp_path / "g", footage)
    assert (report.do_not_index, seen) == (2, 0)
    # The picture with the forgotten person is read anew, and the person is left out.
    with GalleryWriter(tmp_path / "g") as writer:
        writer.remove([writer.file(other.path)])
    report, seen = index(tmp_path / "g", footage)
    assert (seen, report.do_not_index_people, report.people) == (1, 1, 2)
    gallery = Gallery(tmp_path / "g")
    hits = gallery.search(embedding_of(colour_of(1)), 9, per="person")
    assert [h.path for h in hits if h.similarity > 0.999] == [
        str(footage / "cam1" / "20261103_120000.png")
    ]


def test_retention(tmp_path, monkeypatch):
    now = parse_time("2026-11-10")
    monkeypatch.setattr("kd_search.gallery.indexing.wall_clock", lambda unix: now)
    for day in (1, 5, 9):
        save(tmp_path / "f" / f"2026110{day}_000000.png", (day,))
    rules = CaptureRules(r"/(?P<time>\d{8}_\d{6})\.")
    report, _ = index(tmp_path / "g", tmp_path / "f", rules=rules, retention_days=6)
    assert (report.too_old, report.with_people) == (1, 2)
    report, _ = index(tmp_path / "g", tmp_path / "f", rules=rules, retention_days=3)
    assert (report.expired, report.too_old) == (1, 2)
    assert list(rows(tmp_path / "g")) == ["20261109_000000.png"]
    contents = b"".join(p.read_bytes() for p in (tmp_path / "g").rglob("*") if p.is_file())
    assert embedding_of(colour_of(5)).tobytes() not in contents
    assert embedding_of(colour_of(9)).tobytes() in contents


def test_a_clock_that_goes_back_removes_nothing(tmp_path, monkeypatch):
    save(tmp_path / "f" / "a.png", (1,))
    index(tmp_path / "g", tmp_path / "f")
    os.utime(tmp_path / "f" / "a.png", (1, 1))
    clock = time.time() - 3600
    monkeypatch.setattr("kd_search.gallery.indexing.time.time", lambda: clock)
    report, _ = index(tmp_path / "g", tmp_path / "f", retention_days=1)
    assert report.expired == 0 and any("clock" in line for line in report.problems)
    assert len(Gallery(tmp_path / "g")) == 1


def test_limits_come_before_reading_and_decoding(tmp_path, monkeypatch):
    Image.new("1", (3000, 3000)).save(tmp_path / "f.png")
    (tmp_path / "big.png").write_bytes(bytes(10**6))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    report, seen = index(
        tmp_path / "g", tmp_path / "f.png", tmp_path / "big.png", max_pixels=10**6, max_bytes=10**5
    )
    assert seen == 0 and len(report.problems) == 2
    assert "--max-pixels" in "".join(report.problems) and "--max-bytes" in "".join(report.problems)
    monkeypatch.undo()
    report, seen = index(tmp_path / "g", tmp_path / "f.png", retry=True, max_pixels=10**7)
    assert seen == 1 and report.problems == []


def test_a_file_that_is_being_written(tmp_path, monkeypatch):
    path = save(tmp_path / "f" / "a.png", (1,))

    class Growing(io.FileIO):
        def read(self, size):
            data = super().read(size)
            with open(path, "ab") as other:
                other.write(b"more")
            return data

    monkeypatch.setattr(
        "kd_search.gallery.footage.open", lambda name, mode: Growing(name), raising=False
    )
    report, seen = index(tmp_path / "g", tmp_path / "f")
    assert seen == 0 and "a.png" in report.problems[0]
    monkeypatch.undo()
    assert index(tmp_path / "g", tmp_path / "f")[1] == 1 and os.path.exists(path)


def test_files_that_vanish_and_folders_that_cannot_be_read(tmp_path, footage, monkeypatch):
    real = os.stat

    def gone(path, **options):
        if str(path).endswith("a.png"):
            raise FileNotFoundError(2, "gone")
        return real(path, **options)

    monkeypatch.setattr("kd_search.gallery.footage.os.stat", gone)
    report, _ = index(tmp_path / "g", footage)
    assert report.files == 5 and any("a.png" in line for line in report.problems)
    monkeypatch.undo()
    assert index(tmp_path / "g", footage)[1] == 1


def test_sources(tmp_path, footage):
    with pytest.raises(GalleryError, match="nowhere"):
        index(tmp_path / "g", footage, tmp_path / "nowhere")
    # A gallery inside of a folder is none of its pictures; a folder given twice counts once.
    save(tmp_path / "f" / "g" / "x.png", (1,))
    shutil.rmtree(tmp_path / "f" / "g")
    report, _ = index(tmp_path / "f" / "g", footage, footage / "cam1", footage / "cam2" / "a.png")
    assert report.files == 6
    save(tmp_path / "f" / "g" / "x.png", (1,))
    assert index(tmp_path / "f" / "g", footage)[0].files == 6


def test_pictures_are_upright(tmp_path):
    (tmp_path / "f").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0x9003] = "2026:11:05 08:09:10"
    turned = np.rot90(picture((3, 4)), 1)
    Image.fromarray(turned).save(tmp_path / "f" / "a.png", exif=exif)
    index(tmp_path / "g", tmp_path / "f")
    hit = Gallery(tmp_path / "g").search(embedding_of(colour_of(4)), 1)[0]
    assert hit.box == (20, 0, 40, 20) and (hit.width, hit.height) == (100, 40)
    assert hit.time == parse_time("2026-11-05 08:09:10")


@pytest.mark.parametrize(
    ("rules", "path", "camera", "moment"),
    [
        (CaptureRules(r"(?P<camera>[^/]+)/[^/]+$"), "/x/door/1.jpg", "door", None),
        (CaptureRules(r"_(?P<time>\d+)"), "/x_20261103140509.jpg", None, "2026-11-03T14:05:09"),
        (CaptureRules(r"_(?P<time>\w+)", "%d%b%Y"), "/x_03Nov2026.jpg", None, "2026-11-03"),
        (
            CaptureRules(r"(?P<year>\d{4})/(?P<month>\d\d)/(?P<day>\d\d)/(?P<hour>\d\d)"),
            "/2026/11/03/14/a.jpg",
            None,
            "2026-11-03 14:00",
        ),
        (CaptureRules(r"(?P<camera>z)/"), "/x/1.jpg", None, None),
        (CaptureRules(), "/x/1.jpg", None, None),
    ],
)
def test_rules(rules, path, camera, moment):
    expected = (camera, None if moment is None else parse_time(moment))
    assert Capture(rules)(path) == expected


def test_unix_times_are_shown_by_the_clock_of_the_machine(monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        found = Capture(CaptureRules(r"-(?P<unix>[\d.]+)\.jpg"))("/cam-1761523200.5.jpg")
        # A day after the end of summer time, of which the clock's hour is one ahead of UTC.
        assert found[1] == parse_time("2025-10-27 01:00:00.5") == wall_clock(1761523200.5)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    "rules",
    [
        CaptureRules("(?P<camera>"),
        CaptureRules("(cam)"),
        CaptureRules("(?P<kamera>cam)"),
        CaptureRules(table="missing.csv"),
    ],
)
def test_wrong_rules(rules):
    with pytest.raises(GalleryError, match="path-pattern|missing.csv"):
        Capture(rules)


@pytest.mark.parametrize(
    "text",
    [
        "camera,time\na,b\n",
        "path\na\n",
        "path,camera,time\nx.jpg,cam\n",
        "path,time\nx.jpg,yesterday\n",
        "path,time\nx.jpg,2026-11-03T14:00:00+01:00\n",
    ],
)
def test_wrong_tables(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(GalleryError, match="t.csv"):
        Capture(CaptureRules(table=str(tmp_path / "t.csv")))


def test_a_path_without_a_valid_time_is_a_problem_of_that_file_alone(tmp_path):
    save(tmp_path / "f" / "20269999_000000.png", (1,))
    save(tmp_path / "f" / "20261101_000000.png", (2,))
    report, seen = index(
        tmp_path / "g", tmp_path / "f", rules=CaptureRules(r"/(?P<time>\d{8}_\d{6})\.")
    )
    assert seen == 1 and "20269999" in report.problems[0]


@pytest.mark.parametrize(
    ("text", "end", "expected"),
    [
        ("2026-11-03", False, "2026-11-03 00:00:00"),
        ("2026-11-03 14:05", False, "20261103_140500"),
        ("2026-11-03T14:05:09.25", True, "2026-11-03T14:05:09.25"),
        ("20261103-140509", False, "2026:11:03 14:05:09"),
    ],
)
def test_written_times(text, end, expected):
    assert parse_time(text, end=end) == parse_time(expected)


def test_the_end_of_a_day_and_of_a_minute():
    assert parse_time("2026-11-03", end=True) == parse_time("2026-11-04") - 1e-6
    assert parse_time("2026-11-03 10:00", end=True) == parse_time("2026-11-03 10:01") - 1e-6


@pytest.mark.parametrize("text", ["", "now", "2026-13-01", "2026-11-03T14:00Z", "20261103.5"])
def test_what_is_no_time(text):
    with pytest.raises(ValueError):
        parse_time(text)
