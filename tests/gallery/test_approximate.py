"""Approximate searches of a gallery in a folder, and in a database by the same commands."""

import re

import numpy as np
import pytest

from kd_search.cli import main
from kd_search.gallery import Filter, Gallery, GalleryError, GalleryWriter, approximate
from kd_search.gallery.approximate import build_approximate_index, has_index, recall
from tests.gallery.fake_searcher import FakeSearcher, save
from tests.gallery.gallery_inputs import embeddings, filled, manifest, new_file, sha

QUERIES = [embeddings(1000 + i, 1)[0] for i in range(20)]

pytest.importorskip("faiss", reason="FAISS is optional")


@pytest.fixture
def folder(tmp_path):
    """2,000 people."""
    with GalleryWriter(tmp_path / "g", manifest()) as writer:
        writer.add([new_file(n, 4) for n in range(500)])
    return tmp_path / "g"


def ids(gallery, query, top_k=10, where=None, **options):
    return [hit.id for hit in gallery.search(query, top_k, where, per="person", **options)]


def test_the_recall_is_that_of_a_loop(folder):
    found = build_approximate_index(str(folder))
    exact, other = Gallery(folder), Gallery(folder, approximate=True)
    both = []
    for hit_id in exact.some_ids(100):
        query = exact.embedding(hit_id)
        one, two = (ids(g, query, without=[hit_id]) for g in (exact, other))
        both += [hit in two for hit in one]
    assert len(both) == 1000 and np.mean(both) == pytest.approx(found)
    assert 0.95 <= found < 1  # lists are looked at until it is enough, and no more
    assert recall(exact, exact) == 1


def test_similarities_are_exact_and_only_lists_nearby_are_looked_at(folder):
    build_approximate_index(str(folder))
    exact, other = Gallery(folder), Gallery(folder, approximate=True)
    different = 0
    for query in QUERIES[:5]:
        everybody = {hit.id: hit for hit in exact.search(query, 2000, per="person")}
        hits = other.search(query, 30, per="person")
        assert all(everybody[hit.id] == hit for hit in hits)
        assert [h.similarity for h in hits] == sorted((h.similarity for h in hits), reverse=True)
        different += [hit.id for hit in hits] != list(everybody)[:30]
    assert different  # otherwise it is not approximate, and this test shows nothing


def test_filters_and_searches_for_many_are_exact(folder):
    build_approximate_index(str(folder))
    exact, other = Gallery(folder), Gallery(folder, approximate=True)
    where = Filter(cameras=["cam1"], start=1100.0)
    for query in QUERIES[:3]:
        assert ids(other, query, 30, where) == ids(exact, query, 30, where)
        assert ids(other, query, 1900) == ids(exact, query, 1900)  # more than the lists hold


def test_rows_that_were_added_or_removed_since(folder):
    build_approximate_index(str(folder))
    with GalleryWriter(folder) as writer:
        writer.add([new_file(n, 2) for n in range(600, 610)])
        writer.forget([sha(n) for n in range(100)])  # not compacted yet
    exact, other = Gallery(folder), Gallery(folder, approximate=True)
    for number in range(600, 610):
        for row in embeddings(number, 2):
            assert ids(other, row, 1) == ids(exact, row, 1)
    for number in range(100):
        first = ids(other, embeddings(number, 4)[0], 5)
        assert len(first) == 5 and all(other.hit(hit).path for hit in first)


def test_compaction_removes_it_and_damage_is_named(folder):
    build_approximate_index(str(folder))
    (path,) = folder.glob("*/approximate.cache")
    content = path.read_bytes()
    for place in (3, 25, 40, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(GalleryError, match="approximate.cache.*--approximate"):
            Gallery(folder, approximate=True)
    path.write_bytes(content)
    with GalleryWriter(folder) as writer:
        writer.forget([sha(3)])
        writer.compact()
    assert not has_index(str(folder))
    with pytest.raises(GalleryError, match="approximate.cache.*--approximate"):
        Gallery(folder, approximate=True)


def test_without_faiss(folder, monkeypatch):
    monkeypatch.setattr(approximate, "faiss", None)
    for call in (build_approximate_index, lambda name: Gallery(name, approximate=True)):
        with pytest.raises(ImportError, match="pip install faiss-cpu"):
            call(str(folder))


def test_an_empty_gallery_has_no_index(tmp_path):
    filled(tmp_path / "g", range(0))
    with pytest.raises(GalleryError, match="nobody"):
        build_approximate_index(str(tmp_path / "g"))


@pytest.mark.parametrize("where", ["folder", "database"])
def test_the_commands(tmp_path, request, monkeypatch, capsys, where):
    class Runtime:
        load = staticmethod(lambda path, threads=None: FakeSearcher())

    monkeypatch.setattr("kd_search.runtime.PersonSearcher", Runtime, raising=False)
    monkeypatch.chdir(tmp_path)
    name = "people"
    if where == "database":
        name = request.getfixturevalue("server").new_schema()
    for i in range(6):
        save(tmp_path / "f" / f"{i}.png", (i, i + 10), height=40 + i)
    model = ["--gallery", name, "--model", "student.onnx"]
    search = ["search", *model, "--query", "f/1.png", "--approximate"]
    index = ["index", "f", *model]
    assert main([*index, "--approximate"]) == 0
    assert re.search(r"finds 100.0 % of the 10 most", capsys.readouterr().out)
    assert main(search) == 0
    assert main(["forget", "--gallery", name, "--picture", "f/2.png"]) == 0  # builds it again
    assert ("finds" in capsys.readouterr().out) == (where == "folder")
    assert main(index) == 0
    capsys.readouterr()
    assert main(search) == 0
    out = capsys.readouterr().out
    assert "10 people in the gallery" in out
    if where == "folder":
        assert main(["push", "--gallery", name, "--to", "nowhere", "--approximate"]) == 2
