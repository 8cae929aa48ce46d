"""The search metric against the per-pair definition, and its invariances."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from benchmarks._search_reference import search_one_query, split_by_image
from kd_search.evaluation import (
    Detections,
    GalleryProtocol,
    GroundTruth,
    Queries,
    RankingSettings,
    rank_gallery,
    similarity,
)
from kd_search.evaluation.search.ranking import _block
from tests.evaluation.search import search_scenes

REPO = Path(__file__).resolve().parents[3]


def assert_equal_to_reference(detections, ground_truth, queries, num_images, **thresholds):
    settings = RankingSettings(**thresholds)
    (result,) = rank_gallery(detections, ground_truth, queries, settings=settings)
    gallery = split_by_image(detections, ground_truth, num_images)
    place = {}  # (image, number of the detection in it) -> index of the detection
    for index, image in enumerate(detections.image_index):
        place[int(image), sum(1 for other in place if other[0] == image)] = index
    for q in range(len(queries)):
        expected = search_one_query(
            np.asarray(queries.embeddings[q], dtype=np.float64),
            queries.person_ids[q],
            queries.image_index[q],
            gallery,
            **thresholds,
        )
        assert result.ap[q] == pytest.approx(expected.ap, abs=1e-12)
        assert result.num_gt[q] == expected.num_gt
        assert result.num_found[q] == expected.num_found
        assert result.first_hit_rank[q] == expected.first_hit_rank
        count = len(expected.matches)
        similarities = [match[0] for match in expected.matches]
        np.testing.assert_allclose(result.match_similarity[q, :count], similarities, atol=1e-12)
        assert [place[match[1:3]] for match in expected.matches] == list(
            result.match_index[q, :count]
        )
        assert [match[3] for match in expected.matches] == list(result.match_correct[q, :count])
        assert (result.match_index[q, count:] == -1).all()
        assert np.isnan(result.match_similarity[q, count:]).all()


def by_image(detections):
    """The reference ranks image by image: in that order ties fall alike."""
    return detections.select(np.argsort(detections.image_index, kind="stable"))


@settings(max_examples=300)
@given(search_scenes.test_sets())
def test_equals_the_per_pair_definition_with_ties(scene):
    detections, *rest = scene
    assert_equal_to_reference(by_image(detections), *rest)


@settings(max_examples=50)
@given(search_scenes.test_sets())
def test_thresholds_are_used_as_the_definition_says(scene):
    detections, *rest = scene
    assert_equal_to_reference(by_image(detections), *rest, score_thresh=0.9, iou_thresh=0.3)


@pytest.mark.parametrize("sort_cost", [0, 1e9], ids=["sorting", "comparing"])
def test_either_way_of_counting_equals_the_per_pair_definition(monkeypatch, sort_cost):
    """A thousand float32 detections of 32-d, several blocks of queries, many chunks."""
    monkeypatch.setattr(_block, "_SORT_COST", sort_cost)
    monkeypatch.setattr(similarity, "_BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(similarity, "_MIN_QUERIES", 1)
    monkeypatch.setattr(similarity, "CHUNK", 16)
    scene = random_test_set(num_detections=1000, num_images=60, num_queries=20)
    assert_equal_to_reference(*scene)


def random_test_set(num_detections, num_images, num_queries, num_persons=12):
    rng = np.random.default_rng(0)

    def embeddings(persons):
        rows = rng.standard_normal((len(persons), 32)) + 0.6 * directions[persons]
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    directions = rng.standard_normal((num_persons, 32))
    persons = rng.integers(num_persons, size=num_detections)
    images = np.sort(rng.integers(num_images, size=num_detections))
    boxes = search_scenes.random_boxes(rng, num_detections).astype(float)
    asked = rng.integers(num_persons, size=num_queries)
    return (
        Detections(
            boxes=boxes + rng.normal(0, 2, boxes.shape),
            scores=rng.uniform(0.3, 1, num_detections),
            image_index=images,
            embeddings=embeddings(persons),
        ),
        GroundTruth(boxes, persons, images),
        Queries(embeddings(asked), asked, rng.integers(-1, num_images, num_queries)),
        num_images,
    )


def test_permuting_the_gallery_leaves_ap_unchanged():
    detections, ground_truth, queries, num_images = random_test_set(600, 40, 15)
    rng = np.random.default_rng(1)
    images, rows = rng.permutation(num_images), rng.permutation(len(detections))
    annotated = rng.permutation(len(ground_truth))
    permuted = detections.select(rows)
    permuted.image_index = images[permuted.image_index]
    (expected,) = rank_gallery(detections, ground_truth, queries)
    own = np.where(queries.image_index >= 0, images[queries.image_index], -1)
    (result,) = rank_gallery(
        permuted,
        GroundTruth(
            ground_truth.boxes[annotated],
            ground_truth.person_ids[annotated],
            images[ground_truth.image_index[annotated]],
        ),
        Queries(queries.embeddings, queries.person_ids, own),
    )
    np.testing.assert_array_equal(result.ap, expected.ap)
    np.testing.assert_array_equal(result.first_hit_rank, expected.first_hit_rank)
    assert 0.05 < result.mean_ap() < 0.95  # or there was nothing to permute


@settings(max_examples=100)
@given(search_scenes.test_sets())
def test_the_order_of_ties_does_not_move_ap(scene):
    detections, ground_truth, queries, _ = scene
    backwards = detections.select(np.arange(len(detections))[::-1])
    (expected,) = rank_gallery(detections, ground_truth, queries)
    (result,) = rank_gallery(backwards, ground_truth, queries)
    np.testing.assert_array_equal(result.ap, expected.ap)
    np.testing.assert_array_equal(result.num_found, expected.num_found)


@pytest.mark.parametrize("chunk", [1, 128])
@pytest.mark.parametrize("right", [0, 1000])
def test_copies_of_an_embedding_tie_wherever_they_lie_in_the_matrix_product(
    monkeypatch, chunk, right
):
    """A thousand copies of one random embedding, one of them right: they enter together.

    Where the product is not padded to whole chunks, OpenBLAS gives the last columns other bits.
    """
    monkeypatch.setattr(similarity, "CHUNK", chunk)
    rng = np.random.default_rng(3)
    one, other = rng.standard_normal((2, 256))
    count = 1001
    detections = Detections(
        boxes=np.tile([0.0, 0, 50, 100], (count, 1)),
        scores=np.ones(count),
        image_index=np.arange(count),
        embeddings=np.tile(one / np.linalg.norm(one), (count, 1)),
    )
    ground_truth = GroundTruth(np.array([[0.0, 0, 50, 100]]), np.array([0]), np.array([right]))
    for num_queries in (1, 2, 17, 33):
        queries = Queries(
            np.tile(other / np.linalg.norm(other), (num_queries, 1)),
            np.zeros(num_queries, int),
            np.full(num_queries, -1),
        )
        (result,) = rank_gallery(detections, ground_truth, queries)
        np.testing.assert_allclose(result.ap, 1 / count, rtol=1e-12)
        np.testing.assert_array_equal(result.first_hit_rank, right + 1)
        np.testing.assert_array_equal(result.match_index, np.tile(np.arange(10), (num_queries, 1)))


@pytest.mark.parametrize(
    "broken, message",
    [
        ({"boxes": np.zeros((2, 5))}, r"boxes .*\(2, 5\)"),
        ({"scores": np.ones(3)}, r"scores .*\(3,\)"),
        ({"image_index": np.array([0.0, 1.0])}, "image_index .*float64"),
        ({"image_index": np.array([0, -1])}, "image_index .*-1"),
        ({"embeddings": np.full((2, 4), np.nan)}, "embeddings .*8 of 8"),
        ({"embeddings": np.ones((2, 4))}, "embeddings .*2 of 2"),
        ({"boxes": np.array([[0, 0, 1, np.inf]] * 2)}, "boxes .*2 of 8"),
    ],
)
def test_detections_that_do_not_fit_are_refused_by_name(broken, message):
    arrays = {
        "boxes": np.array([[0.0, 0, 1, 1]] * 2),
        "scores": np.ones(2),
        "image_index": np.arange(2),
        "embeddings": search_scenes.CORNERS[:2],
    }
    Detections(**arrays)
    with pytest.raises(ValueError, match=message):
        Detections(**{**arrays, **broken})


def test_embeddings_of_different_lengths_are_refused():
    detections, ground_truth, _, _ = random_test_set(10, 2, 1)
    with pytest.raises(ValueError, match="length 32, .*of 4"):
        rank_gallery(
            detections, ground_truth, Queries(search_scenes.CORNERS[:1], np.zeros(1, int), [0])
        )


def test_images_without_detections_may_have_cameras():
    """Cameras are given for all images, also beyond the last one with a detection."""
    detections, ground_truth, queries, num_images = random_test_set(20, 3, 2)
    protocols = [GalleryProtocol(cameras="cross_camera")]
    few, many = (
        rank_gallery(detections, ground_truth, queries, protocols, image_cameras=np.arange(count))
        for count in (num_images, num_images + 5)
    )
    assert few[0].num_found.sum() > 0
    np.testing.assert_array_equal(few[0].ap, many[0].ap)
    np.testing.assert_array_equal(few[0].num_images + 5, many[0].num_images)


def test_the_metrics_need_neither_torch_nor_detectron2():
    """Evaluation of files works without them."""
    script = """
import sys, types
for name in ("torch", "detectron2"):
    sys.modules[name] = None  # importing it raises
for name in ("kd_search", "kd_search.evaluation"):
    package = types.ModuleType(name)
    package.__path__ = [sys.argv[1] + "/" + name.replace(".", "/")]
    sys.modules[name] = package
import kd_search.evaluation.search.evaluate
"""
    subprocess.run([sys.executable, "-c", script, str(REPO)], check=True)
