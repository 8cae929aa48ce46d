"""What a teacher says, put in its student's terms: channels, classes and delta scales."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Optional

import torch

from kd_search.distillation.class_map import ClassMap
from kd_search.outputs import (
    Knowledge,
    Layout,
)


class Translation:
    """Between a student and a teacher that were configured apart."""

    def __init__(self, student: Layout, teacher: Layout, class_map: Sequence[Sequence[int]] = ()):
        """
        Args:
            student: layout of the student.
            teacher: layout of the teacher.
            class_map: see :class:`ClassMap`.

        Raises:
            ValueError: as :class:`ClassMap`.
        """
        self.classes = ClassMap(class_map, teacher.num_classes, student.num_classes)
        self.flips_channels = student.image_format != teacher.image_format
        if {student.image_format, teacher.image_format} - {"BGR", "RGB"}:
            # Other formats have no channels that could be put in order.
            self.flips_channels = False
        self.dense_classes = teacher.dense_classes
        self.anchor_scale = _scale(student.anchor_delta_weights, teacher.anchor_delta_weights)
        self.region_scale = _scale(student.region_delta_weights, teacher.region_delta_weights)

    def inputs(self, batched_inputs: list[dict]) -> list[dict]:
        """The student's batch as the teacher was trained to see it."""
        if not self.flips_channels:
            return batched_inputs
        return [{**x, "image": x["image"].flip(0)} for x in batched_inputs]

    def knowledge(self, teacher: Knowledge) -> Knowledge:
        """The teacher's knowledge with the student's classes and delta scales."""
        changes = {}
        if teacher.anchor_logits is not None and self.dense_classes:
            changes["anchor_logits"] = [
                self.classes.sigmoid_logits(x) for x in teacher.anchor_logits
            ]
        if teacher.anchor_deltas is not None:
            changes["anchor_deltas"] = [
                _scaled(x, self.anchor_scale) for x in teacher.anchor_deltas
            ]
        if teacher.region_logits is not None:
            changes["region_logits"] = self.classes.softmax_logits(teacher.region_logits)
        if teacher.foreground_logits is not None:
            changes["foreground_logits"] = self.classes.softmax_logits(teacher.foreground_logits)
        if teacher.region_deltas is not None:
            deltas = self.classes.deltas(teacher.region_deltas, teacher.region_logits)
            changes["region_deltas"] = _scaled(deltas, self.region_scale)
        return replace(teacher, **changes)


def _scale(
    student: Optional[tuple[float, ...]], teacher: Optional[tuple[float, ...]]
) -> Optional[list[float]]:
    if student is None or teacher is None or tuple(student) == tuple(teacher):
        return None
    return [ours / theirs for ours, theirs in zip(student, teacher)]


def _scaled(deltas: torch.Tensor, scale: Optional[list[float]]) -> torch.Tensor:
    """(..., 4 n) deltas times a factor for each of the four."""
    if scale is None:
        return deltas
    return (deltas.unflatten(-1, (-1, 4)) * deltas.new_tensor(scale)).flatten(-2)
