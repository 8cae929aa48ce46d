"""The search metric on cases small enough to be worked out by hand."""

import numpy as np
import pytest

from kd_search.evaluation import Detections, GroundTruth, Queries, rank_gallery

BOX = (100, 100, 150, 250)  # 50 x 150: needs IoU 0.5
SHIFTED = (105, 100, 155, 250)  # IoU 45 / 55 with BOX
AWAY = (300, 100, 350, 250)
SMALL = (0, 0, 10, 10)  # needs 100 / 400 = 0.25
SMALL_THIRD = (0, 0, 30, 10)  # IoU 1/3 with SMALL

QUERY_IMAGE = 9

# Detections: (image, box, similarity) or (image, box, similarity, score).
# Ground truth: (image, box, person). The query asks for person 7 in image 9.
# Expected: AP, images that hold the person, found images, rank of the first hit.
CASES = {
    "the right box first": (
        [(0, BOX, 0.9), (0, AWAY, 0.1)],
        [(0, BOX, 7)],
        (1.0, 1, 1, 1),
    ),
    "right person, wrong box": (
        # The best of the image lies elsewhere: the one on the person comes second.
        [(0, AWAY, 0.9), (0, BOX, 0.8)],
        [(0, BOX, 7)],
        (1 / 2, 1, 1, 2),
    ),
    "right box on another person's image": (
        [(0, BOX, 0.9), (1, BOX, 0.8)],
        [(0, BOX, 3), (1, BOX, 7)],
        (1 / 2, 1, 1, 2),
    ),
    "two boxes on one person: the second is wrong": (
        # Ranked: right, wrong (a duplicate), right: (1 + 2/3) / 2.
        [(0, BOX, 0.9), (0, SHIFTED, 0.8), (1, BOX, 0.7)],
        [(0, BOX, 7), (1, BOX, 7)],
        ((1 + 2 / 3) / 2, 2, 2, 1),
    ),
    "the more similar of two boxes counts, not the better one": (
        [(0, SHIFTED, 0.9), (0, BOX, 0.8)],
        [(0, BOX, 7)],
        (1.0, 1, 1, 1),
    ),
    "an image without a detection of the person lowers the recall": (
        [(0, BOX, 0.9), (1, AWAY, 0.8)],
        [(0, BOX, 7), (1, BOX, 7)],
        (1 / 2, 2, 1, 1),
    ),
    "the query's own image is not searched and not counted": (
        [(QUERY_IMAGE, BOX, 1.0), (0, BOX, 0.5)],
        [(QUERY_IMAGE, BOX, 7), (0, BOX, 7)],
        (1.0, 1, 1, 1),
    ),
    "detections below the score threshold do not exist": (
        [(0, AWAY, 0.9, 0.49), (0, BOX, 0.8, 0.5)],
        [(0, BOX, 7)],
        (1.0, 1, 1, 1),
    ),
    "no detections at all": (
        [],
        [(0, BOX, 7)],
        (0.0, 1, 0, 0),
    ),
    "detections, none right": (
        [(0, AWAY, 0.9), (1, BOX, 0.8)],
        [(0, BOX, 7)],
        (0.0, 1, 0, 0),
    ),
    "nobody to be found": (
        [(0, BOX, 0.9)],
        [(0, BOX, 3)],
        (0.0, 0, 0, 0),
    ),
    "only in the query's own image": (
        [(QUERY_IMAGE, BOX, 1.0), (0, BOX, 0.9)],
        [(QUERY_IMAGE, BOX, 7)],
        (0.0, 0, 0, 0),
    ),
    "a small box needs less overlap": (
        [(0, SMALL_THIRD, 0.9)],
        [(0, SMALL, 7)],
        (1.0, 1, 1, 1),
    ),
    "an image that holds the person twice counts once": (
        # Either box will do; the second detection is wrong all the same.
        [(0, AWAY, 0.9), (0, BOX, 0.8), (1, BOX, 0.7)],
        [(0, BOX, 7), (0, AWAY, 7), (1, BOX, 7)],
        ((1 + 2 / 3) / 2, 2, 2, 1),
    ),
    "equal similarities enter together": (
        # One threshold with two detections, one of them right: precision 1/2. As a list, the
        # right one is second.
        [(0, BOX, 0.9), (1, BOX, 0.9)],
        [(1, BOX, 7)],
        (1 / 2, 1, 1, 2),
    ),
    "equal similarities in the other order": (
        [(1, BOX, 0.9), (0, BOX, 0.9)],
        [(1, BOX, 7)],
        (1 / 2, 1, 1, 1),
    ),
    "unlabelled people are nobody's match": (
        [(0, BOX, 0.9), (1, BOX, 0.8)],
        [(0, BOX, -1), (1, BOX, 7)],
        (1 / 2, 1, 1, 2),
    ),
    "eleventh place is no top-10 hit": (
        [(1, AWAY, 0.9 - 0.01 * i) for i in range(10)] + [(0, BOX, 0.5)],
        [(0, BOX, 7)],
        (1 / 11, 1, 1, 11),
    ),
}


def evaluate(detections, ground_truth):
    rows = [(*row, 1.0)[:4] for row in detections]
    cosines = np.array([row[2] for row in rows], dtype=np.float64).reshape(-1)
    return rank_gallery(
        Detections(
            boxes=np.array([row[1] for row in rows], dtype=np.float32).reshape(-1, 4),
            scores=np.array([row[3] for row in rows]),
            image_index=np.array([row[0] for row in rows], dtype=int),
            embeddings=np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1),
        ),
        GroundTruth(
            boxes=np.array([row[1] for row in ground_truth], dtype=np.float64).reshape(-1, 4),
            person_ids=np.array([row[2] for row in ground_truth], dtype=int),
            image_index=np.array([row[0] for row in ground_truth], dtype=int),
        ),
        Queries(np.array([[1.0, 0.0]]), np.array([7]), np.array([QUERY_IMAGE])),
    )[0]


@pytest.mark.parametrize("case", CASES)
def test_worked_out_by_hand(case):
    detections, ground_truth, (ap, num_gt, num_found, first) = CASES[case]
    result = evaluate(detections, ground_truth)
    assert result.ap[0] == pytest.approx(ap, abs=1e-12)
    assert (result.num_gt[0], result.num_found[0]) == (num_gt, num_found)
    assert result.first_hit_rank[0] == first
    if num_gt:
        assert result.mean_ap() == pytest.approx(ap, abs=1e-12)
        for k in (1, 5, 10):
            assert result.top_k_accuracy(k) == float(1 <= first <= k)
    else:
        assert np.isnan(result.mean_ap()) and np.isnan(result.top_k_accuracy(1))
        assert (result.num_queries, result.num_without_match) == (0, 1)


def test_matches_name_the_detections_as_given_and_say_which_are_right():
    detections = [(0, AWAY, 0.7), (1, BOX, 0.2, 0.1), (0, BOX, 0.9), (0, SHIFTED, 0.8)]
    result = evaluate(detections, [(0, BOX, 7)])
    assert result.match_index[0].tolist() == [2, 3, 0] + [-1] * 7
    assert result.match_correct[0].tolist() == [True] + [False] * 9
    np.testing.assert_allclose(result.match_similarity[0, :3], [0.9, 0.8, 0.7], atol=1e-12)


def test_queries_that_cannot_be_answered_are_in_no_mean():
    box = np.array([BOX], dtype=np.float64)
    (result,) = rank_gallery(
        Detections(box, np.ones(1), np.array([0]), np.array([[1.0, 0.0]])),
        GroundTruth(box, np.array([7]), np.array([0])),
        Queries(np.array([[1.0, 0.0]] * 3), np.array([7, 8, -1]), np.array([-1, -1, -1])),
    )
    assert result.mean_ap() == 1.0 and result.top_k_accuracy(1) == 1.0
    assert (result.num_queries, result.num_without_match) == (1, 2)


def test_an_annotated_box_without_area_is_matched_by_nothing():
    """Its threshold would be 0, which every detection of the image reaches."""
    result = evaluate([(0, AWAY, 0.9)], [(0, (5, 5, 5, 50), 7)])
    assert (result.num_gt[0], result.num_found[0]) == (1, 0)
