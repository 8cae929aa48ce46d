"""Videos: detections linked to tracklets, frames that can be read back, files that are none."""

import os
from fractions import Fraction

import numpy as np
import pytest

from kd_search.gallery import Filter, Gallery, GalleryWriter
from kd_search.gallery.capture import Capture, CaptureRules, wall_clock
from kd_search.gallery.indexing import Indexer, Settings
from kd_search.gallery.tracklets import Tracklets
from tests.gallery.fake_searcher import FakeSearcher, colour_of, embedding_of, picture
from tests.gallery.gallery_inputs import DIM, manifest


def unit(*values):
    row = np.zeros(DIM)
    row[: len(values)] = values
    return row / np.linalg.norm(row)


def link(*frames):
    """Tracklets of (second, [(box, score, embedding), ...]) frames."""
    tracklets = Tracklets()
    for number, (second, people) in enumerate(frames):
        boxes, scores, embeddings = zip(*people) if people else ((), (), ())
        boxes = np.array(boxes, np.float32).reshape(-1, 4)
        tracklets.add(number, second, boxes, np.array(scores), np.array(embeddings))
    return tracklets.rows(DIM)


A, B = unit(1), unit(0, 1)
BOX, MOVED, AWAY = (0, 0, 20, 40), (5, 0, 25, 40), (100, 0, 120, 40)


def test_a_person_over_several_frames_is_one_row():
    other = unit(1, 0.5)
    embeddings, people = link(
        (0.0, [(BOX, 0.6, A)]), (0.5, [(MOVED, 0.9, other)]), (1.0, [(MOVED, 0.7, A)])
    )
    np.testing.assert_allclose(embeddings, [unit(*(2 * A + other))], atol=1e-6)
    (row,) = people
    assert (row["frame"], row["second"], row["frames"]) == (1, 0.5, 3)
    assert (row["first"], row["last"]) == (0, 1) and tuple(row["box"]) == MOVED
    assert row["score"] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("box", "embedding", "second"),
    [(AWAY, A, 0.5), (MOVED, B, 0.5), (MOVED, A, 2.6)],
    ids=["another place", "another look", "after a while"],
)
def test_who_is_another_person(box, embedding, second):
    _, people = link((0.0, [(BOX, 0.6, A)]), (second, [(box, 0.9, embedding)]))
    assert [row["frames"] for row in people] == [1, 1]
    assert list(people["person"]) == [0, 1]


def test_somebody_who_is_hidden_for_a_frame_is_the_same():
    _, people = link((0.0, [(BOX, 0.6, A)]), (0.5, []), (1.0, [(MOVED, 0.9, A)]))
    assert [row["frames"] for row in people] == [2]


def test_people_who_pass_each_other_keep_their_looks():
    frames = [
        (0.5 * i, [((4 * i, 0, 4 * i + 20, 40), 0.8, A), ((24 - 4 * i, 0, 44 - 4 * i, 40), 0.8, B)])
        for i in range(7)
    ]
    embeddings, people = link(*frames)
    np.testing.assert_allclose(embeddings, [A, B], atol=1e-6)
    assert [row["frames"] for row in people] == [7, 7]


def test_one_detection_continues_one_tracklet():
    near = unit(1, 0.1)
    _, people = link((0.0, [(BOX, 0.6, A), (MOVED, 0.6, near)]), (0.5, [(BOX, 0.9, A)]))
    assert sorted(row["frames"] for row in people) == [1, 2]


# -- files ---------------------------------------------------------------------------------------


def write(path, frames, rate=10, **metadata):
    """A video without loss; each frame lists its people."""
    av = pytest.importorskip("av", reason="videos need PyAV")
    with av.open(str(path), "w") as container:
        container.metadata.update(metadata)
        stream = container.add_stream("ffv1", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 100, 40, "bgr0"
        stream.time_base = Fraction(1, rate)
        for persons in frames:
            frame = av.VideoFrame.from_ndarray(picture(persons), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def index(folder, *sources, searcher=None, rules=None, **settings):
    searcher = searcher or FakeSearcher()
    with GalleryWriter(folder, manifest()) as writer:
        capture = Capture(rules or CaptureRules())
        indexer = Indexer(writer, searcher, capture, Settings(**settings))
        return indexer.run([str(source) for source in sources]), searcher.seen


FRAMES = [(1,)] * 20 + [(1, 2)] * 10 + [()] * 30 + [(3,)] * 5


@pytest.fixture
def video(tmp_path):
    (tmp_path / "f" / "door").mkdir(parents=True)
    return write(tmp_path / "f" / "door" / "20261103_140000.mkv", FRAMES)


RULES = CaptureRules(r"/(?P<camera>\w+)/(?P<time>\d{8}_\d{6})\.")


def test_a_video_is_indexed_once_and_its_frames_can_be_read(tmp_path, video):
    from kd_search.gallery.video import read_frame

    report, seen = index(tmp_path / "g", tmp_path / "f", rules=RULES)
    assert (report.problems, report.with_people, report.people) == ([], 1, 3)
    assert seen == 13  # of 65 frames, every half second
    gallery = Gallery(tmp_path / "g")
    hits = {p: gallery.search(embedding_of(colour_of(p)), 1)[0] for p in (1, 2, 3)}
    assert all(hit.similarity > 0.999 for hit in hits.values())
    assert (hits[1].first, hits[1].last, hits[2].first) == (0.0, 2.5, 2.0)
    assert hits[3].time - hits[1].time == pytest.approx(hits[3].second)
    assert hits[2].camera == "door" and (hits[2].width, hits[2].height) == (100, 40)
    for person, hit in hits.items():
        pixels = read_frame(hit.path, hit.second, 10**6)
        x0, y0, *_ = map(int, hit.box)
        assert tuple(pixels[y0, x0]) == colour_of(person)
    start = hits[1].time - hits[1].second
    later = gallery.search(embedding_of(colour_of(1)), 9, Filter(start=start + 5))
    assert [hit.id for hit in later] == [hits[3].id]
    report, seen = index(tmp_path / "g", tmp_path / "f", rules=RULES)
    assert (report.unchanged, seen) == (1, 0)
    os.rename(video, video.with_name("20261103_150000.mkv"))
    report, seen = index(tmp_path / "g", tmp_path / "f", rules=RULES, remove_missing=True)
    assert (report.copies, report.removed, seen) == (1, 1, 0)


@pytest.mark.parametrize("step", [0.1, 1.0, 100.0])
def test_the_step_between_frames(tmp_path, video, step):
    _, seen = index(tmp_path / "g", video, frame_step=step)
    assert seen == {0.1: 65, 1.0: 7, 100.0: 1}[step]


def test_the_time_of_the_container(tmp_path):
    path = write(tmp_path / "a.mkv", [(1,)] * 3, creation_time="2026-11-03T14:00:00.000000Z")
    index(tmp_path / "g", path)
    hit = Gallery(tmp_path / "g").search(embedding_of(colour_of(1)), 1)[0]
    assert hit.time == wall_clock(1793714400)


def test_a_cut_video_is_indexed_as_far_as_it_goes(tmp_path, video):
    content = video.read_bytes()
    video.write_bytes(content[: len(content) // 2])
    report, _ = index(tmp_path / "g", video)
    assert report.with_people == 1 and report.people >= 1
    hit = Gallery(tmp_path / "g").search(embedding_of(colour_of(1)), 1)[0]
    assert hit.similarity > 0.999


@pytest.mark.parametrize(
    "content",
    [b"", b"no video", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"],
    ids=["empty", "text", "playlist"],
)
def test_what_is_no_video(tmp_path, content):
    pytest.importorskip("av", reason="videos need PyAV")
    (tmp_path / "a.mp4").write_bytes(content)
    report, seen = index(tmp_path / "g", tmp_path)
    assert seen == 0 and "a.mp4" in report.problems[0] and "\n" not in report.problems[0]
    assert index(tmp_path / "g", tmp_path)[0].unchanged == 1


def test_large_frames_are_refused_before_decoding(tmp_path, video):
    report, seen = index(tmp_path / "g", video, max_pixels=100)
    assert seen == 0 and "--max-pixels" in report.problems[0]


def test_forgetting_somebody_in_a_video(tmp_path, video):
    index(tmp_path / "g", video)
    gallery = Gallery(tmp_path / "g")
    hit = gallery.search(embedding_of(colour_of(2)), 1)[0]
    with GalleryWriter(tmp_path / "g") as writer:
        row = writer.file(hit.path)
        writer.forget([], [(row, int(hit.id.split(".")[1]))])
        writer.compact()
    gallery.refresh()
    assert gallery.search(embedding_of(colour_of(2)), 1)[0].similarity < 0.999
    assert gallery.search(embedding_of(colour_of(1)), 1)[0].similarity > 0.999


def test_without_pyav_videos_are_named_and_looked_at_later(tmp_path, video, monkeypatch):
    find = "kd_search.gallery.video.importlib.util.find_spec"
    monkeypatch.setattr(find, lambda name: None)
    report, seen = index(tmp_path / "g", video)
    assert seen == 0 and "pip install av" in report.problems[0]
    monkeypatch.undo()
    assert index(tmp_path / "g", video)[1] == 13
