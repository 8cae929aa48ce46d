"""Measures of the fit check against slow references, and on networks that agree exactly."""

import math

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from fit_check import FILES, ROWS, markdown, objects_of, parse_args, run_opts
from fit_measures import Objects, ap_against, class_of_regions, delta_distance, kl_divergence


def test_kl_against_a_loop():
    generator = np.random.default_rng(0)
    teacher, student = generator.normal(size=(2, 5, 4))

    def softmax(x):
        e = [math.exp(v) for v in x]
        return [v / sum(e) for v in e]

    expected = [
        sum(p * math.log(p / q) for p, q in zip(softmax(t), softmax(s)))
        for t, s in zip(teacher, student)
    ]
    found = kl_divergence(torch.tensor(teacher), torch.tensor(student))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    assert kl_divergence(torch.tensor(teacher), torch.tensor(teacher)).abs().max() < 1e-15


def test_delta_distance_takes_the_columns_of_the_class():
    teacher = torch.zeros(2, 12)
    student = torch.zeros(2, 12)
    student[0, 4:8] = torch.tensor([3.0, 0.0, 4.0, 0.0])  # class 1: length 5
    student[1, 0:4] = 9.0  # class 0, which is not asked for
    student[1, 8] = -2.0  # class 2: length 2
    found = delta_distance(teacher, student, torch.tensor([1, 2]))
    assert found.tolist() == [5.0, 2.0]


def test_regions_take_the_class_that_they_overlap_most():
    objects = Objects(
        Boxes(torch.tensor([[0.0, 0, 10, 10], [8.0, 0, 20, 10]])), torch.tensor([4, 7])
    )
    regions = [[0, 0, 10, 10], [9, 0, 20, 10], [0, 0, 10, 20], [0, 0, 10, 21], [50, 50, 60, 60]]
    classes = class_of_regions(Boxes(torch.tensor(regions, dtype=torch.float32)), objects)
    # The third has an IoU of exactly one half, the fourth a little less.
    assert classes.tolist() == [4, 7, 4, -1, -1]
    none = Objects(Boxes(torch.zeros(0, 4)), torch.zeros(0, dtype=torch.int64))
    assert class_of_regions(Boxes(torch.ones(2, 4)), none).tolist() == [-1, -1]


def detections(boxes, classes, scores):
    return Instances(
        (100, 100),
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        pred_classes=torch.tensor(classes, dtype=torch.int64),
        scores=torch.tensor(scores),
    )


def test_ap_against_other_detections():
    truth = [
        detections([[0, 0, 40, 40], [50, 50, 90, 90]], [0, 1], [0.9, 0.8]),
        detections([], [], []),
    ]
    assert ap_against(truth, truth, 3) == pytest.approx({"AP": 100.0, "AP50": 100.0})
    # Class 0 found at an IoU of 0.81 (7 of 10 thresholds), class 1 taken for class 0.
    found = [
        detections([[0, 0, 36, 36], [50, 50, 90, 90]], [0, 0], [0.9, 0.2]),
        detections([], [], []),
    ]
    result = ap_against(truth, found, 3)
    assert result["AP50"] == pytest.approx(50.0)
    assert result["AP"] == pytest.approx(100 * 0.7 / 2)
    assert ap_against(truth, [detections([], [], [])] * 2, 3) == {"AP": 0.0, "AP50": 0.0}
    assert ap_against([detections([], [], [])], found[:1], 3) == {"AP": None, "AP50": None}


def test_objects_are_scaled_and_crowds_left_out():
    record = {
        "width": 200,
        "height": 100,
        "annotations": [
            {"bbox": [20.0, 10.0, 60.0, 40.0], "category_id": 5, "iscrowd": 0},
            {"bbox": [0.0, 0.0, 9.0, 9.0], "category_id": 6, "iscrowd": 1},
        ],
    }
    objects = objects_of(record, torch.zeros(3, 50, 100))
    assert objects.boxes.tensor.tolist() == [[10.0, 5.0, 40.0, 25.0]]
    assert objects.classes.tolist() == [5]


def test_both_students_train_alike(tmp_path):
    args = parse_args(["--data", "anywhere", "--iterations", "8", "--size", "96"])
    plain, taught = (run_opts(args, n, tmp_path) for n in ("student", "student_distilled"))
    assert taught[: len(plain)] == plain
    assert taught[len(plain) :] == [
        "DISTILLATION.TEACHER.WEIGHTS",
        str(tmp_path / "teacher" / "model_final.pth"),
    ]


def test_table_says_what_it_is_not():
    numbers = {"kl": 0.25, "kl_objects": 1.0, "delta_distance": 2.0, "AP": 30.0, "AP50": None}
    report = {
        "networks": {name: dict(numbers) for name in FILES},
        **{"images": 1, "regions": 2, "object_regions": 1, "teacher_detections": 3},
        **{"size": 96, "iterations": 8, "teacher_iterations": 9, "seed": 1, "threshold": 0.5},
    }
    text = markdown(report)
    assert text.startswith("**Mechanism check on training images, not a result.**")
    assert text.count("| 0.250 | 1.000 | 2.000 | - | 30.0 | - |") == len(ROWS)
