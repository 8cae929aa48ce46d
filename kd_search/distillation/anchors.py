"""Checks that terms on anchors or regions make of student and teacher."""

from __future__ import annotations

import torch

from kd_search.outputs import AnchorSpec, ModelSpec


def check_same_anchors(term: str, student: ModelSpec, teacher: ModelSpec) -> None:
    """Refuse networks whose anchors differ.

    Args:
        term: named in the error.
        student, teacher: their specifications.

    Raises:
        ValueError: printing both sets.
    """
    for name, spec in (("student", student), ("teacher", teacher)):
        if spec.anchors is None:
            raise ValueError(
                f"{term} needs a {name} with anchors of its own: a DistillableRPN or a RetinaNet"
            )
    assert student.anchors and teacher.anchors
    if student.anchors.dense_classes != teacher.anchors.dense_classes:
        raise ValueError(
            f"{term} cannot compare an RPN, which tells objects from background, with a one-stage "
            "detector, which tells classes apart: take a teacher of the student's kind"
        )
    # Other padding makes other grids of the same image.
    same_padding = student.size_divisibility == teacher.size_divisibility
    if not (same_padding and _same(student.anchors, teacher.anchors)):
        raise ValueError(
            f"{term}: student and teacher have different anchors (MODEL.ANCHOR_GENERATOR, "
            f"MODEL.RPN.IN_FEATURES or MODEL.RETINANET.IN_FEATURES): student {describe(student)}; "
            f"teacher {describe(teacher)}"
        )


def describe(spec: ModelSpec) -> str:
    """The anchors of a network in one line: stride and width x height per level."""
    assert spec.anchors
    levels = []
    for stride, cells in zip(spec.anchors.strides, spec.anchors.cells):
        sides = (cells[:, 2:] - cells[:, :2]).round().int().tolist()
        levels.append(f"{stride}: " + " ".join(f"{width}x{height}" for width, height in sides))
    return (
        f"{{{', '.join(levels)}}} at offset {spec.anchors.offset:g}, images padded to multiples "
        f"of {spec.size_divisibility}"
    )


def flatten_levels(levels: list[torch.Tensor]) -> torch.Tensor:
    """(N, A_l, ...) of every level to (N, sum A_l, ...)."""
    return torch.cat(levels, dim=1)


def _same(a: AnchorSpec, b: AnchorSpec) -> bool:
    return (
        a.strides == b.strides
        and a.offset == b.offset
        and len(a.cells) == len(b.cells)
        and all(x.shape == y.shape and torch.allclose(x, y) for x, y in zip(a.cells, b.cells))
    )


def check_has_regions(term: str, student: ModelSpec, teacher: ModelSpec) -> None:
    """Raise ValueError where one of the two networks predicts no regions."""
    for name, spec in (("student", student), ("teacher", teacher)):
        if spec.regions is None:
            raise ValueError(
                f"{term} needs a {name} with region heads: leave it out of DISTILLATION.TERMS for "
                "one-stage detectors"
            )


def check_softmax(term: str, student: ModelSpec, teacher: ModelSpec) -> None:
    """As :func:`check_has_regions`; the classes of both must share a softmax as well."""
    check_has_regions(term, student, teacher)
    assert student.regions and teacher.regions
    if not (student.regions.softmax and teacher.regions.softmax):
        raise ValueError(
            f"{term} compares softmax classes: set MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE to False"
        )
