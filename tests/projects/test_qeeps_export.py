"""The exported query-guided network, and plain search with it on a shortlist."""

import subprocess
import sys

import numpy as np
import pytest
import qeeps  # noqa: F401  registers the network
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from qeeps.search import Found
from qeeps.shortlist import shortlisted

from kd_search.export import ExportParityError, export_model
from kd_search.export.gate import compare
from kd_search.export.gate_pictures import made_scene, write_gate_pictures
from kd_search.export.query_guided import gate_pairs, query_guided_graph, run_pairs
from kd_search.runtime import ImageError, ModelFileError, PersonSearcher, QueryGuidedSearcher
from tests.projects.registrations import only_here
from tests.projects.test_qeeps import GUIDED
from tests.trained import SIZE, trained_network

registered = only_here("qeeps")
STEPS = 12


def pair(rng):
    """A training pair of a made scene with itself."""
    pixels, boxes = made_scene(rng, SIZE, int(rng.integers(1, 4)))
    people = Instances(SIZE)
    people.gt_boxes = Boxes(torch.tensor(boxes))
    people.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    people.gt_person_ids = torch.arange(len(boxes))
    image = torch.from_numpy(pixels[:, :, ::-1].transpose(2, 0, 1).copy())
    return {
        "image": image,
        "instances": people,
        "query_image": image,
        "query_boxes": people.gt_boxes.tensor[:1],
        "query_person_id": 0,
    }


def build(plain, *overrides):
    cfg = trained_network("c4")[0].clone()
    cfg.defrost()
    cfg.merge_from_list([*GUIDED, *overrides])
    torch.manual_seed(0)
    model = build_model(cfg)
    own = model.state_dict()
    fits = {k: v for k, v in plain.state_dict().items() if k not in own or v.shape == own[k].shape}
    model.load_state_dict(fits, strict=False)
    return cfg, model


@pytest.fixture(scope="module")
def trained(registered):
    """Config and query-guided network that goes on from a trained plain one for a few steps."""
    cfg, model = build(trained_network("c4")[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rng = np.random.default_rng(3)
    with EventStorage():
        for _ in range(STEPS):
            losses, _ = model.train().forward_train([pair(rng) for _ in range(2)])
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
    return cfg, model.eval()


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """File and manifest of an export with the parity gate."""
    path = tmp_path_factory.mktemp("guided") / "guided.onnx"
    cfg, model = trained
    return path, export_model(model, path, cfg=cfg, query_guided=True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_gate_pictures(tmp_path_factory.mktemp("pictures"), 96, seed=5)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("MODEL.QUERY_GUIDED.GATES.QUERY_STREAM", "self"),
        ("MODEL.QUERY_GUIDED.RPN.ENABLED", False, "MODEL.QUERY_GUIDED.GATES.SEPARATE", True),
        ("MODEL.QUERY_GUIDED.SIMILARITY.RANK_BY", "product"),
        ("MODEL.QUERY_GUIDED.SIMILARITY.RANK_BY", "cosine"),
        ("MODEL.QUERY_GUIDED.GATES.ENABLED", False, "MODEL.QUERY_GUIDED.SIMILARITY.ENABLED", False),
    ],
)
def test_the_flat_forward_is_the_search(trained, overrides):
    cfg, model = build(trained[1], *overrides)
    model.eval()
    rng = np.random.default_rng(11)
    flat = query_guided_graph(model).module
    for _ in range(2):
        x, y = pair(rng), pair(rng)
        query = model.prepare_query(y["image"], y["query_boxes"][0])
        size = torch.tensor(x["image"].shape[1:])
        (want,) = model.search(query, [{"image": x["image"]}])
        with torch.no_grad():
            boxes, scores, embeddings, similarities, valid, wanted = flat(
                x["image"], size, y["image"], y["query_boxes"]
            )
        people = want["instances"]
        assert len(people) == valid.sum() and not similarities[~valid].any()
        for have, expected in (
            (boxes, people.pred_boxes.tensor),
            (scores, people.scores),
            (embeddings, people.pred_embeddings),
            (similarities, people.pred_similarities.float()),
        ):
            torch.testing.assert_close(have[valid], expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(wanted, want["query_embeddings"], rtol=1e-5, atol=1e-5)


def test_the_file_finds_and_compares_as_the_network(exported, trained, pictures):
    path, manifest = exported
    assert manifest["network"] == "query_guided"
    parity = manifest["parity"]
    assert parity["people"] > 20 and parity["pictures_without_people"] > 0
    assert {"boxes", "scores", "similarities"} <= parity["max_difference"].keys()
    # Other pictures than those of the gate, by another way.
    pairs = gate_pairs(pictures)[::5]
    searcher = QueryGuidedSearcher.load(path, threads=1)
    spread = []
    for (picture, query, box), want in zip(pairs, run_pairs(trained[1], trained[0], pairs)):
        found = searcher.search(searcher.query(query, box), picture.file)
        assert len(found.scores) == len(want.scores)
        np.testing.assert_allclose(found.boxes, want.boxes, atol=1e-2)
        np.testing.assert_allclose(found.scores, want.scores, atol=1e-4)
        np.testing.assert_allclose(found.similarities, want.similarities, atol=1e-4)
        np.testing.assert_allclose(found.query_embedding, want.query_embeddings[0], atol=1e-4)
        spread.extend(found.similarities)
    assert np.std(spread) > 1e-3  # the query matters


def test_the_query_changes_what_the_file_finds(exported, pictures):
    searcher = QueryGuidedSearcher.load(exported[0], threads=1)
    first, second = [p for p in pictures if p.boxes][:2]
    scene = next(p for p in pictures if "crowd" in p.file).file
    found = [searcher.search(searcher.query(p.file, p.boxes[0]), scene) for p in (first, second)]
    assert not np.array_equal(found[0].similarities, found[1].similarities)


def test_wrong_queries_and_files_are_refused(exported, pictures, tmp_path):
    path, searcher = exported[0], QueryGuidedSearcher.load(exported[0], threads=1)
    with pytest.raises(ValueError, match="no area"):
        searcher.query(pictures[0].file, [-50, -50, -10, -10])
    with pytest.raises(ImageError, match=r"absent\.png"):
        searcher.query(tmp_path / "absent.png", [0, 0, 9, 9])
    with pytest.raises(ModelFileError, match="query_guided network, not person_search"):
        PersonSearcher.load(path)
    done = subprocess.run(
        [sys.executable, "-m", "kd_search.runtime", path, pictures[0].file]
        + ["--output", tmp_path / "people.npz"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "--query" in done.stderr
    assert not (tmp_path / "people.npz").exists()


def test_a_file_that_compares_otherwise_is_refused(trained, pictures):
    pairs = gate_pairs(pictures)[:3]
    results = run_pairs(trained[1], trained[0], pairs)
    shown = [pair.picture for pair in pairs]
    limits = {"score_threshold": 0.3, "nms_threshold": 0.4}
    found = compare(results, results, shown, **limits)
    assert found["people"] and found["max_difference"]["similarities"] == 0
    others = [r._replace(similarities=r.similarities + 1e-3) for r in results]
    with pytest.raises(ExportParityError, match="similarities by 0.001"):
        compare(results, others, shown, **limits)


def test_other_networks_and_formats_are_refused(trained, tmp_path):
    cfg, plain = trained_network("c4")
    with pytest.raises(ValueError, match="PersonSearchRCNN"):
        export_model(plain, tmp_path / "guided.onnx", cfg=cfg, query_guided=True)
    with pytest.raises(ValueError, match="onnx"):
        export_model(
            trained[1], tmp_path / "guided.pt2", cfg=trained[0], format="pt2", query_guided=True
        )
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------- shortlist


def found_of(images, similarities, scores=None):
    count = len(images)
    boxes = np.arange(4 * count, dtype=np.float32).reshape(-1, 4)
    scores = np.ones(count, np.float32) if scores is None else np.array(scores, np.float32)
    return Found(np.array(images), boxes, scores, np.array(similarities, np.float64))


def ranking(found):
    return [found.image_index[i] for i in np.argsort(-found.similarities, kind="stable")]


def test_the_best_pictures_are_searched_again_and_rank_first():
    plain = found_of([1, 2, 2, 4, 5], [0.1, 0.9, -1.0, 0.5, 0.99], [1, 1, 1, 1, 0.2])
    guided = found_of([1, 1, 2, 4], [1.0, 0.3, 0.2, 0.4])
    pictures = np.array([1, 2, 3, 4, 5])
    by_size = {k: shortlisted(plain, guided, pictures, k, 0.5) for k in (0, 1, 2, 9)}
    assert ranking(by_size[0]) == [5, 2, 4, 1, 2]
    # Picture 5 has no detection above the threshold: 2 is the best, then 4.
    assert ranking(by_size[1]) == [2, 5, 4, 1]
    assert ranking(by_size[2]) == [4, 2, 5, 1]
    assert ranking(by_size[9]) == ranking(guided)
    for found in by_size.values():
        assert (np.abs(found.similarities) <= 1).all()


def test_equal_and_extreme_similarities_keep_the_shortlist_first():
    plain = found_of([0, 1], [1.0, 1.0])
    guided = found_of([0, 1], [-1.0, -1.0])
    found = shortlisted(plain, guided, np.array([0, 1]), 1, 0.5)
    assert ranking(found) == [0, 1] and found.similarities[0] > found.similarities[1]
