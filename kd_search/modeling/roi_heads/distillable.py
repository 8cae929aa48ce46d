"""Detectron2's ROI heads, able to say what they thought of every region and to judge given ones."""

from typing import Optional

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import (
    Res5ROIHeads,
    StandardROIHeads,
    select_foreground_proposals,
)
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn

from kd_search.modeling.backbones.resnet import resnet_stage, stage_channels
from kd_search.modeling.roi_heads.box_predictor import distillable_predictor
from kd_search.outputs import Knowledge


class DistillableHeads:
    """What distillable ROI heads have in common; mixed in before ROI heads of Detectron2.

    The class that it is mixed into offers ``forward_train(features, proposals, targets)`` and
    ``judge(features, boxes)``, and a :class:`DistillableBoxPredictor` as ``box_predictor``.
    """

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: Optional[list[Instances]] = None,
    ):
        """As Detectron2's: (proposals, losses) in training, (detections, {}) otherwise."""
        if not self.training:
            return super().forward(images, features, proposals, targets)
        losses, knowledge = self.forward_train(features, proposals, targets)
        return knowledge.proposals, losses

    def _box_losses_and_knowledge(
        self, proposals: list[Instances], logits: torch.Tensor, deltas: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], Knowledge]:
        classes, targets = self.box_predictor.targets(proposals)
        return self.box_predictor.losses((logits, deltas), proposals), Knowledge(
            proposals=proposals,
            region_logits=logits,
            region_deltas=deltas,
            region_classes=classes,
            region_delta_targets=targets,
        )


@ROI_HEADS_REGISTRY.register()
class DistillableROIHeads(DistillableHeads, StandardROIHeads):
    """StandardROIHeads (FPN, C5) for students and teachers; weights and results are theirs."""

    @configurable
    def __init__(self, **kwargs):
        """
        Args:
            kwargs: as ``StandardROIHeads``.

        Raises:
            ValueError: heads that train on predicted boxes, which a teacher has not judged.
        """
        super().__init__(**kwargs)
        if self.train_on_pred_boxes:
            raise ValueError(
                "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES replaces the regions that student and "
                "teacher share: set it to False"
            )

    @classmethod
    def _init_box_head(cls, cfg, input_shape: dict[str, ShapeSpec]):
        ret = super()._init_box_head(cfg, input_shape)
        shape = ret["box_head"].output_shape
        ret["box_predictor"] = distillable_predictor(ret["box_predictor"], cfg, shape)
        return ret

    def forward_train(
        self,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances],
    ) -> tuple[dict[str, torch.Tensor], Knowledge]:
        """Sample regions, judge them, and return the losses with what was found.

        Returns:
            losses: ``loss_cls``, ``loss_box_reg``, and those of masks and keypoints if they are on.
            knowledge: ``proposals`` and the ``region_*`` fields.
        """
        proposals = self.label_and_sample_proposals(proposals, targets)
        logits, deltas = self.judge(features, [p.proposal_boxes for p in proposals])
        losses, knowledge = self._box_losses_and_knowledge(proposals, logits, deltas)
        losses.update(self._forward_mask(features, proposals))
        losses.update(self._forward_keypoint(features, proposals))
        return losses, knowledge

    def judge(
        self, features: dict[str, torch.Tensor], boxes: list[Boxes]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits (R, K + 1) and box deltas (R, 4 K) of given regions, image after image."""
        pooled = self.box_pooler([features[name] for name in self.box_in_features], boxes)
        return self.box_predictor(self.box_head(pooled))


@ROI_HEADS_REGISTRY.register()
class DistillableRes5ROIHeads(DistillableHeads, Res5ROIHeads):
    """Res5ROIHeads (C4) for students and teachers; also of every depth and width of our ResNets."""

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        ret = super().from_config(cfg, input_shape)
        predictor = ret["box_predictor"]
        shape = ShapeSpec(channels=predictor.cls_score.in_features, height=1, width=1)
        ret["box_predictor"] = distillable_predictor(predictor, cfg, shape)
        return ret

    @classmethod
    def _build_res5_block(cls, cfg):
        if not cfg.MODEL.BACKBONE.NAME.startswith("build_width_resnet"):
            # Detectron2 takes bottleneck blocks whatever the depth: its weights must fit.
            return super()._build_res5_block(cfg)
        return nn.Sequential(*resnet_stage(cfg, 5)), stage_channels(cfg, 5)

    def forward_train(
        self,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances],
    ) -> tuple[dict[str, torch.Tensor], Knowledge]:
        """As :meth:`DistillableROIHeads.forward_train`; masks share res5 with the boxes."""
        proposals = self.label_and_sample_proposals(proposals, targets)
        regions = self._regions(features, [p.proposal_boxes for p in proposals])
        logits, deltas = self.box_predictor(regions.mean(dim=[2, 3]))
        losses, knowledge = self._box_losses_and_knowledge(proposals, logits, deltas)
        if self.mask_on:
            foreground, masks = select_foreground_proposals(proposals, self.num_classes)
            losses.update(self.mask_head(regions[torch.cat(masks)], foreground))
        return losses, knowledge

    def judge(
        self, features: dict[str, torch.Tensor], boxes: list[Boxes]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits (R, K + 1) and box deltas (R, 4 K) of given regions, image after image."""
        return self.box_predictor(self._regions(features, boxes).mean(dim=[2, 3]))

    def _regions(self, features: dict[str, torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        return self._shared_roi_transform([features[name] for name in self.in_features], boxes)
