"""Distillation with weights of prototypes (global knowledge, Tang et al., ECCV 2022).

Beyond the equations of :mod:`kd_search.losses.global_knowledge`, these terms follow the released
code:

* L_global is the sum over levels of all regions.
* L_fore and L_back are means over levels for two-stage students and sums for one-stage students.
  At each level only the boxes of its size are foreground.
* Soft labels are weighted by r at the region's level. Regions are the foreground proposals; of a
  one-stage student, the positive anchors.

The released code has no configuration for one-stage students. Their regions for L_global, L_fore
and L_back are the annotated boxes here; in the released code these or, by a flag that its two-stage
configuration sets, the positive anchors.
"""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from torch import nn

from kd_search.config.ranges import check_choice
from kd_search.distillation.checks import check_same_anchors, check_softmax, flatten_levels
from kd_search.distillation.methods.global_knowledge.match import (
    PROTOTYPE_BANK,
    match_of,
    shared_levels,
)
from kd_search.distillation.terms import DISTILLATION_TERM_REGISTRY, DistillationTerm, module_name
from kd_search.losses import (
    align_maps,
    global_knowledge_loss,
    paint_boxes,
    weighted_binary_soft_labels,
    weighted_feature_loss,
    weighted_soft_labels,
)
from kd_search.outputs import ModelOutputs, ModelSpec, Part

_KEY = "DISTILLATION.GLOBAL_KNOWLEDGE"


class PrototypeTerm(DistillationTerm):
    """Base of terms that read the :class:`PrototypeMatch` of the :class:`PrototypeBank`."""

    companions = (PROTOTYPE_BANK,)
    #: Whether it requires prototypes, or weights computed from them.
    needs_prototypes: bool = False
    #: Whether it reads ``anchor_weights``, of a dense detector.
    needs_anchor_weights: bool = False


@DISTILLATION_TERM_REGISTRY.register()
class GlobalKnowledgeTerm(PrototypeTerm):
    """L_global, attenuated: match the teacher's projections of regions on prototypes.

    The sum over levels of the mean over regions; exactly 0 without prototypes. The released code
    has this loss, and no configuration that uses it.
    """

    student_parts = teacher_parts = frozenset({Part.FEATURES})
    needs_prototypes = True

    @configurable
    def __init__(self, *, loss_weight: float = 5.0):
        """``loss_weight`` is that at the start of training."""
        super().__init__()
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"loss_weight": cfg.DISTILLATION.GLOBAL_KNOWLEDGE.PROJECTION_WEIGHT}

    def forward(self, student: ModelOutputs, teacher: ModelOutputs) -> dict[str, torch.Tensor]:
        """``{"loss_global_knowledge": scalar}`` from the match."""
        match = match_of(student)
        levels = zip(
            match.student,
            match.teacher,
            match.prototypes_student,
            match.prototypes_teacher,
            match.weights,
        )
        loss = torch.stack([_mean(global_knowledge_loss(*level)) for level in levels]).sum()
        return {"loss_global_knowledge": self.loss_weight * match.attenuation * loss}


@DISTILLATION_TERM_REGISTRY.register()
class WeightedFeatureTerm(PrototypeTerm):
    """L_fore and L_back, attenuated: the adapted maps imitate the teacher's, boxes weighted by r.

    A is a convolution per level, trained with the student; 3x3 in the released code.
    """

    student_parts = teacher_parts = frozenset({Part.FEATURES})

    @configurable
    def __init__(
        self,
        *,
        features: Sequence[str] = (),
        one_stage: bool = False,
        weighted: bool = True,
        foreground_weight: float = 1.0,
        background_weight: float = 4.0,
        level_reduction: str = "auto",
        adapter_kernel: int = 3,
    ):
        """
        Args:
            features: maps that both networks have; empty: all of the same name and stride.
            one_stage: the student is a RetinaNet.
            weighted: by r, which requires prototypes.
            foreground_weight: of L_fore, at the start of training.
            background_weight: of L_back, at the start of training.
            level_reduction: "mean" or "sum" over levels; "auto" is the sum for one-stage students
                and the mean for others.
            adapter_kernel: size of A, in cells.

        Raises:
            ValueError: the size is not odd, or the reduction is unknown.
        """
        super().__init__()
        if adapter_kernel < 1 or adapter_kernel % 2 == 0:
            raise ValueError(f"{_KEY}.ADAPTER_KERNEL {adapter_kernel} must be 1, 3, 5, ...")
        check_choice(f"{_KEY}.LEVEL_REDUCTION", level_reduction, ("auto", "mean", "sum"))
        auto = "sum" if one_stage else "mean"
        reduction = auto if level_reduction == "auto" else level_reduction
        self.reduce_levels: Any = {"sum": torch.sum, "mean": torch.mean}[reduction]
        self.adapter_kernel = adapter_kernel
        self.features = tuple(features)
        self.needs_prototypes = weighted
        self.foreground_weight = foreground_weight
        self.background_weight = background_weight
        self.adapters = nn.ModuleDict()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.DISTILLATION.GLOBAL_KNOWLEDGE
        return {
            "features": tuple(node.FEATURES),
            "one_stage": _is_one_stage(cfg),
            "weighted": node.WEIGHTED,
            "foreground_weight": node.FOREGROUND_WEIGHT,
            "background_weight": node.BACKGROUND_WEIGHT,
            "level_reduction": node.LEVEL_REDUCTION,
            "adapter_kernel": node.ADAPTER_KERNEL,
        }

    def setup(self, student: ModelSpec, teacher: ModelSpec) -> None:
        levels = shared_levels(self.features, student, teacher)
        channels = zip(levels.student_channels, levels.teacher_channels)
        side = self.adapter_kernel
        for name, (ours, theirs) in zip(levels.names, channels):
            self.adapters[module_name(name)] = nn.Conv2d(ours, theirs, side, padding=side // 2)

    def forward(self, student: ModelOutputs, teacher: ModelOutputs) -> dict[str, torch.Tensor]:
        """``{"loss_feature_foreground": scalar, "loss_feature_background": scalar}`` from
        ``features`` and the match."""
        match = match_of(student)
        losses = []
        for level, (name, stride) in enumerate(zip(match.names, match.strides)):
            adapted = self.adapters[module_name(name)](student.features[name])
            ours, theirs = align_maps(adapted, stride, teacher.features[name], stride)
            num_images, _, height, width = ours.shape
            here = match.levels == level
            masks = paint_boxes(
                match.boxes[here],
                match.image_index[here],
                match.weights[level][here],
                (num_images, height, width),
                stride,
            )
            losses.append(torch.stack(weighted_feature_loss(ours, theirs, *masks)))
        reduced = self.reduce_levels(torch.stack(losses), dim=0)
        foreground, background = match.attenuation * reduced
        return {
            "loss_feature_foreground": self.foreground_weight * foreground,
            "loss_feature_background": self.background_weight * background,
        }


@DISTILLATION_TERM_REGISTRY.register()
class WeightedSoftLabelTerm(PrototypeTerm):
    """L_soft: soft labels of regions, weighted by r. Not attenuated.

    The mean over a two-stage student's foreground proposals, or over a one-stage student's positive
    anchors. An anchor's r is that of its box with the class of its target. One-stage heads have a
    logit for every class and no background: the released code takes the softmax of the K logits
    ("softmax"); a KL of Bernoulli distributions ("binary") is not in it. (That code multiplies
    logits in order of level by weights in order of image. Here each anchor has its own weight.)
    """

    @configurable
    def __init__(
        self,
        *,
        one_stage: bool = False,
        divergence: str = "softmax",
        weighted: bool = True,
        temperature: float = 2.0,
        loss_weight: float = 1.0,
    ):
        """
        Args:
            one_stage: the student is a RetinaNet: anchors are compared, not regions.
            divergence: "softmax" or "binary"; two-stage students always have "softmax".
            weighted: by r, which requires prototypes.
            temperature: of student and teacher; the loss is multiplied by its square.
            loss_weight: of the term.

        Raises:
            ValueError: the temperature is not above 0, or the divergence is unknown.
        """
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"{_KEY}.TEMPERATURE {temperature} must be above 0")
        check_choice(f"{_KEY}.ONE_STAGE_DIVERGENCE", divergence, ("binary", "softmax"))
        binary = one_stage and divergence == "binary"
        self.divergence: Any = weighted_binary_soft_labels if binary else weighted_soft_labels
        self.one_stage = self.needs_anchor_weights = one_stage
        self.student_parts = frozenset({Part.ANCHOR_LOGITS if one_stage else Part.REGION_LOGITS})
        self.teacher_parts = frozenset(
            {Part.ANCHOR_LOGITS if one_stage else Part.FOREGROUND_LOGITS}
        )
        self.needs_prototypes = weighted
        self.temperature = temperature
        self.loss_weight = loss_weight
        self.num_classes = 0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.DISTILLATION.GLOBAL_KNOWLEDGE
        return {
            "one_stage": _is_one_stage(cfg),
            "divergence": node.ONE_STAGE_DIVERGENCE,
            "weighted": node.WEIGHTED,
            "temperature": node.TEMPERATURE,
            "loss_weight": node.SOFT_LABEL_WEIGHT,
        }

    def setup(self, student: ModelSpec, teacher: ModelSpec) -> None:
        if self.one_stage:
            check_same_anchors(type(self).__name__, student, teacher)
            return
        check_softmax(type(self).__name__, student, teacher)
        self.num_classes = student.num_classes

    def forward(self, student: ModelOutputs, teacher: ModelOutputs) -> dict[str, torch.Tensor]:
        """``{"loss_weighted_soft": scalar}`` from the match and the logits of regions or, of a
        one-stage student, of anchors."""
        if self.one_stage:
            positive = student.anchors.targets.labels == 1
            logits = [flatten_levels(x.anchors.logits)[positive] for x in (student, teacher)]
            weights = match_of(student).anchor_weights
        else:
            foreground = student.regions.foreground(self.num_classes)
            logits = [student.regions.logits[foreground], teacher.regions.foreground_logits]
            weights = match_of(student).assigned_weights()
        loss = self.divergence(*logits, weights, self.temperature)
        return {"loss_weighted_soft": self.loss_weight * _mean(loss)}


def _is_one_stage(cfg: CfgNode) -> bool:
    student = META_ARCH_REGISTRY.get(cfg.DISTILLATION.STUDENT_META_ARCH)
    return isinstance(student, type) and issubclass(student, RetinaNet)


def _mean(losses: torch.Tensor) -> torch.Tensor:
    # Without regions 0, where mean() is NaN.
    return losses.sum() / max(len(losses), 1)
