"""Box regression bounded by the teacher's error (Chen et al., NIPS 2017)."""

from typing import Any, Optional

import torch
from detectron2.config import CfgNode, configurable

from kd_search.config.ranges import check_choice
from kd_search.distillation.checks import check_has_regions, check_same_anchors, flatten_levels
from kd_search.distillation.terms import (
    DISTILLATION_TERM_REGISTRY,
    DistillationTerm,
    end_of_schedule,
)
from kd_search.losses import bounded_regression, teacher_l2
from kd_search.outputs import ModelOutputs, ModelSpec, Part

_KEY = "DISTILLATION.BOUNDED_REGRESSION"


class RegressionTerm(DistillationTerm):
    """nu L_b on positives only, added to the student's own smooth L1 loss.

    The margin is a squared length in the scale of the student's deltas, which are multiplied by the
    weights of its box transform (Detectron2: 10, 10, 5, 5 for regions, 1 for anchors). The
    teacher's deltas have the same scale.
    """

    #: Prefix of the keys of a subclass: "REGION" or "ANCHOR".
    kind_of_box: str

    @configurable
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
            margin: m, by which the student must be better than the teacher.
            loss_weight: nu.
            loss_weight_end: nu at the end of training, linearly from ``loss_weight``; ``None``
                keeps it constant.

        Raises:
            ValueError: the kind is unknown, or nu at the end is negative.
        """
        super().__init__()
        check_choice(f"{_KEY}.KIND", kind, ("bounded", "l2"))
        if loss_weight_end is not None and not loss_weight_end >= 0:
            raise ValueError(
                f"{_KEY}.{self.kind_of_box}_LOSS_WEIGHT_END {loss_weight_end} must be 0 or more, "
                "or -1"
            )
        self.kind = kind
        self.margin = margin
        self.loss_weight = loss_weight
        self.loss_weight_end = loss_weight_end

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node, kind = cfg.DISTILLATION.BOUNDED_REGRESSION, cls.kind_of_box
        return {
            "kind": node.KIND,
            "margin": node[f"{kind}_MARGIN"],
            "loss_weight": node[f"{kind}_LOSS_WEIGHT"],
            "loss_weight_end": end_of_schedule(node[f"{kind}_LOSS_WEIGHT_END"]),
        }

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
    kind_of_box = "REGION"
    num_classes = 0

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
    """Bounded regression of the positive anchors, with the divisor of the student's own loss."""

    student_parts = teacher_parts = frozenset({Part.ANCHOR_DELTAS})
    kind_of_box = "ANCHOR"

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
    """(F, 4) deltas of each region's own class, from (F, 4 K) or class-agnostic (F, 4) deltas."""
    if deltas.shape[1] == 4:
        return deltas
    rows = torch.arange(len(classes), device=classes.device)
    return deltas.view(len(deltas), deltas.shape[1] // 4, 4)[rows, classes]
