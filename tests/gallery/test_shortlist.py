"""Results of a gallery that a query-guided network orders anew."""

from types import SimpleNamespace

import numpy as np
import pytest

from kd_search.cli import main
from tests.gallery.fake_searcher import SIDE, colour_of
from tests.gallery.test_commands import indexed, names, network, search  # noqa: F401  fixtures


class FakeGuided:
    """As QueryGuidedSearcher: nobody where person 3 is, most similar where person 4 is."""

    manifest = {"max_pixels": 1_000_000}

    def __init__(self):
        self.queries, self.searched = [], 0

    def query(self, picture, box):
        self.queries.append((picture.shape, tuple(box)))
        return self.queries[-1]

    def search(self, query, rgb):
        assert query == self.queries[-1] and rgb.dtype == np.uint8
        self.searched += 1
        people = [tuple(map(int, rgb[0, x])) for x in range(0, rgb.shape[1], SIDE)]
        places = [i for i, c in enumerate(people) if any(c) and c != colour_of(3)]
        # A pixel beside those of the plain network.
        boxes = np.array([[i * SIDE + 1, 0, (i + 1) * SIDE, SIDE] for i in places], np.float32)
        similarity = 0.9 if colour_of(4) in people else 0.2
        return SimpleNamespace(
            boxes=boxes.reshape(-1, 4), similarities=np.full(len(places), similarity)
        )


@pytest.fixture
def guided(monkeypatch):
    searcher = FakeGuided()

    def load(path):
        if path != "guided.onnx":
            raise FileNotFoundError(f"model {path} does not exist")
        return searcher

    monkeypatch.setattr(
        "kd_search.runtime.QueryGuidedSearcher", SimpleNamespace(load=load), raising=False
    )
    return searcher


def test_the_shortlist_is_read_again_and_ordered(indexed, guided, capsys):  # noqa: F811
    plain = search()["results"]
    assert names({"results": plain}) == ["20261101", "20261103", "20261102"]
    capsys.readouterr()
    found = search("--rerank", "guided.onnx", "--shortlist", "3")["results"]
    assert names({"results": found}) == ["20261103", "20261101", "20261102"]
    # The network finds nobody in the last one.
    similarities = [r["query_guided_similarity"] for r in found]
    assert similarities == [pytest.approx(0.9), pytest.approx(0.2), None]
    assert guided.queries == [((40, 100, 3), (20.0, 0.0, 40.0, 20.0))] and guided.searched == 3
    assert "query-guided 0.900" in capsys.readouterr().out
    # What the plain search says of a result stays.
    by_id = {r["id"]: r["similarity"] for r in plain}
    assert all(r["similarity"] == by_id[r["id"]] for r in found)


def test_results_below_the_shortlist_stay_behind_it(indexed, guided):  # noqa: F811
    found = search("--rerank", "guided.onnx", "--shortlist", "1")["results"]
    assert names({"results": found}) == ["20261101", "20261103", "20261102"]
    assert [r["query_guided_similarity"] for r in found][1:] == [None, None]
    # The shortlist may be longer than what is shown.
    found = search("--rerank", "guided.onnx", "--shortlist", "3", "--top-k", "1")["results"]
    assert names({"results": found}) == ["20261103"]


def test_people_of_one_picture_share_a_reading(indexed, guided):  # noqa: F811
    found = search("--rerank", "guided.onnx", "--per", "person")["results"]
    assert len(found) == 5 and guided.searched == 3
    with_person_4 = [r["query_guided_similarity"] for r in found[:2]]
    assert with_person_4 == [pytest.approx(0.9)] * 2


def test_a_person_of_the_gallery_is_a_query(indexed, guided):  # noqa: F811
    first = search()["results"][0]
    found = search("--person", first["id"], "--rerank", "guided.onnx", query=None)
    assert guided.queries == [((40, 100, 3), tuple(first["box"]))]
    assert first["id"] not in [r["id"] for r in found["results"]]


def test_a_picture_that_is_gone_is_named_and_kept(indexed, guided, capsys):  # noqa: F811
    (indexed / "f" / "gate" / "20261103_080000.png").unlink()
    capsys.readouterr()
    found = search("--rerank", "guided.onnx")["results"]
    assert names({"results": found}) == ["20261101", "20261103", "20261102"]
    assert "20261103_080000.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--query", "query.png", "--shortlist", "0"], "--shortlist"),
        (["--query", "query.png", "query.png"], "--rerank"),
        (["--query", "query.png", "--rerank", "absent.onnx"], "absent.onnx"),
    ],
)
def test_wrong_options(indexed, guided, capsys, arguments, named):  # noqa: F811
    capsys.readouterr()
    command = ["search", "--gallery", "people", "--model", "student.onnx"]
    command += ["--rerank", "guided.onnx", "--output", "found.json"]
    assert main([*command, *arguments]) == 2
    out, err = capsys.readouterr()
    assert named in err and err.count("\n") == 1
    assert not (indexed / "found.json").exists()
