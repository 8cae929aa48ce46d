"""ROI heads of C4 and FPN person search networks."""

from typing import Any, Optional

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, nonzero_tuple
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.poolers import (
    ROIPooler,
    assign_boxes_to_levels,
    convert_boxes_to_pooler_format,
)
from detectron2.modeling.roi_heads import select_foreground_proposals
from detectron2.structures import Boxes, Instances
from torch import nn

from kd_search.modeling.roi_heads.distillable import (
    DistillableRes5ROIHeads,
    DistillableROIHeads,
    Features,
)
from kd_search.modeling.roi_heads.reid_branch import (
    ReIDBranch,
    foreground_person_ids,
    set_embeddings,
)
from kd_search.outputs import IdentityOutputs


class PersonSearchHeads:
    """Mixin of distillable ROI heads, before them: adds a re-ID branch."""

    reid: ReIDBranch
    num_classes: int

    def embed(self, features: Features, boxes: list[Boxes]) -> torch.Tensor:
        """(R, D) embeddings of given boxes, absolute pixels of the network input, XYXY."""
        raise NotImplementedError

    def forward_with_given_boxes(
        self, features: Features, instances: list[Instances]
    ) -> list[Instances]:
        """Add ``pred_embeddings`` to instances that have ``pred_boxes``."""
        embeddings = self.embed(features, [x.pred_boxes for x in instances])
        return set_embeddings(instances, embeddings)

    def _other_losses(
        self, features: Features, proposals: list[Instances], pooled: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], IdentityOutputs]:
        foreground, masks = select_foreground_proposals(proposals, self.num_classes)
        embeddings = self._embed_foreground(features, foreground, masks, pooled)
        person_ids = foreground_person_ids(foreground, embeddings.device)
        return self.reid.losses(embeddings, person_ids), IdentityOutputs(embeddings, person_ids)

    def _embed_foreground(
        self,
        features: Features,
        foreground: list[Instances],
        masks: list[torch.Tensor],
        pooled: torch.Tensor,
    ) -> torch.Tensor:
        """(P, D) embeddings of the foreground regions.

        Args:
            foreground: foreground regions per image.
            masks: of the sampled regions, per image.
            pooled: (R, C, H, W) features of all sampled regions, as in the box head.
        """
        return self.embed(features, [p.proposal_boxes for p in foreground])


@ROI_HEADS_REGISTRY.register()
class PersonSearchRes5ROIHeads(PersonSearchHeads, DistillableRes5ROIHeads):
    """Detectron2's Res5ROIHeads with a re-ID branch on the output of res5.

    The split res4 | res5 is that of most person search networks since NAE; OIM itself (CVPR 2017)
    splits inside stage 4. Works for every depth and width of ``build_width_resnet_backbone``,
    and for ``build_torchvision_backbone``.
    """

    @configurable
    def __init__(
        self, *, reid: ReIDBranch, reid_res5: Optional[nn.Module] = None, **kwargs: Any
    ) -> None:
        """
        Args:
            reid: the branch; the input of its head is the output of res5.
            reid_res5: a separate res5 for the branch (DKD, AAAI 2021); ``None``: that of detection.
            kwargs: as ``Res5ROIHeads``.
        """
        super().__init__(**kwargs)
        self.reid = reid
        self.reid_res5 = reid_res5

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        ret: dict[str, Any] = super().from_config(cfg, input_shape)
        side = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION // 2
        channels = ret["box_predictor"].cls_score.in_features
        shape = ShapeSpec(channels=channels, height=side, width=side)
        ret["reid"] = ReIDBranch(cfg, shape)
        if cfg.MODEL.REID_HEAD.SEPARATE_RES5:
            ret["reid_res5"] = cls._build_res5_block(cfg)[0]
        return ret

    def _embed_foreground(
        self,
        features: Features,
        foreground: list[Instances],
        masks: list[torch.Tensor],
        pooled: torch.Tensor,
    ) -> torch.Tensor:
        if self.reid_res5 is None:
            # A shared res5 runs once for detection and re-ID.
            return self.reid(pooled[torch.cat(masks)])
        return super()._embed_foreground(features, foreground, masks, pooled)

    def embed(self, features: Features, boxes: list[Boxes]) -> torch.Tensor:
        if self.reid_res5 is None:
            return self.reid(self._region_features(features, boxes))
        pooled = self.pooler([features[name] for name in self.in_features], boxes)
        return self.reid(self.reid_res5(pooled))


@ROI_HEADS_REGISTRY.register()
class PersonSearchROIHeads(PersonSearchHeads, DistillableROIHeads):
    """Detectron2's StandardROIHeads with a re-ID branch.

    The branch has its own pooling of the feature pyramid, at ``MODEL.REID_HEAD.POOLER_RESOLUTION``:
    in training of the sampled foreground regions, at inference of the final boxes.
    """

    @configurable
    def __init__(
        self,
        *,
        reid_in_features: list[str],
        reid_pooler: "RectangularROIPooler",
        reid: ReIDBranch,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            reid_in_features: feature maps of the branch, high resolution first.
            reid_pooler: region pooling of the branch.
            reid: the branch.
            kwargs: as ``StandardROIHeads``.
        """
        super().__init__(**kwargs)
        self.reid_in_features = reid_in_features
        self.reid_pooler = reid_pooler
        self.reid = reid

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        ret: dict[str, Any] = super().from_config(cfg, input_shape)
        head = cfg.MODEL.REID_HEAD
        names = list(head.IN_FEATURES)
        channels = {input_shape[name].channels for name in names}
        if len(channels) != 1:
            raise ValueError(f"MODEL.REID_HEAD.IN_FEATURES {names} differ in channels: {channels}")
        height, width = head.POOLER_RESOLUTION
        ret["reid_in_features"] = names
        ret["reid_pooler"] = RectangularROIPooler(
            output_size=(height, width),
            scales=tuple(1.0 / input_shape[name].stride for name in names),
            sampling_ratio=head.POOLER_SAMPLING_RATIO,
            pooler_type=head.POOLER_TYPE,
        )
        shape = ShapeSpec(channels=channels.pop(), height=height, width=width)
        ret["reid"] = ReIDBranch(cfg, shape)
        return ret

    def embed(self, features: Features, boxes: list[Boxes]) -> torch.Tensor:
        pooled = self.reid_pooler([features[name] for name in self.reid_in_features], boxes)
        return self.reid(pooled)


class RectangularROIPooler(ROIPooler):
    """Detectron2's ROIPooler for outputs that are not square.

    With several levels Detectron2 uses the height as the width as well; re-ID heads pool more rows
    than columns.
    """

    def forward(self, x: list[torch.Tensor], box_lists: list[Boxes]) -> torch.Tensor:
        """
        Args:
            x: feature maps (N, C, H_l, W_l), one per level.
            box_lists: N sets of boxes, absolute pixels of the network input, XYXY.

        Returns:
            (R, C, height, width) for all boxes, image after image.
        """
        boxes = convert_boxes_to_pooler_format(box_lists)
        if len(self.level_poolers) == 1:
            return self.level_poolers[0](x[0], boxes)
        levels = assign_boxes_to_levels(
            box_lists, self.min_level, self.max_level, self.canonical_box_size, self.canonical_level
        )
        output = x[0].new_zeros((boxes.shape[0], x[0].shape[1], *self.output_size))
        for level, pooler in enumerate(self.level_poolers):
            inside = nonzero_tuple(levels == level)[0]
            output.index_put_((inside,), pooler(x[level], boxes[inside]))
        return output
