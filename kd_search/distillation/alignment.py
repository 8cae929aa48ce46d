"""A teacher's outputs in its student's channels, classes and delta scales."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Optional, Union

import torch

from kd_search.distillation.class_map import ClassMap
from kd_search.distillation.protocols import Batch
from kd_search.outputs import (
    AnchorOutputs,
    AnchorSpec,
    ModelOutputs,
    ModelSpec,
    RegionOutputs,
    RegionSpec,
)


class TeacherOutputAligner:
    """Aligns a teacher with a student that was configured apart."""

    def __init__(
        self, student: ModelSpec, teacher: ModelSpec, class_map: Sequence[Sequence[int]] = ()
    ):
        """
        Args:
            student: specification of the student.
            teacher: that of the teacher.
            class_map: see :class:`ClassMap`.

        Raises:
            ValueError: as :class:`ClassMap`.
        """
        self.classes = ClassMap(class_map, teacher.num_classes, student.num_classes)
        formats = {student.image_format, teacher.image_format}
        # Formats other than these two have no channels that could be put in order.
        self.flips_channels = formats == {"BGR", "RGB"}
        self.dense_classes = teacher.anchors is not None and teacher.anchors.dense_classes
        self.anchor_scale = _scale(student.anchors, teacher.anchors)
        self.region_scale = _scale(student.regions, teacher.regions)

    def inputs(self, batched_inputs: Batch) -> Batch:
        """The student's batch in the teacher's order of channels."""
        if not self.flips_channels:
            return batched_inputs
        return [{**x, "image": x["image"].flip(0)} for x in batched_inputs]

    def align(self, teacher: ModelOutputs) -> ModelOutputs:
        """The teacher's outputs in the student's classes and delta scales."""
        return replace(
            teacher,
            anchors=None if teacher.anchors is None else self._anchors(teacher.anchors),
            regions=None if teacher.regions is None else self._regions(teacher.regions),
        )

    def _anchors(self, anchors: AnchorOutputs) -> AnchorOutputs:
        logits, deltas = anchors.logits, anchors.deltas
        if logits is not None and self.dense_classes:
            logits = [self.classes.sigmoid_logits(x) for x in logits]
        if deltas is not None:
            deltas = [_scaled(x, self.anchor_scale) for x in deltas]
        return replace(anchors, logits=logits, deltas=deltas)

    def _regions(self, regions: RegionOutputs) -> RegionOutputs:
        logits, deltas, foreground = regions.logits, regions.deltas, regions.foreground_logits
        if deltas is not None and logits is not None:
            deltas = _scaled(self.classes.deltas(deltas, logits), self.region_scale)
        if logits is not None:
            logits = self.classes.softmax_logits(logits)
        if foreground is not None:
            foreground = self.classes.softmax_logits(foreground)
        return replace(regions, logits=logits, deltas=deltas, foreground_logits=foreground)


def _scale(
    student: Union[AnchorSpec, RegionSpec, None], teacher: Union[AnchorSpec, RegionSpec, None]
) -> Optional[list[float]]:
    if student is None or teacher is None or student.delta_weights == teacher.delta_weights:
        return None
    return [ours / theirs for ours, theirs in zip(student.delta_weights, teacher.delta_weights)]


def _scaled(deltas: torch.Tensor, scale: Optional[list[float]]) -> torch.Tensor:
    """(..., 4 n) deltas times a factor for each of the four."""
    if scale is None:
        return deltas
    return (deltas.unflatten(-1, (-1, 4)) * deltas.new_tensor(scale)).flatten(-2)
