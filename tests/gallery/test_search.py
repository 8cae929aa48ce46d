"""Filters and rankings are those of a loop over everybody in float64."""

import shutil
from dataclasses import fields

import numpy as np
import pytest

from kd_search.gallery import Filter, Gallery, GalleryError, GalleryWriter
from kd_search.gallery import exact as exact_module
from kd_search.gallery import order as order_module
from kd_search.gallery import segments as segments_module
from kd_search.gallery.exact import Matrix
from tests.gallery.gallery_inputs import (
    copy_of,
    embeddings,
    filled,
    manifest,
    new_file,
    people,
    sha,
)

COUNTS = (3, 0, 1, 4)
NUMBERS = range(60)
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """60 pictures over several segments, with some removed people."""
    folder = tmp_path_factory.mktemp("search") / "g"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments_module, "SEGMENT_ROWS", 32)
        filled(folder, NUMBERS, COUNTS, per_commit=20)
        with GalleryWriter(folder) as writer:
            writer.forget([sha(8)], [(writer.file("/footage/cam3/0007.jpg"), 1)])
        yield Gallery(folder)


@pytest.fixture(params=["folder", "database"])
def either(request, gallery):
    """The same people in both stores."""
    return gallery if request.param == "folder" else request.getfixturevalue("copied")


@pytest.fixture(scope="module")
def copied(gallery, server):
    """The gallery in a database."""
    from kd_search.gallery.postgres import PostgresGallery, PostgresWriter, push

    url = server.new_schema()
    with PostgresWriter(url, gallery.manifest) as writer:
        push(gallery, writer)
    yield PostgresGallery(url)


def everybody():
    """(path, person, camera, time, score, embedding) of each person in ``gallery``."""
    for number in NUMBERS:
        count = COUNTS[number % 4]
        for person in range(count):
            if number == 8 or (number, person) == (7, 1):
                continue
            file, score = new_file(number, count), people(count)["score"][person]
            yield file.path, person, file.camera, file.time, score, file.embeddings[person]


def expected(query, top_k, keep=lambda *person: True, key=lambda path, person, camera: path):
    query = np.asarray(query, np.float64)
    ranked = sorted(
        (-float(np.dot(e.astype(np.float64), query)), path, person, camera)
        for path, person, camera, time, score, e in everybody()
        if keep(path, camera, time, score)
    )
    seen, found = set(), []
    for similarity, path, person, camera in ranked:
        if key(path, person, camera) not in seen:
            seen.add(key(path, person, camera))
            found.append((path, person, -similarity))
    return found[:top_k]


def check(hits, wanted):
    assert [(h.path, int(h.id.split(".")[1])) for h in hits] == [w[:2] for w in wanted]
    assert [h.similarity for h in hits] == pytest.approx([w[2] for w in wanted], abs=TOLERANCE)


QUERIES = [embeddings(1000 + i, 1)[0] for i in range(5)]


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("top_k", [1, 7, 1000])
def test_rankings(either, query, top_k):
    check(either.search(query, top_k), expected(query, top_k))
    by_person = expected(query, top_k, key=lambda path, person, camera: (path, person))
    check(either.search(query, top_k, per="person"), by_person)
    by_camera = expected(query, top_k, key=lambda path, person, camera: camera)
    check(either.search(query, top_k, per="camera"), by_camera)


FILTERS = {
    "camera": (Filter(cameras=["cam3"]), lambda path, camera, time, score: camera == "cam3"),
    "cameras": (
        Filter(cameras=["cam0", "cam2"]),
        lambda path, camera, time, score: camera in ("cam0", "cam2"),
    ),
    "time": (
        Filter(start=1010.0, end=1020.0),
        lambda path, camera, time, score: 1010 <= time <= 1020,
    ),
    "from": (Filter(start=1050.0), lambda path, camera, time, score: time >= 1050),
    "to": (Filter(end=1003.0), lambda path, camera, time, score: time <= 1003),
    "folder": (
        Filter(folders=["/footage/cam2/"]),
        lambda path, camera, time, score: path.startswith("/footage/cam2/"),
    ),
    "no folder": (Filter(folders=["/footage/cam"]), lambda *person: False),
    "score": (Filter(min_score=0.75), lambda path, camera, time, score: score >= 0.75),
    "all": (
        Filter(cameras=["cam3"], start=1010.0, end=1040.0, folders=["/footage"], min_score=0.85),
        lambda path, camera, time, score: (
            camera == "cam3" and 1010 <= time <= 1040 and score >= 0.85
        ),
    ),
}


@pytest.mark.parametrize("name", FILTERS)
def test_filters(either, name):
    where, keep = FILTERS[name]
    for query in QUERIES:
        check(either.search(query, 6, where), expected(query, 6, keep))


@pytest.mark.parametrize("share", [0.05, 2.0])
def test_the_order_by_camera_and_time_finds_what_a_look_at_all_finds(tmp_path, monkeypatch, share):
    monkeypatch.setattr(order_module, "_FEW", share)
    rng = np.random.default_rng(3)
    tracklets = people(2)
    new = []
    with GalleryWriter(tmp_path / "g", manifest()) as writer:
        for number in range(100):
            tracklets["first"], tracklets["last"] = rng.integers(0, 5), rng.uniform(5, 40)
            camera, time = f"cam{number % 3}", float(rng.integers(1000, 1300))
            changes = {"people": tracklets.copy(), "seconds": 60.0, "camera": camera, "time": time}
            if number % 9 == 0:
                changes["time"] = None
            if number % 10 == 0:
                changes["camera"] = None
            new.append(new_file(number, 2, **changes))
        writer.add(new)
    used = Gallery(tmp_path / "g")
    ranges = [(1100.0, 1103.0), (1290.0, None), (None, 1010.0), (1200.0, 1100.0)]
    ranges += [(1000.0, float(end)) for end in range(1002, 1020)]  # some end when somebody comes
    for cameras in (["cam0"], ["cam2", "cam1"]):
        for start, end in ranges:
            where = Filter(cameras=cameras, start=start, end=end)
            fresh = Gallery(tmp_path / "g")  # its first search looks at all
            assert used.search(QUERIES[0], 300, where) == fresh.search(QUERIES[0], 300, where)
    assert used._order is not None and fresh._order is None


def test_several_pictures_of_one_person_are_searched_by_their_mean(either):
    pair = np.stack(QUERIES[:2])
    mean = pair.astype(np.float64).mean(0)
    check(either.search(pair, 5), expected(mean / np.linalg.norm(mean), 5))


def test_people_to_leave_out(either):
    first, second, *_ = either.search(QUERIES[0], 5, per="person")
    found = either.search(QUERIES[0], 5, per="person", without=[first.id])
    assert found[0] == second and first not in found


def test_a_filter_for_the_camera_of_a_copy(gallery, tmp_path):
    shutil.copytree(gallery.folder, tmp_path / "g")
    with GalleryWriter(tmp_path / "g") as writer:
        writer.add([copy_of(0, "/copies/a.jpg", camera="cam1", time=5.0)])
    gallery = Gallery(tmp_path / "g")
    query = embeddings(0, 3)[0]
    hit = gallery.search(query, 1, Filter(cameras=["cam1"]))[0]
    assert (hit.path, hit.camera, hit.time) == ("/copies/a.jpg", "cam1", 5.0)
    assert hit.also == ("/footage/cam0/0000.jpg",)
    hits = gallery.search(query, 100)
    assert hits[0].path == "/footage/cam0/0000.jpg" and hits[0].also == ("/copies/a.jpg",)
    assert len(hits) == len(expected(query, 100))  # a copy is not a second result


def test_pictures_of_unknown_time_and_camera(tmp_path):
    with GalleryWriter(tmp_path / "g", manifest()) as writer:
        writer.add([new_file(1, camera=None, time=None), new_file(2)])
    gallery = Gallery(tmp_path / "g")
    query = embeddings(1, 3)[0]
    assert len(gallery.search(query, 9)) == 2 and gallery.cameras == ["cam2"]
    for where in (Filter(start=0.0), Filter(end=1e12), Filter(cameras=["cam2"])):
        assert [h.path for h in gallery.search(query, 9, where)] == ["/footage/cam2/0002.jpg"]


def test_an_unknown_camera_is_named(either):
    with pytest.raises(GalleryError, match="cam7.*cam0, cam1|cam7.*cam0, cam2"):
        either.search(QUERIES[0], 5, Filter(cameras=["cam7"]))


def test_a_tracklet_is_found_by_any_part_of_its_time(tmp_path):
    records = people(2)
    records["frame"], records["second"] = [50, 90], [5.0, 9.0]
    records["first"], records["last"] = [2.0, 8.0], [6.0, 12.0]
    with GalleryWriter(tmp_path / "g", manifest()) as writer:
        writer.add([new_file(0, 2, people=records, time=100.0)])
    gallery = Gallery(tmp_path / "g")
    query = embeddings(0, 2)[0]

    def frames(start, end):
        hits = gallery.search(query, 9, Filter(start=start, end=end))
        return {h.frame: h.time for h in hits}

    assert frames(100, 101) == {} and frames(106.5, 107.5) == {}
    assert frames(106, 107) == {50: 105.0} and frames(112, None) == {90: 109.0}
    assert frames(None, 102) == {50: 105.0} and len(frames(106, 108)) == 2


def test_ids_lead_to_people_and_those_that_are_gone_are_named(either):
    hit = either.search(QUERIES[0], 1)[0]
    assert either.hit(hit.id, hit.similarity) == hit
    assert either.embedding(hit.id) @ QUERIES[0] == pytest.approx(hit.similarity, abs=TOLERANCE)
    for gone in ("8.1", "9.0", "999.0", "1.9", "x", "1", "-1.0"):
        with pytest.raises(GalleryError, match=gone):
            either.embedding(gone)


def test_an_empty_gallery(tmp_path):
    with GalleryWriter(tmp_path / "g", manifest()):
        pass
    gallery = Gallery(tmp_path / "g")
    assert gallery.search(QUERIES[0], 5) == [] and len(gallery) == 0
    assert gallery.search(QUERIES[0], 5, Filter(start=0.0)) == []


def test_wrong_queries(either):
    with pytest.raises(ValueError, match="tracklet"):
        either.search(QUERIES[0], 5, per="tracklet")
    with pytest.raises(ValueError, match="8"):
        either.search(np.ones(9), 5)


@pytest.mark.parametrize("dead", [0, 70])
@pytest.mark.parametrize("k", [1, 20, 400])
def test_faiss_and_numpy_find_the_same(dead, k):
    pytest.importorskip("faiss", reason="FAISS is optional")
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(3000, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[100:120] = rows[7]  # ties
    live = np.ones(3000, bool)
    live[rng.permutation(3000)[:dead]] = False
    matrix = Matrix([rows[:1000], rows[1000:1010], rows[1010:]], live if dead else None)
    for query in (rows[7], rows[50], -rows[3]):
        one, other = (matrix.top(query, k, use_faiss=use) for use in (True, False))
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
        assert live[one[0]].all()


def test_without_faiss(gallery, monkeypatch):
    monkeypatch.setattr(exact_module, "faiss", None)
    check(gallery.search(QUERIES[0], 7), expected(QUERIES[0], 7))


def test_a_hit_has_every_field(either):
    """It is not made by the constructor, which would see a missing one."""
    (hit,) = either.search(embeddings(3, 1)[0], 1)
    assert list(vars(hit)) == [field.name for field in fields(hit)]
