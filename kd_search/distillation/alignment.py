"""Maps a teacher's outputs to its student's channel order, classes and delta scales."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Optional, Union

import torch

from kd_search.distillation.protocols import Batch
from kd_search.outputs import (
    AnchorOutputs,
    AnchorSpec,
    ModelOutputs,
    ModelSpec,
    RegionOutputs,
    RegionSpec,
)


class ClassMap:
    """Maps logits and deltas of a teacher's classes to those of its student.

    Several classes of the teacher may map to one class of the student. Classes of the teacher that
    are not mapped count as background.
    """

    def __init__(self, pairs: Sequence[Sequence[int]], num_teacher: int, num_student: int):
        """
        Args:
            pairs: (class of the teacher, class of the student); empty if both networks have the
                same classes in the same order.
            num_teacher: classes of the teacher, without background.
            num_student: classes of the student, without background.

        Raises:
            ValueError: the numbers of classes differ and there are no pairs, a class is out of
                range, a class of the teacher is mapped twice, or one of the student not at all.
        """
        key = "DISTILLATION.TEACHER.CLASS_MAP"
        if not pairs and num_teacher != num_student:
            raise ValueError(
                f"the teacher has {num_teacher} classes, the student {num_student}: set {key} to "
                "pairs [teacher class, student class]"
            )
        pairs = [tuple(pair) for pair in pairs] or [(c, c) for c in range(num_student)]
        #: Classes of the teacher that map to each class of the student.
        self.groups: list[list[int]] = [[] for _ in range(num_student)]
        taken = set()
        for pair in pairs:
            if len(pair) != 2:
                raise ValueError(f"{key}: {list(pair)} must be [teacher class, student class]")
            theirs, ours = pair
            if not (0 <= theirs < num_teacher and 0 <= ours < num_student):
                raise ValueError(
                    f"{key}: [{theirs}, {ours}] is out of range: the teacher has classes "
                    f"0..{num_teacher - 1}, the student 0..{num_student - 1}"
                )
            if theirs in taken:
                raise ValueError(f"{key} maps class {theirs} of the teacher twice")
            taken.add(theirs)
            self.groups[ours].append(theirs)
        if [] in self.groups:
            raise ValueError(
                f"{key} maps no class of the teacher to class {self.groups.index([])} of the "
                "student"
            )
        #: Classes of the teacher that the student does not have.
        self.background = [c for c in range(num_teacher) if c not in taken]
        self.num_teacher = num_teacher
        self.is_identity = self.groups == [[c] for c in range(num_teacher)]

    def student_classes(self, classes: torch.Tensor) -> torch.Tensor:
        """(N,) int64 classes of the teacher to those of the student, -1 where it has none."""
        table = torch.full((self.num_teacher,), -1, dtype=torch.int64)
        for ours, group in enumerate(self.groups):
            table[group] = ours
        return table.to(classes.device)[classes]

    def softmax_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """(R, K_teacher + 1) to (R, K_student + 1), background last.

        The probability of a class is the sum of its group's (exactly so at temperature 1).
        """
        if self.is_identity:
            return logits
        groups = [*self.groups, [*self.background, self.num_teacher]]
        return torch.stack([logits[:, group].logsumexp(dim=1) for group in groups], dim=1)

    def sigmoid_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """(..., K_teacher) to (..., K_student): the largest logit of each group."""
        if self.is_identity:
            return logits
        return torch.stack([logits[..., group].amax(dim=-1) for group in self.groups], dim=-1)

    def deltas(self, deltas: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """(R, 4 K_teacher) deltas to (R, 4 K_student); class-agnostic (R, 4) deltas are returned.

        Of a group with several classes, the one with the largest of the teacher's (R, K_teacher +
        1) ``logits`` gives the deltas.
        """
        if self.is_identity or deltas.shape[1] == 4 < 4 * self.num_teacher:
            return deltas
        deltas = deltas.reshape(len(deltas), self.num_teacher, 4)
        rows = torch.arange(len(deltas), device=deltas.device)
        columns = []
        for group in self.groups:
            best = torch.tensor(group, device=deltas.device)[logits[:, group].argmax(dim=1)]
            columns.append(deltas[rows, best])
        return torch.cat(columns, dim=1)


class TeacherOutputAligner:
    """Aligns a teacher with a student of another config."""

    def __init__(
        self, student: ModelSpec, teacher: ModelSpec, class_map: Sequence[Sequence[int]] = ()
    ):
        """
        Args:
            student, teacher: specifications of the networks.
            class_map: see :class:`ClassMap`, which may raise ``ValueError``.
        """
        self.classes = ClassMap(class_map, teacher.num_classes, student.num_classes)
        # No other formats have channels that can be reordered.
        self.flips_channels = {student.image_format, teacher.image_format} == {"BGR", "RGB"}
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
        if deltas is not None:
            if not self.classes.is_identity and logits is None:
                raise ValueError(
                    "DISTILLATION.TEACHER.CLASS_MAP chooses deltas by class, but the teacher "
                    "outputs regions.deltas without regions.logits"
                )
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
    return deltas * deltas.new_tensor(scale).repeat(deltas.shape[-1] // 4)
