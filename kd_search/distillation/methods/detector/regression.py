"""Box regression taught by a teacher that bounds it (Chen et al., NIPS 2017)."""

from typing import Any, Optional

import torch
from detectron2.config import CfgNode, configurable

from kd_search.distillation.checks import (
    check_has_regions,
    check_same_anchors,
    flatten_levels,
)
from kd_search.distillation.terms import (
    DISTILLATION_TERM_REGISTRY,
    DistillationTerm,
    end_of_schedule,
)
from kd_search.losses import bounded_regression, teacher_l2
from kd_search.outputs import ModelOutputs, ModelSpec, Part

KINDS = ("bounded", "l2")


class RegressionTerm(DistillationTerm):
    """nu L_b, beside the student's own smooth L1 loss, on positives only.

    The margin is a squared length in the scale of the student's deltas: its box transform's weights
    multiply them (Detectron2: 10, 10, 5, 5 for regions, 1 for anchors). The teacher's deltas come
    in that scale too.
    """

    def __init__(
        self,
        *,
        kind: str = "bounded",
        margin: float = 0.0,
        loss_weight: float = 0.5,
        loss_weight_end: Optional[float] = None,
    ):
        """
        Args:
            kind: "bounded", or "l2" for the distance to the teacher.
            margin: m; the student pays until it beats the teacher by it.
            loss_weight: nu.
            loss_weight_end: nu at the end of training, linearly from ``loss_weight``; ``None``: as
                at the start.

        Raises:
            ValueError: an unknown kind, or a negative nu at the end.
        """
        super().__init__()
        if kind not in KINDS:
            raise ValueError(
                f"DISTILLATION.BOUNDED_REGRESSION.KIND {kind!r} must be one of {KINDS}"
            )
        if loss_weight_end is not None and not loss_weight_end >= 0:
            raise ValueError(
                f"DISTILLATION.BOUNDED_REGRESSION: {type(self).__name__} ends with nu "
                f"{loss_weight_end}: its ..._LOSS_WEIGHT_END must be 0 or more, or -1"
            )
        self.kind = kind
        self.margin = margin
        self.loss_weight = loss_weight
        self.loss_weight_end = loss_weight_end

    @property
    def nu(self) -> float:
        """The weight in this step."""
        return self.scheduled(self.loss_weight, self.loss_weight_end)

    def loss(
        self, student: torch.Tensor, teacher: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        """Loss of (P, 4) deltas, summed over P."""
        if self.kind == "l2":
            return teacher_l2(student, teacher).sum()
        return bounded_regression(student, teacher, target, self.margin).sum()


@DISTILLATION_TERM_REGISTRY.register()
class RegionRegressionTerm(RegressionTerm):
    """Bounded regression of the foreground regions, divided by the number of all regions."""

    student_parts = teacher_parts = frozenset({Part.REGION_DELTAS})

    @configurable
    def __init__(self, **kwargs: Any):
        """
        Args:
            kwargs: as :class:`RegressionTerm`.
        """
        super().__init__(**kwargs)
        self.num_classes = 0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.DISTILLATION.BOUNDED_REGRESSION
        return {
            "kind": node.KIND,
            "margin": node.REGION_MARGIN,
            "loss_weight": node.REGION_LOSS_WEIGHT,
            "loss_weight_end": end_of_schedule(node.REGION_LOSS_WEIGHT_END),
        }

    def setup(self, student: ModelSpec, teacher: ModelSpec) -> None:
        check_has_regions(type(self).__name__, student, teacher)
        self.num_classes = student.num_classes

    def forward(self, student: ModelOutputs, teacher: ModelOutputs) -> dict[str, torch.Tensor]:
        """``{"loss_region_bounded": scalar}`` from ``regions.deltas``."""
        classes = student.regions.targets.classes
        foreground = student.regions.foreground(self.num_classes)
        loss = self.loss(
            _deltas_of_classes(student.regions.deltas[foreground], classes[foreground]),
            _deltas_of_classes(teacher.regions.deltas[foreground], classes[foreground]),
            student.regions.targets.deltas,
        )
        return {"loss_region_bounded": self.nu * loss / max(len(classes), 1)}


@DISTILLATION_TERM_REGISTRY.register()
class AnchorRegressionTerm(RegressionTerm):
    """Bounded regression of the positive anchors, divided by what the own loss is divided by."""

    student_parts = teacher_parts = frozenset({Part.ANCHOR_DELTAS})

    @configurable
    def __init__(self, **kwargs: Any):
        """
        Args:
            kwargs: as :class:`RegressionTerm`.
        """
        super().__init__(**kwargs)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.DISTILLATION.BOUNDED_REGRESSION
        return {
            "kind": node.KIND,
            "margin": node.ANCHOR_MARGIN,
            "loss_weight": node.ANCHOR_LOSS_WEIGHT,
            "loss_weight_end": end_of_schedule(node.ANCHOR_LOSS_WEIGHT_END),
        }

    def setup(self, student: ModelSpec, teacher: ModelSpec) -> None:
        check_same_anchors(type(self).__name__, student, teacher)

    def forward(self, student: ModelOutputs, teacher: ModelOutputs) -> dict[str, torch.Tensor]:
        """``{"loss_anchor_bounded": scalar}`` from ``anchors.deltas`` and the student's labels."""
        positive = student.anchors.targets.labels == 1
        loss = self.loss(
            flatten_levels(student.anchors.deltas)[positive],
            flatten_levels(teacher.anchors.deltas)[positive],
            student.anchors.targets.deltas,
        )
        return {"loss_anchor_bounded": self.nu * loss / student.anchors.targets.normalizer}


def _deltas_of_classes(deltas: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """(F, 4) deltas of each region's own class, from (F, 4 K) or class-agnostic (F, 4) ones."""
    if deltas.shape[1] == 4:
        return deltas
    rows = torch.arange(len(classes), device=classes.device)
    return deltas.unflatten(1, (-1, 4))[rows, classes]
