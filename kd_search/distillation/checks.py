"""Checks of terms on anchors or regions, made when a Distiller is built."""

from __future__ import annotations

import torch

from kd_search.outputs import AnchorSpec, ModelSpec


def check_same_anchors(term: str, student: ModelSpec, teacher: ModelSpec) -> None:
    """Raise ValueError, with both sets of anchors, if those of student and teacher differ.

    Args:
        term: named in the error.
        student, teacher: specifications of the networks.
    """
    for name, spec in (("student", student), ("teacher", teacher)):
        if spec.anchors is None:
            raise ValueError(
                f"{term} requires a {name} with anchors: a DistillableRPN or a RetinaNet"
            )
    if student.anchors.dense_classes != teacher.anchors.dense_classes:
        raise ValueError(
            f"{term} cannot compare the objectness of an RPN with the classes of a one-stage "
            "detector: use a teacher of the student's kind"
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
    levels = []
    for stride, cells in zip(spec.anchors.strides, spec.anchors.cells):
        sides = (cells[:, 2:] - cells[:, :2]).round().int().tolist()
        levels.append(f"{stride}: " + " ".join(f"{width}x{height}" for width, height in sides))
    return (
        f"{{{', '.join(levels)}}} at offset {spec.anchors.offset:g}, images padded to multiples "
        f"of {spec.size_divisibility}"
    )


def _same(a: AnchorSpec, b: AnchorSpec) -> bool:
    return (
        a.strides == b.strides
        and a.offset == b.offset
        and len(a.cells) == len(b.cells)
        and all(x.shape == y.shape and torch.allclose(x, y) for x, y in zip(a.cells, b.cells))
    )


def check_has_regions(term: str, student: ModelSpec, teacher: ModelSpec) -> None:
    """Raise ValueError if student or teacher has no region heads."""
    for name, spec in (("student", student), ("teacher", teacher)):
        if spec.regions is None:
            raise ValueError(
                f"{term} requires a {name} with region heads: remove it from DISTILLATION.TERMS "
                "for one-stage detectors"
            )


def check_softmax(term: str, student: ModelSpec, teacher: ModelSpec) -> None:
    """Raise ValueError if student or teacher has no region heads with a softmax over classes."""
    check_has_regions(term, student, teacher)
    if not (student.regions.softmax and teacher.regions.softmax):
        raise ValueError(
            f"{term} compares softmax classes: set MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE to False"
        )


def flatten_levels(levels: list[torch.Tensor]) -> torch.Tensor:
    """(N, A_l, ...) of every level to (N, sum A_l, ...)."""
    return torch.cat(levels, dim=1)
