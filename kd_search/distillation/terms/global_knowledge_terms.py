"""Distillation by global knowledge: prototypes weigh what is learnt (Tang et al., ECCV 2022).

What the released code does beyond the equations of :mod:`kd_search.losses.global_knowledge`, and so
do these terms: two-stage students learn from their foreground proposals, one-stage students from
the annotated boxes; L_global is the sum over levels, every region counted at each; L_fore and
L_back are means over levels, and of each level only the boxes that belong to it by their size are
foreground; soft labels are weighed by r of the region's own level.
"""

from collections.abc import Sequence
from typing import Optional

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from detectron2.structures import Boxes, pairwise_iou
from torch import nn

from kd_search.distillation.shared_levels import shared_levels
from kd_search.distillation.terms.anchors import check_same_anchors, flatten_levels
from kd_search.distillation.terms.base import DistillationTerm
from kd_search.distillation.terms.registry import DISTILLATION_TERM_REGISTRY
from kd_search.distillation.terms.soft_label_terms import check_has_regions
from kd_search.losses import (
    align_maps,
    global_knowledge_loss,
    paint_boxes,
    weighted_binary_soft_labels,
    weighted_feature_loss,
    weighted_soft_labels,
)
from kd_search.structures import Agreement, Knowledge, Layout

_KEY = "DISTILLATION.GLOBAL_KNOWLEDGE"


@DISTILLATION_TERM_REGISTRY.register()
class GlobalKnowledgeTerm(DistillationTerm):
    """L_global, attenuated: regions look to the student's prototypes as to the teacher's.

    The sum over levels of the mean over regions; exactly 0 before there are prototypes.
    """

    teacher_fields = frozenset({"features"})
    needs_agreement = True
    needs_prototypes = True

    @configurable
    def __init__(self, *, loss_weight: float = 5.0):
        """
        Args:
            loss_weight: of the term, at the start of training.
        """
        super().__init__()
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg):
        return {"loss_weight": cfg.DISTILLATION.GLOBAL_KNOWLEDGE.PROJECTION_WEIGHT}

    def forward(self, student: Knowledge, teacher: Knowledge) -> dict[str, torch.Tensor]:
        """``{"loss_global_knowledge": scalar}`` from ``agreement``."""
        agreement = student.agreement
        levels = zip(
            agreement.student,
            agreement.teacher,
            agreement.prototypes_student,
            agreement.prototypes_teacher,
            agreement.weights,
        )
        loss = torch.stack([_mean(global_knowledge_loss(*level)) for level in levels]).sum()
        return {"loss_global_knowledge": self.loss_weight * agreement.attenuation * loss}


@DISTILLATION_TERM_REGISTRY.register()
class WeightedFeatureTerm(DistillationTerm):
    """L_fore and L_back, attenuated: the adapted maps imitate the teacher's, boxes by their r.

    A is a convolution per level, 3x3 in the released code. It trains with the student and stays
    here: neither its weights nor an exported model hold it.
    """

    teacher_fields = frozenset({"features"})
    needs_agreement = True

    @configurable
    def __init__(
        self,
        *,
        features: Sequence[str] = (),
        weighted: bool = True,
        foreground_weight: float = 1.0,
        background_weight: float = 4.0,
        adapter_kernel: int = 3,
    ):
        """
        Args:
            features: maps that both networks have; empty takes all of the same name and stride.
            weighted: by r, for which there must be prototypes.
            foreground_weight: of L_fore, at the start of training.
            background_weight: of L_back, likewise.
            adapter_kernel: side of A, in cells.

        Raises:
            ValueError: an even side, which has no centre.
        """
        super().__init__()
        if adapter_kernel < 1 or adapter_kernel % 2 == 0:
            raise ValueError(f"{_KEY}.ADAPTER_KERNEL {adapter_kernel} must be 1, 3, 5, ...")
        self.adapter_kernel = adapter_kernel
        self.features = tuple(features)
        self.needs_prototypes = weighted
        self.foreground_weight = foreground_weight
        self.background_weight = background_weight
        self.adapters = nn.ModuleDict()

    @classmethod
    def from_config(cls, cfg):
        node = cfg.DISTILLATION.GLOBAL_KNOWLEDGE
        return {
            "features": tuple(node.FEATURES),
            "weighted": node.WEIGHTED,
            "foreground_weight": node.FOREGROUND_WEIGHT,
            "background_weight": node.BACKGROUND_WEIGHT,
            "adapter_kernel": node.ADAPTER_KERNEL,
        }

    def connect(self, student: Layout, teacher: Optional[Layout]) -> None:
        levels = shared_levels(self.features, student, teacher)
        channels = zip(levels.student_channels, levels.teacher_channels)
        side = self.adapter_kernel
        for name, (ours, theirs) in zip(levels.names, channels):
            self.adapters[_key(name)] = nn.Conv2d(ours, theirs, side, padding=side // 2)

    def forward(self, student: Knowledge, teacher: Knowledge) -> dict[str, torch.Tensor]:
        """``{"loss_feature_foreground": scalar, "loss_feature_background": scalar}`` from
        ``features`` and ``agreement``."""
        agreement = student.agreement
        losses = []
        for level, (name, stride) in enumerate(zip(agreement.names, agreement.strides)):
            adapted = self.adapters[_key(name)](student.features[name])
            ours, theirs = align_maps(adapted, stride, teacher.features[name], stride)
            num_images, _, height, width = ours.shape
            here = agreement.levels == level
            masks = paint_boxes(
                agreement.boxes[here],
                agreement.image_index[here],
                agreement.weights[level][here],
                (num_images, height, width),
                stride,
            )
            losses.append(torch.stack(weighted_feature_loss(ours, theirs, *masks)))
        foreground, background = agreement.attenuation * torch.stack(losses).mean(dim=0)
        return {
            "loss_feature_foreground": self.foreground_weight * foreground,
            "loss_feature_background": self.background_weight * background,
        }


@DISTILLATION_TERM_REGISTRY.register()
class WeightedSoftLabelTerm(DistillationTerm):
    """L_soft: classes as the teacher sees them, region by region weighed by r. Not attenuated.

    Of a two-stage student the mean over its foreground proposals. Of a one-stage student, whose
    head has a logit a class, the mean over its positive anchors of a Bernoulli KL; r of an anchor
    is that of the annotated box that it overlaps most. The paper's way there is not known.
    """

    needs_agreement = True

    @configurable
    def __init__(
        self,
        *,
        one_stage: bool = False,
        weighted: bool = True,
        temperature: float = 2.0,
        loss_weight: float = 1.0,
    ):
        """
        Args:
            one_stage: the student is a RetinaNet: anchors are compared, not regions.
            weighted: by r, for which there must be prototypes.
            temperature: of student and teacher; the loss is multiplied by its square.
            loss_weight: of the term.

        Raises:
            ValueError: a temperature of 0 or less.
        """
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"{_KEY}.TEMPERATURE {temperature} must be above 0")
        self.one_stage = one_stage
        self.teacher_fields = frozenset(
            {"features", "anchor_logits" if one_stage else "foreground_logits"}
        )
        self.needs_prototypes = weighted
        self.temperature = temperature
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg):
        node = cfg.DISTILLATION.GLOBAL_KNOWLEDGE
        student = META_ARCH_REGISTRY.get(cfg.DISTILLATION.STUDENT_META_ARCH)
        return {
            "one_stage": isinstance(student, type) and issubclass(student, RetinaNet),
            "weighted": node.WEIGHTED,
            "temperature": node.TEMPERATURE,
            "loss_weight": node.SOFT_LABEL_WEIGHT,
        }

    def connect(self, student: Layout, teacher: Optional[Layout]) -> None:
        if self.one_stage:
            check_same_anchors(type(self).__name__, student, teacher)
            return
        check_has_regions(type(self).__name__, student, teacher)
        if not (student.region_softmax and teacher.region_softmax):
            raise ValueError(
                "WeightedSoftLabelTerm compares softmax classes: set "
                "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE to False"
            )

    def forward(self, student: Knowledge, teacher: Knowledge) -> dict[str, torch.Tensor]:
        """``{"loss_weighted_soft": scalar}`` from ``agreement`` and the logits of regions or, of a
        one-stage student, of anchors."""
        if self.one_stage:
            loss = weighted_binary_soft_labels(
                *self._positive_anchors(student, teacher),
                _weights_of_anchors(student, student.agreement),
                self.temperature,
            )
        else:
            loss = weighted_soft_labels(
                student.region_logits[student.foreground()],
                teacher.foreground_logits,
                student.agreement.assigned_weights(),
                self.temperature,
            )
        return {"loss_weighted_soft": self.loss_weight * _mean(loss)}

    @staticmethod
    def _positive_anchors(student: Knowledge, teacher: Knowledge) -> list[torch.Tensor]:
        positive = student.anchor_labels == 1
        return [flatten_levels(x.anchor_logits)[positive] for x in (student, teacher)]


def _weights_of_anchors(student: Knowledge, agreement: Agreement) -> torch.Tensor:
    """(A,) r of the positive anchors, image after image."""
    anchors, regions = torch.cat(student.anchors), agreement.assigned_weights()
    weights = [regions.new_zeros(0)]
    for image, labels in enumerate(student.anchor_labels):
        here = agreement.image_index == image
        positive = anchors[labels == 1]
        if len(positive):
            overlaps = pairwise_iou(Boxes(positive), Boxes(agreement.boxes[here]))
            weights.append(regions[here][overlaps.argmax(dim=1)])
    return torch.cat(weights)


def _key(name: str) -> str:
    # A module's name has no dot.
    return name.replace(".", "_")


def _mean(losses: torch.Tensor) -> torch.Tensor:
    # A sum and a division instead of a mean: that of no region is 0, its mean is NaN.
    return losses.sum() / max(len(losses), 1)
