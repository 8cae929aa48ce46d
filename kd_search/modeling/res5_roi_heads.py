"""ROI heads of a C4 person search network: boxes and embeddings share res5, as in OIM."""

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import select_foreground_proposals
from detectron2.structures import Boxes, Instances

from kd_search.modeling.backbones.resnet import stage_channels
from kd_search.modeling.distillable_heads import DistillableRes5ROIHeads
from kd_search.modeling.person_search_heads import PersonSearchHeads
from kd_search.modeling.reid_branch import ReIDBranch
from kd_search.structures import Knowledge


@ROI_HEADS_REGISTRY.register()
class PersonSearchRes5ROIHeads(PersonSearchHeads, DistillableRes5ROIHeads):
    """Detectron2's Res5ROIHeads with a re-ID branch on the output of res5.

    The split res4 | res5 is that of most person search networks since NAE; OIM itself (CVPR 2017)
    splits inside stage 4. Works for every depth and width of ``build_width_resnet_backbone``.
    """

    @configurable
    def __init__(self, *, reid: ReIDBranch, **kwargs):
        """
        Args:
            reid: head, table and loss of the branch; its head sees the output of res5.
            kwargs: as ``Res5ROIHeads``.
        """
        super().__init__(**kwargs)
        self.reid = reid

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        ret = super().from_config(cfg, input_shape)
        side = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION // 2
        shape = ShapeSpec(channels=stage_channels(cfg, 5), height=side, width=side)
        ret["reid"] = ReIDBranch(cfg, shape)
        return ret

    def forward_train(
        self,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances],
    ) -> tuple[dict[str, torch.Tensor], Knowledge]:
        """As :meth:`PersonSearchROIHeads.forward_train`; res5 runs once for both branches."""
        proposals = self.label_and_sample_proposals(proposals, targets)
        regions = self._regions(features, [p.proposal_boxes for p in proposals])
        logits, deltas = self.box_predictor(regions.mean(dim=[2, 3]))
        foreground, masks = select_foreground_proposals(proposals, self.num_classes)
        embeddings = self.reid(regions[torch.cat(masks)])
        return self._losses_and_knowledge(proposals, logits, deltas, foreground, embeddings)

    def embed(self, features: dict[str, torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        """Embeddings (R, D) of given boxes, absolute pixels of the network input, XYXY."""
        return self.reid(self._regions(features, boxes))
