"""Overlaps of boxes against box-by-box arithmetic."""

import numpy as np
import pytest

from benchmarks._search_reference import iou
from kd_search.evaluation import matching
from kd_search.evaluation.matching import (
    expand_ranges,
    iou_of_pairs,
    overlapping_pairs,
    search_iou_threshold,
)


def random_boxes(rng, count):
    corner = rng.uniform(0, 50, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(1, 40, (count, 2))], axis=1)


def test_iou_equals_the_box_by_box_formula():
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 200), random_boxes(rng, 200)
    np.testing.assert_allclose(iou_of_pairs(a, b), [iou(*pair) for pair in zip(a, b)], rtol=1e-12)
    np.testing.assert_allclose(iou_of_pairs(a, a), 1, rtol=1e-12)


@pytest.mark.parametrize(
    "box", [(5, 5, 5, 9), (9, 9, 5, 5), (20, 0, 30, 10)], ids=["flat", "inside out", "elsewhere"]
)
def test_iou_is_zero_without_common_area(box):
    assert iou_of_pairs(np.array([box]), np.array([[0, 0, 10, 10]]))[0] == 0


@pytest.mark.parametrize(
    "width, height, expected",
    [(50, 150, 0.5), (10, 10, 0.25), (10, 90, 0.45), (0, 90, 0.0), (100, 100, 0.5)],
)
def test_small_boxes_demand_less_overlap(width, height, expected):
    box = np.array([[7, 3, 7 + width, 3 + height]])
    assert search_iou_threshold(box)[0] == pytest.approx(expected)
    assert search_iou_threshold(box, 0.3)[0] == pytest.approx(min(expected, 0.3))


@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
def test_overlapping_pairs_are_those_of_a_double_loop(monkeypatch, chunk):
    monkeypatch.setattr(matching, "PAIRS_PER_CHUNK", chunk)
    rng = np.random.default_rng(0)
    gt, boxes = random_boxes(rng, 40), random_boxes(rng, 120)
    gt_images, images = rng.integers(6, size=40), rng.integers(7, size=120)
    thresholds = rng.uniform(0.05, 0.5, 40)
    expected = [
        (g, d)
        for g in range(40)
        for d in range(120)
        if gt_images[g] == images[d] and iou(gt[g], boxes[d]) >= thresholds[g]
    ]
    got_gt, got_detection, got_iou = overlapping_pairs(gt, gt_images, thresholds, boxes, images)
    assert list(zip(got_gt, got_detection)) == expected
    assert len(expected) > 20
    np.testing.assert_allclose(got_iou, [iou(gt[g], boxes[d]) for g, d in expected], rtol=1e-12)


@pytest.mark.parametrize("num_gt, num_detections", [(0, 0), (0, 3), (3, 0)])
def test_no_boxes_make_no_pairs(num_gt, num_detections):
    rng = np.random.default_rng(0)
    pairs = overlapping_pairs(
        random_boxes(rng, num_gt),
        np.zeros(num_gt, int),
        np.full(num_gt, 0.5),
        random_boxes(rng, num_detections),
        np.zeros(num_detections, int),
    )
    assert [len(part) for part in pairs] == [0, 0, 0]


def test_expand_ranges():
    ranges = expand_ranges(np.array([5, 0, 2, 9]), np.array([2, 0, 3, 1]))
    assert ranges.tolist() == [5, 6, 2, 3, 4, 9]
