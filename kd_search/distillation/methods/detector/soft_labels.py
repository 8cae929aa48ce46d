"""Classification by class-weighted soft labels (Chen et al., NIPS 2017)."""

from typing import Any, Optional

import torch
from detectron2.config import CfgNode, configurable

from kd_search.distillation.checks import check_same_anchors, check_softmax, flatten_levels
from kd_search.distillation.terms import (
    DISTILLATION_TERM_REGISTRY,
    DistillationTerm,
    end_of_schedule,
)
from kd_search.losses import soft_binary_cross_entropy, soft_cross_entropy
from kd_search.outputs import ModelOutputs, ModelSpec, Part


class SoftLabelTerm(DistillationTerm):
    """L_cls = mu L_hard + (1 - mu) L_soft, with class weights in the soft part only."""

    @configurable
    def __init__(
        self,
        *,
        hard_weight: float = 0.5,
        hard_weight_end: Optional[float] = None,
        background_weight: float = 1.5,
        object_weight: float = 1.0,
        temperature: float = 1.0,
        loss_weight: float = 1.0,
    ):
        """
        Args:
            hard_weight: mu, the factor of the student's own loss.
            hard_weight_end: mu at the end of training, linearly from ``hard_weight``; ``None``
                keeps it constant.
            background_weight: w_c of the background.
            object_weight: w_c of every object class.
            temperature: of student and teacher; the loss is multiplied by its square.
            loss_weight: factor of the soft part.

        Raises:
            ValueError: mu is outside of 0..1, or the temperature is not above 0.
        """
        super().__init__()
        for key, value in (("HARD_WEIGHT", hard_weight), ("HARD_WEIGHT_END", hard_weight_end)):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"DISTILLATION.SOFT_LABELS.{key} {value} must lie in 0..1")
        if temperature <= 0:
            raise ValueError(f"DISTILLATION.SOFT_LABELS.TEMPERATURE {temperature} must be above 0")
        self.hard_weight = hard_weight
        self.hard_weight_end = hard_weight_end
        self.background_weight = background_weight
        self.object_weight = object_weight
        self.temperature = temperature
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.DISTILLATION.SOFT_LABELS
        return {
            "hard_weight": node.HARD_WEIGHT,
            "hard_weight_end": end_of_schedule(node.HARD_WEIGHT_END),
            "background_weight": node.BACKGROUND_WEIGHT,
            "object_weight": node.OBJECT_WEIGHT,
            "temperature": node.TEMPERATURE,
        }

    @property
    def mu(self) -> float:
        """The share of the student's own loss in this step."""
        return self.scheduled(self.hard_weight, self.hard_weight_end)

    @property
    def soft_weight(self) -> float:
        """(1 - mu) times the loss weight."""
        return (1 - self.mu) * self.loss_weight


@DISTILLATION_TERM_REGISTRY.register()
class RegionClassTerm(SoftLabelTerm):
    """Soft cross-entropy of every sampled region; L_soft is the mean over regions."""

    student_parts = teacher_parts = frozenset({Part.REGION_LOGITS})

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        weight = cfg.DISTILLATION.SOFT_LABELS.REGION_LOSS_WEIGHT
        return {**super().from_config(cfg), "loss_weight": weight}

    @property
    def hard_loss_factors(self) -> dict[str, float]:
        return {"loss_cls": self.mu}

    def setup(self, student: ModelSpec, teacher: ModelSpec) -> None:
        check_softmax(type(self).__name__, student, teacher)

    def forward(self, student: ModelOutputs, teacher: ModelOutputs) -> dict[str, torch.Tensor]:
        """``{"loss_region_soft": scalar}`` from ``regions.logits``."""
        logits = student.regions.logits
        weights = logits.new_full(
            (logits.shape[1],), float(self.object_weight), dtype=torch.float32
        )
        weights[-1] = self.background_weight
        loss = soft_cross_entropy(logits, teacher.regions.logits, weights, self.temperature)
        return {"loss_region_soft": self.soft_weight * loss.sum() / max(len(loss), 1)}


@DISTILLATION_TERM_REGISTRY.register()
class AnchorClassTerm(SoftLabelTerm):
    """Soft binary cross-entropy of the student's sampled anchors, with its own loss's divisor.

    For RetinaNet, which the paper does not cover, it is also a sum over classes, weighted by
    |p_teacher - p_student|^gamma, so that the many easy anchors do not dominate.
    """

    student_parts = teacher_parts = frozenset({Part.ANCHOR_LOGITS})
    dense_classes = False

    @configurable
    def __init__(self, *, focal_gamma: float = 2.0, **kwargs: Any):
        """
        Args:
            focal_gamma: gamma; RetinaNet only.
            kwargs: as :class:`SoftLabelTerm`.
        """
        super().__init__(**kwargs)
        self.focal_gamma = focal_gamma

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.DISTILLATION.SOFT_LABELS
        return {
            **super().from_config(cfg),
            "focal_gamma": node.FOCAL_GAMMA,
            "loss_weight": node.ANCHOR_LOSS_WEIGHT,
        }

    @property
    def hard_loss_factors(self) -> dict[str, float]:
        return {"loss_cls" if self.dense_classes else "loss_rpn_cls": self.mu}

    def setup(self, student: ModelSpec, teacher: ModelSpec) -> None:
        check_same_anchors(type(self).__name__, student, teacher)
        self.dense_classes = student.anchors.dense_classes

    def forward(self, student: ModelOutputs, teacher: ModelOutputs) -> dict[str, torch.Tensor]:
        """``{"loss_anchor_soft": scalar}`` from ``anchors.logits`` and the student's labels."""
        anchors = student.anchors
        sampled = anchors.targets.labels >= 0
        loss = soft_binary_cross_entropy(
            flatten_levels(anchors.logits)[sampled],
            flatten_levels(teacher.anchors.logits)[sampled],
            object_weight=self.object_weight,
            background_weight=self.background_weight,
            temperature=self.temperature,
            focal_gamma=self.focal_gamma if self.dense_classes else 0.0,
        )
        return {"loss_anchor_soft": self.soft_weight * loss.sum() / anchors.targets.normalizer}
