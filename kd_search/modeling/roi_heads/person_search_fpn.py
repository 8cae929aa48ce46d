"""ROI heads of an FPN person search network: boxes and embeddings, each with its own pooling."""

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.structures import Boxes

from kd_search.modeling.roi_heads.distillable import DistillableROIHeads
from kd_search.modeling.roi_heads.person_search import PersonSearchHeads
from kd_search.modeling.roi_heads.poolers import RectangularROIPooler
from kd_search.modeling.roi_heads.reid_branch import ReIDBranch


@ROI_HEADS_REGISTRY.register()
class PersonSearchROIHeads(PersonSearchHeads, DistillableROIHeads):
    """Detectron2's StandardROIHeads with a re-ID branch.

    The branch pools the feature pyramid itself, at ``MODEL.REID_HEAD.POOLER_RESOLUTION``: in
    training around the sampled foreground regions, at inference around the final boxes.
    """

    @configurable
    def __init__(
        self,
        *,
        reid_in_features: list[str],
        reid_pooler: RectangularROIPooler,
        reid: ReIDBranch,
        **kwargs,
    ):
        """
        Args:
            reid_in_features: feature maps that the branch pools from, high resolution first.
            reid_pooler: region pooling of the branch.
            reid: head, table and loss of the branch.
            kwargs: as ``StandardROIHeads``.
        """
        super().__init__(**kwargs)
        self.reid_in_features = reid_in_features
        self.reid_pooler = reid_pooler
        self.reid = reid

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        ret = super().from_config(cfg, input_shape)
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

    def _embed_foreground(self, features, foreground, masks, pooled):
        return self.embed(features, [p.proposal_boxes for p in foreground])

    def embed(self, features: dict[str, torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        """Embeddings (R, D) of given boxes, absolute pixels of the network input, XYXY."""
        pooled = self.reid_pooler([features[name] for name in self.reid_in_features], boxes)
        return self.reid(pooled)
