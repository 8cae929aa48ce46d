"""The detection metric against a plain loop, and average precision against its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_search.evaluation import Detections, GroundTruth, average_precision, evaluate_detection
from tests.evaluation.search import search_scenes
from tests.evaluation.search.detection_reference import (
    average_precision_by_definition,
    detection_by_loop,
)


@settings(max_examples=300)
@given(search_scenes.test_sets(), st.sampled_from([0.0, 0.5, 0.9]), st.sampled_from([0.2, 0.5]))
def test_equals_the_plain_loop(scene, score_thresh, iou_thresh):
    detections, ground_truth, _, _ = scene
    thresholds = {"score_thresh": score_thresh, "iou_thresh": iou_thresh}
    result = evaluate_detection(detections, ground_truth, **thresholds)
    ap, recall = detection_by_loop(detections, ground_truth, **thresholds)
    assert result.ap == pytest.approx(ap, abs=1e-12, nan_ok=True)
    assert result.recall == pytest.approx(recall, abs=1e-12, nan_ok=True)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=30))
def test_average_precision_is_its_definition(entries):
    right, scores = [entry[0] for entry in entries], [entry[1] for entry in entries]
    expected = average_precision_by_definition(right, scores) if any(right) else 0.0
    assert average_precision(np.array(right), np.array(scores)) == pytest.approx(expected)


PERSON = (0.0, 0.0, 50.0, 100.0)
BESIDE = (30.0, 0.0, 80.0, 100.0)  # IoU 1/4 with PERSON
BETWEEN = (14.0, 0.0, 64.0, 100.0)  # IoU 36/64 with PERSON, 34/66 with BESIDE


@pytest.mark.parametrize(
    "rows, ap, recall",
    [
        ([(PERSON, 0.9), (BESIDE, 0.8)], 1.0, 1.0),
        ([(PERSON, 0.9)], 1.0 * 0.5, 0.5),
        ([(PERSON, 0.9), (PERSON, 0.8)], 1.0 * 0.5, 0.5),
        # The wrong one comes first: precision 1/2 at the only right one.
        ([((200.0, 0, 250, 100), 0.9), (PERSON, 0.8)], 0.5 * 0.5, 0.5),
        # BETWEEN takes PERSON, with which it overlaps more; PERSON's own box comes too late.
        ([(BETWEEN, 0.9), (PERSON, 0.8)], 1.0 * 0.5, 0.5),
        # Taken boxes are passed over: BETWEEN then takes BESIDE.
        ([(PERSON, 0.9), (BETWEEN, 0.8)], 1.0, 1.0),
        ([(PERSON, 0.4)], 0.0, 0.0),
        ([], 0.0, 0.0),
    ],
)
def test_worked_out_by_hand(rows, ap, recall):
    result = evaluate_detection(
        Detections(
            boxes=np.array([row[0] for row in rows]).reshape(-1, 4),
            scores=np.array([row[1] for row in rows]),
            image_index=np.zeros(len(rows), int),
        ),
        GroundTruth(np.array([PERSON, BESIDE]), np.array([-1, 4]), np.array([0, 0])),
    )
    assert (result.ap, result.recall) == (pytest.approx(ap), pytest.approx(recall))


def test_true_positives_are_named_as_given():
    boxes = np.array([(200.0, 0, 250, 100), PERSON, PERSON, PERSON])
    detections = Detections(boxes, np.array([0.9, 0.3, 0.6, 0.7]), np.array([0, 0, 1, 0]))
    truth = GroundTruth(np.array([PERSON, PERSON]), np.array([-1, -1]), np.array([0, 1]))
    result = evaluate_detection(detections, truth)
    assert result.true_positives.tolist() == [2, 3]
    assert (result.num_gt, result.num_detections) == (2, 3)
