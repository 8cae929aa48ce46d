"""Detectron2's ROI heads, able to output their predictions for sampled and for given regions."""

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
from kd_search.outputs import IdentityOutputs, RegionOutputs, RegionTargets

TrainOutputs = tuple[dict[str, torch.Tensor], RegionOutputs, Optional[IdentityOutputs]]


class DistillableHeads:
    """Base of distillable ROI heads; mixed in before ROI heads of Detectron2.

    The class that it is mixed into has a :class:`DistillableBoxPredictor` as ``box_predictor`` and
    implements :meth:`_region_features` and :meth:`_predict`.
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
        losses, regions, _ = self.forward_train(features, proposals, targets)
        return regions.proposals, losses

    def forward_train(
        self,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances],
    ) -> TrainOutputs:
        """Sample regions and predict their classes and boxes.

        Returns:
            losses: ``loss_cls``, ``loss_box_reg``, and those of masks, keypoints and identities
                where the heads have them.
            regions: complete, but for ``foreground_logits``.
            identities: ``None`` without a re-ID branch.
        """
        proposals = self.label_and_sample_proposals(proposals, targets)
        pooled = self._region_features(features, [p.proposal_boxes for p in proposals])
        logits, deltas = self._predict(pooled)
        wanted = RegionTargets(*self.box_predictor.targets(proposals))
        regions = RegionOutputs(proposals, logits, deltas, targets=wanted)
        losses = self.box_predictor.losses((logits, deltas), proposals)
        more, identities = self._other_losses(features, proposals, pooled)
        return {**losses, **more}, regions, identities

    def predict_boxes(
        self, features: dict[str, torch.Tensor], boxes: list[Boxes]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits (R, K + 1) and box deltas (R, 4 K) of given regions, image after image."""
        return self._predict(self._region_features(features, boxes))

    def _region_features(
        self, features: dict[str, torch.Tensor], boxes: list[Boxes]
    ) -> torch.Tensor:
        """(R, C, H, W) features of regions, as the box head and other heads share them."""
        raise NotImplementedError

    def _predict(self, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and deltas of :meth:`_region_features`."""
        raise NotImplementedError

    def _other_losses(
        self,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        pooled: torch.Tensor,
    ) -> tuple[dict[str, torch.Tensor], Optional[IdentityOutputs]]:
        """Losses beside those of classes and boxes, and identities where there are any."""
        return {}, None


@ROI_HEADS_REGISTRY.register()
class DistillableROIHeads(DistillableHeads, StandardROIHeads):
    """StandardROIHeads (FPN, C5) for students and teachers; weights and results are theirs."""

    @configurable
    def __init__(self, **kwargs):
        """
        Args:
            kwargs: as ``StandardROIHeads``.

        Raises:
            ValueError: heads that train on predicted boxes, which a teacher has not seen.
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

    def _region_features(self, features, boxes):
        return self.box_pooler([features[name] for name in self.box_in_features], boxes)

    def _predict(self, pooled):
        return self.box_predictor(self.box_head(pooled))

    def _other_losses(self, features, proposals, pooled):
        losses = self._forward_mask(features, proposals)
        return {**losses, **self._forward_keypoint(features, proposals)}, None


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

    def _region_features(self, features, boxes):
        return self._shared_roi_transform([features[name] for name in self.in_features], boxes)

    def _predict(self, pooled):
        return self.box_predictor(pooled.mean(dim=[2, 3]))

    def _other_losses(self, features, proposals, pooled):
        if not self.mask_on:
            return {}, None
        # Masks share res5 with the boxes.
        foreground, masks = select_foreground_proposals(proposals, self.num_classes)
        return self.mask_head(pooled[torch.cat(masks)], foreground), None
