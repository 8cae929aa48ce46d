"""Detectron2's ROI heads with outputs for sampled and for given regions."""

from typing import Any, Optional

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import (
    Res5ROIHeads,
    StandardROIHeads,
    select_foreground_proposals,
)
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn
from torch.nn import functional as F

from kd_search.modeling.backbones.resnet import resnet_stage, stage_channels
from kd_search.modeling.backbones.torchvision_backbones import build_last_stage
from kd_search.outputs import IdentityOutputs, RegionOutputs, RegionTargets

Features = dict[str, torch.Tensor]
Losses = dict[str, torch.Tensor]


class DistillableBoxPredictor(FastRCNNOutputLayers):
    """FastRCNNOutputLayers that return their targets and can weight the background.

    Weights, and losses at background weight 1, are those of FastRCNNOutputLayers.
    """

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, background_weight: float = 1.0, **kwargs: Any
    ) -> None:
        """
        Args:
            input_shape: of the pooled region features.
            background_weight: of background regions in the hard cross-entropy.
            kwargs: as ``FastRCNNOutputLayers``.

        Raises:
            ValueError: a background weight for a head without a softmax.
        """
        super().__init__(input_shape, **kwargs)
        if background_weight != 1.0 and not self.has_softmax:
            raise ValueError(
                "MODEL.ROI_BOX_HEAD.BACKGROUND_WEIGHT requires a softmax over the classes: leave "
                "it at 1.0 with MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE"
            )
        self.background_weight = background_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        ret: dict[str, Any] = super().from_config(cfg, input_shape)
        ret["background_weight"] = cfg.MODEL.ROI_BOX_HEAD.BACKGROUND_WEIGHT
        return ret

    @property
    def has_softmax(self) -> bool:
        """Whether classes and background share a softmax; newer Detectron2 has sigmoids as well."""
        return not getattr(self, "use_sigmoid_ce", False)

    def losses(self, predictions: Any, proposals: list[Instances]) -> Losses:
        """As Detectron2's; the weighted cross-entropy is a sum over all regions, divided by R."""
        losses: Losses = super().losses(predictions, proposals)
        if self.background_weight != 1.0 and proposals:
            logits = predictions[0]
            classes = cat([p.gt_classes for p in proposals])
            weights = logits.new_ones(self.num_classes + 1)
            weights[-1] = self.background_weight
            loss = F.cross_entropy(logits, classes, weights, reduction="sum")
            factor = self.loss_weight.get("loss_cls", 1.0)
            losses["loss_cls"] = factor * loss / max(len(classes), 1)
        return losses

    @torch.no_grad()
    def targets(self, proposals: list[Instances]) -> RegionTargets:
        """Targets of sampled regions with ``proposal_boxes``, ``gt_classes`` and ``gt_boxes``."""
        classes = cat([p.gt_classes for p in proposals])
        foreground = (classes >= 0) & (classes < self.num_classes)
        boxes = cat([p.proposal_boxes.tensor for p in proposals])[foreground]
        # An image without objects has no gt_boxes; all its regions are background.
        truth = [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
        deltas = self.box2box_transform.get_deltas(boxes, cat(truth)[foreground])
        return RegionTargets(classes, deltas)


def distillable_predictor(predictor: Any, cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """The same predictor as :class:`DistillableBoxPredictor`.

    With its initial weights and without use of the random state, so that a seed gives the same
    network as with Detectron2's own heads.
    """
    with torch.random.fork_rng(devices=[]):
        ours = DistillableBoxPredictor(cfg, input_shape)
    ours.load_state_dict(predictor.state_dict())
    return ours


class DistillableHeads:
    """Mixin of distillable ROI heads, before ROI heads of Detectron2.

    They implement :meth:`_region_features` and :meth:`_predict`.
    """

    box_predictor: DistillableBoxPredictor
    training: bool
    label_and_sample_proposals: Any

    def forward(
        self,
        images: ImageList,
        features: Features,
        proposals: list[Instances],
        targets: Optional[list[Instances]] = None,
    ) -> Any:
        """As Detectron2's: (proposals, losses) in training, (detections, {}) otherwise."""
        if not self.training:
            detectron2_heads: Any = super()
            return detectron2_heads.forward(images, features, proposals, targets)
        assert targets is not None
        losses, regions, _ = self.forward_train(features, proposals, targets)
        return regions.proposals, losses

    def forward_train(
        self, features: Features, proposals: list[Instances], targets: list[Instances]
    ) -> tuple[Losses, RegionOutputs, Optional[IdentityOutputs]]:
        """Sample regions and predict their classes and boxes.

        Returns:
            losses: ``loss_cls``, ``loss_box_reg``, and those of masks, keypoints and identities
                if the heads have them.
            regions: without ``foreground_logits``.
            identities: ``None`` without a re-ID branch.
        """
        proposals = self.label_and_sample_proposals(proposals, targets)
        pooled = self._region_features(features, [p.proposal_boxes for p in proposals])
        logits, deltas = self._predict(pooled)
        wanted = self.box_predictor.targets(proposals)
        regions = RegionOutputs(proposals, logits, deltas, targets=wanted)
        losses = self.box_predictor.losses((logits, deltas), proposals)
        more, identities = self._other_losses(features, proposals, pooled)
        return {**losses, **more}, regions, identities

    def predict_boxes(
        self, features: Features, boxes: list[Boxes]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits (R, K + 1) and box deltas (R, 4 K) of given regions, image after image."""
        return self._predict(self._region_features(features, boxes))

    def _region_features(self, features: Features, boxes: list[Boxes]) -> torch.Tensor:
        """(R, C, H, W) features of regions, shared by the box head and others."""
        raise NotImplementedError

    def _predict(self, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and deltas of :meth:`_region_features`."""
        raise NotImplementedError

    def _other_losses(
        self, features: Features, proposals: list[Instances], pooled: torch.Tensor
    ) -> tuple[Losses, Optional[IdentityOutputs]]:
        """Losses other than those of classes and boxes, and identities if there are any."""
        return {}, None


@ROI_HEADS_REGISTRY.register()
class DistillableROIHeads(DistillableHeads, StandardROIHeads):
    """StandardROIHeads (FPN, C5) for students and teachers; weights and results are the same."""

    @configurable
    def __init__(self, **kwargs: Any) -> None:
        """
        Args:
            kwargs: as ``StandardROIHeads``.

        Raises:
            ValueError: the heads train on predicted boxes, which teachers do not support.
        """
        super().__init__(**kwargs)
        if self.train_on_pred_boxes:
            raise ValueError(
                "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES replaces the regions that student and "
                "teacher share: set it to False"
            )

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        ret: dict[str, Any] = super()._init_box_head(cfg, input_shape)
        shape = ret["box_head"].output_shape
        ret["box_predictor"] = distillable_predictor(ret["box_predictor"], cfg, shape)
        return ret

    def _region_features(self, features: Features, boxes: list[Boxes]) -> torch.Tensor:
        return self.box_pooler([features[name] for name in self.box_in_features], boxes)

    def _predict(self, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.box_predictor(self.box_head(pooled))

    def _other_losses(
        self, features: Features, proposals: list[Instances], pooled: torch.Tensor
    ) -> tuple[Losses, Optional[IdentityOutputs]]:
        losses = self._forward_mask(features, proposals)
        return {**losses, **self._forward_keypoint(features, proposals)}, None


@ROI_HEADS_REGISTRY.register()
class DistillableRes5ROIHeads(DistillableHeads, Res5ROIHeads):
    """Res5ROIHeads (C4) for students and teachers.

    Also of our ResNets of any depth and width, and of networks of ``build_torchvision_backbone``.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        ret: dict[str, Any] = super().from_config(cfg, input_shape)
        predictor = ret["box_predictor"]
        shape = ShapeSpec(channels=predictor.cls_score.in_features, height=1, width=1)
        ret["box_predictor"] = distillable_predictor(predictor, cfg, shape)
        return ret

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Module, int]:
        if cfg.MODEL.BACKBONE.NAME == "build_torchvision_backbone":
            return build_last_stage(cfg)
        if not cfg.MODEL.BACKBONE.NAME.startswith("build_width_resnet"):
            # Detectron2 uses bottleneck blocks at every depth, and so do its weights.
            return super()._build_res5_block(cfg)
        return nn.Sequential(*resnet_stage(cfg, 5)), stage_channels(cfg, 5)

    def _region_features(self, features: Features, boxes: list[Boxes]) -> torch.Tensor:
        return self._shared_roi_transform([features[name] for name in self.in_features], boxes)

    def _predict(self, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.box_predictor(pooled.mean(dim=[2, 3]))

    def _other_losses(
        self, features: Features, proposals: list[Instances], pooled: torch.Tensor
    ) -> tuple[Losses, Optional[IdentityOutputs]]:
        if not self.mask_on:
            return {}, None
        # Masks share res5 with the boxes.
        foreground, masks = select_foreground_proposals(proposals, self.num_classes)
        return self.mask_head(pooled[torch.cat(masks)], foreground), None
