"""ROI heads of a C4 person search network: boxes and embeddings share res5, as in OIM."""

from typing import Optional

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.structures import Boxes
from torch import nn

from kd_search.modeling.backbones.resnet import stage_channels
from kd_search.modeling.roi_heads.distillable import DistillableRes5ROIHeads
from kd_search.modeling.roi_heads.person_search import PersonSearchHeads
from kd_search.modeling.roi_heads.reid_branch import ReIDBranch


@ROI_HEADS_REGISTRY.register()
class PersonSearchRes5ROIHeads(PersonSearchHeads, DistillableRes5ROIHeads):
    """Detectron2's Res5ROIHeads with a re-ID branch on the output of res5.

    The split res4 | res5 is that of most person search networks since NAE; OIM itself (CVPR 2017)
    splits inside stage 4. Works for every depth and width of ``build_width_resnet_backbone``.
    """

    @configurable
    def __init__(self, *, reid: ReIDBranch, reid_res5: Optional[nn.Module] = None, **kwargs):
        """
        Args:
            reid: head, table and loss of the branch; its head sees the output of res5.
            reid_res5: a res5 of the branch's own, side by side with that of detection (DKD, AAAI
                2021); ``None`` shares one.
            kwargs: as ``Res5ROIHeads``.
        """
        super().__init__(**kwargs)
        self.reid = reid
        self.reid_res5 = reid_res5

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        ret = super().from_config(cfg, input_shape)
        side = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION // 2
        shape = ShapeSpec(channels=stage_channels(cfg, 5), height=side, width=side)
        ret["reid"] = ReIDBranch(cfg, shape)
        if cfg.MODEL.REID_HEAD.SEPARATE_RES5:
            ret["reid_res5"] = cls._build_res5_block(cfg)[0]
        return ret

    def _embed_foreground(self, features, foreground, masks, pooled):
        if self.reid_res5 is None:
            # A shared res5 runs once for both.
            return self.reid(pooled[torch.cat(masks)])
        return self.embed(features, [p.proposal_boxes for p in foreground])

    def embed(self, features: dict[str, torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        """Embeddings (R, D) of given boxes, absolute pixels of the network input, XYXY."""
        if self.reid_res5 is None:
            return self.reid(self._region_features(features, boxes))
        pooled = self.pooler([features[name] for name in self.in_features], boxes)
        return self.reid(self.reid_res5(pooled))
