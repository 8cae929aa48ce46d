"""The parity gate: what passes, what is a border case, and what is refused."""

import copy

import numpy as np
import pytest
import torch
from trained import trained_network

from kd_search.export import ExportParityError
from kd_search.export.flat import FlatPersonSearch
from kd_search.export.gate import (
    Result,
    compare,
    lower_rows_first,
    overlap,
    run_program,
    run_training_stack,
)
from kd_search.export.gate_pictures import GatePicture, write_gate_pictures

PICTURES = [GatePicture("folder/a.png", [])]


def result(boxes=((0, 0, 10, 20), (30, 0, 40, 20)), scores=(0.9, 0.8), queries=1):
    rows = np.eye(4, dtype=np.float32)
    return Result(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        rows[: len(scores)],
        rows[:queries],
    )


def compared(ours, theirs, **options):
    return compare([ours], [theirs], PICTURES, score_threshold=0.5, nms_threshold=0.4, **options)


def without(person, of):
    keep = [i for i in range(len(of.scores)) if i != person]
    return of._replace(boxes=of.boxes[keep], scores=of.scores[keep], embeddings=of.embeddings[keep])


def test_equal_results():
    report = compared(result(), result())
    assert report["people"] == 2 and report["pictures"] == 1
    assert report["pictures_without_people"] == 0 and report["border_cases"] == []
    assert set(report["max_difference"].values()) == {0.0}


def test_another_order_is_no_difference():
    ours = result(scores=(0.9, 0.9))
    theirs = Result(ours.boxes[::-1], ours.scores[::-1], ours.embeddings[::-1], ours[3])
    assert set(compared(ours, theirs)["max_difference"].values()) == {0.0}


@pytest.mark.parametrize(
    ("field", "change"),
    [("boxes", 2e-2), ("scores", 2e-4), ("embeddings", 2e-4), ("query_embeddings", 2e-4)],
)
def test_each_field_is_compared(field, change):
    ours = result()
    passing = ours._replace(**{field: getattr(ours, field) + np.float32(change / 4)})
    report = compared(ours, passing)["max_difference"]
    assert report[field] == pytest.approx(change / 4, rel=0.05)
    failing = ours._replace(**{field: getattr(ours, field) + np.float32(change)})
    with pytest.raises(ExportParityError, match=rf"a\.png: {field} by"):
        compared(ours, failing)


def test_nan_does_not_pass():
    ours = result()
    with pytest.raises(ExportParityError, match="scores"):
        compared(ours, ours._replace(scores=ours.scores * np.float32(np.nan)))


@pytest.mark.parametrize("swap", [False, True])
def test_a_missing_person_is_a_difference(swap):
    pair = [result(), without(1, result())]
    with pytest.raises(ExportParityError, match=r"a\.png.*30\.0.*0\.8"):
        compared(*(pair[::-1] if swap else pair))


def test_a_missing_query_is_a_difference():
    with pytest.raises(ExportParityError, match="query_embeddings by inf"):
        compared(result(), result(queries=2))


@pytest.mark.parametrize(("score", "passes"), [(0.50005, True), (0.5002, False)])
def test_a_score_at_the_threshold_is_a_border_case(score, passes):
    ours = result(scores=(0.9, score))
    if passes:
        (case,) = compared(ours, without(1, ours))["border_cases"]
        assert case["picture"] == "a.png" and "score" in case["reason"]
    else:
        with pytest.raises(ExportParityError):
            compared(ours, without(1, ours))


@pytest.mark.parametrize(("height", "passes"), [(40.0, True), (38.0, False)])
def test_an_overlap_at_the_threshold_is_a_border_case(height, passes):
    # 10 x 16 of 10 x height: the overlap is 0.4 for 40.
    ours = result(boxes=((0, 0, 10, height), (0, 0, 10, 16)))
    if passes:
        (case,) = compared(ours, without(1, ours))["border_cases"]
        assert "suppression" in case["reason"]
    else:
        with pytest.raises(ExportParityError):
            compared(ours, without(1, ours))


def test_a_better_person_is_no_border_case_for_a_worse_one():
    ours = result(boxes=((0, 0, 10, 40), (0, 0, 10, 16)))
    with pytest.raises(ExportParityError):
        compared(ours, without(0, ours))


def test_long_embeddings_are_compared_relatively():
    ours = result()
    ours = ours._replace(query_embeddings=ours.query_embeddings * 50)
    theirs = ours._replace(query_embeddings=ours.query_embeddings + np.float32(1e-3))
    found = compared(ours, theirs)["max_difference"]["query_embeddings"]
    assert found == pytest.approx(1e-3 / 50, rel=0.05)


def test_no_picture_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        compare([], [], [], score_threshold=0.5, nms_threshold=0.4)


def test_overlap():
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [3, 3, 3, 3]], np.float32)
    found = overlap(boxes, boxes)
    np.testing.assert_allclose(np.diag(found), [1, 1, 1, 0])
    assert found[0, 1] == pytest.approx(50 / 150) and found[0, 2] == 0


def test_pictures_are_of_all_kinds_and_repeatable(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    first, second = (write_gate_pictures(folder, 64, seed=3) for folder in folders)
    assert len(first) >= 12
    for one, two in zip(first, second):
        assert one.boxes == two.boxes
        assert open(one.file, "rb").read() == open(two.file, "rb").read()
    assert {len(picture.boxes) for picture in first} >= {0, 1, 2, 3}


def test_of_equally_good_anchors_both_take_the_same(tmp_path):
    cfg, network = trained_network("fpn")
    network = copy.deepcopy(network)
    with torch.no_grad():
        # Among such large numbers, those in single precision are 1 / 2 apart.
        network.proposal_generator.rpn_head.objectness_logits.bias += 2.0**22
    pictures = write_gate_pictures(tmp_path, cfg.INPUT.MIN_SIZE_TEST)[:4]
    expected = run_training_stack(network, cfg, pictures)
    found = run_program(FlatPersonSearch(network), cfg, pictures, 32, 1)
    thresholds = {"score_threshold": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, "nms_threshold": 0.5}
    assert compare(expected, found, pictures, **thresholds)["people"] >= 4


def test_equal_values_stay_in_their_order():
    values = torch.arange(4000).remainder(7).float().reshape(2, 2000)
    with lower_rows_first():
        found = [values.sort(descending=True, dim=1)[1][:, :900], values.topk(900, dim=1)[1]]
        ascending = values.sort()[1]
    for row, numbers in enumerate(values.tolist()):
        places = sorted(range(2000), key=lambda i: -numbers[i])
        assert [rows[row].tolist() for rows in found] == [places[:900]] * 2
        assert ascending[row].tolist() == sorted(range(2000), key=numbers.__getitem__)
