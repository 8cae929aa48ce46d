"""Anchors that student and teacher must share before their opinions of them can be compared."""

import torch

from kd_search.outputs import Layout


def check_same_anchors(term: str, student: Layout, teacher: Layout) -> None:
    """Refuse networks whose anchors differ.

    Args:
        term: named in the error.
        student: layout of the student.
        teacher: layout of the teacher.

    Raises:
        ValueError: printing both sets.
    """
    for name, layout in (("student", student), ("teacher", teacher)):
        if layout.anchor_cells is None:
            raise ValueError(
                f"{term} needs a {name} with anchors of its own: a DistillableRPN or a RetinaNet"
            )
    if student.dense_classes != teacher.dense_classes:
        raise ValueError(
            f"{term} cannot compare an RPN, which tells objects from background, with a one-stage "
            "detector, which tells classes apart: take a teacher of the student's kind"
        )
    if not _same(student, teacher):
        raise ValueError(
            f"{term}: student and teacher have different anchors (MODEL.ANCHOR_GENERATOR, "
            f"MODEL.RPN.IN_FEATURES or MODEL.RETINANET.IN_FEATURES): student {describe(student)}; "
            f"teacher {describe(teacher)}"
        )


def describe(layout: Layout) -> str:
    """The anchors of a network in one line: stride and width x height per level."""
    levels = []
    for stride, cells in zip(layout.anchor_strides, layout.anchor_cells):
        sides = (cells[:, 2:] - cells[:, :2]).round().int().tolist()
        levels.append(f"{stride}: " + " ".join(f"{width}x{height}" for width, height in sides))
    return (
        f"{{{', '.join(levels)}}} at offset {layout.anchor_offset:g}, images padded to multiples "
        f"of {layout.size_divisibility}"
    )


def flatten_levels(levels: list[torch.Tensor]) -> torch.Tensor:
    """(N, A_l, ...) of every level to (N, sum A_l, ...)."""
    return torch.cat(levels, dim=1)


def _same(a: Layout, b: Layout) -> bool:
    return (
        a.anchor_strides == b.anchor_strides
        and a.anchor_offset == b.anchor_offset
        # Other padding makes other grids of the same image.
        and a.size_divisibility == b.size_divisibility
        and len(a.anchor_cells) == len(b.anchor_cells)
        and all(
            x.shape == y.shape and torch.allclose(x, y)
            for x, y in zip(a.anchor_cells, b.anchor_cells)
        )
    )


def check_has_regions(term: str, student: Layout, teacher: Layout) -> None:
    """Raise ValueError where one of the two networks judges no regions."""
    for name, layout in (("student", student), ("teacher", teacher)):
        if layout.region_delta_weights is None:
            raise ValueError(
                f"{term} needs a {name} with region heads: leave it out of DISTILLATION.TERMS for "
                "one-stage detectors"
            )
