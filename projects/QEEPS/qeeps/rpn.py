"""RPN with a second objectness from the query's features (QRPN)."""

from typing import Any, NamedTuple, Optional

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn
from torch.nn import functional as F

from kd_search.modeling import DistillableRPN
from kd_search.modeling.rpn import per_anchor
from kd_search.outputs import AnchorOutputs
from qeeps.backbone import is_query_guided


class QueryObjectness(nn.Module):
    """Objectness logits of anchors from a feature map whose channels the query weights.

    The query's pooled features pass two linear layers and a sigmoid, which gives the weights, as in
    the squeeze and excitation of Hu et al., CVPR 2018 (second hand). The layers of an RPN's
    objectness, with their initial values, follow.
    """

    def __init__(self, channels: int, num_anchors: int, *, reduction: int):
        """
        Args:
            channels: C of the feature map.
            num_anchors: A of a cell.
            reduction: the hidden layer has C / reduction units, at least one.
        """
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.objectness_logits = nn.Conv2d(channels, num_anchors, kernel_size=1)
        for layer in (self.conv, self.objectness_logits):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, 0)  # type: ignore[arg-type]

    def forward(self, feature: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        """(N, A, H, W) logits from a map (N, C, H, W) and the query's region (N, C, h, w)."""
        hidden = F.relu(self.squeeze(query.mean(dim=(2, 3))))
        weights = torch.sigmoid(self.excite(hidden))[..., None, None]
        logits: torch.Tensor = self.objectness_logits(F.relu(self.conv(feature * weights)))
        return logits


class QueryRegions(NamedTuple):
    """The query of each of N gallery pictures."""

    #: (N, C, h, w) pooled features of the box on the output of the backbone.
    pooled: torch.Tensor
    #: (N,) identity of each, a row of the ID table.
    #: Not at inference.
    person_ids: Any = None


@PROPOSAL_GENERATOR_REGISTRY.register()
class QueryGuidedRPN(DistillableRPN):
    """DistillableRPN whose proposals are ranked by the sum of its objectness and the query's.

    Without a query, and without ``MODEL.QUERY_GUIDED.RPN.ENABLED``, it is the plain one. Deltas and
    their loss are the plain RPN's, and so is the loss of its own objectness.
    """

    #: Set during :meth:`forward_guided`: per level (N, A_l).
    _query_logits: Optional[list[torch.Tensor]] = None

    @configurable
    def __init__(
        self,
        *,
        query_objectness: Optional[QueryObjectness] = None,
        query_loss_weight: float = 1.0,
        **kwargs: Any,
    ):
        """
        Args:
            query_objectness: ``None``: the query has no influence.
            query_loss_weight: factor of ``loss_query_rpn``.
            kwargs: as ``DistillableRPN``.
        """
        super().__init__(**kwargs)
        self.query_objectness = query_objectness
        self.query_loss_weight = query_loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        ret: dict[str, Any] = super().from_config(cfg, input_shape)
        node = cfg.MODEL.QUERY_GUIDED.RPN
        ret["query_loss_weight"] = node.LOSS_WEIGHT
        if node.ENABLED and is_query_guided(cfg):
            (name,) = cfg.MODEL.RPN.IN_FEATURES
            ret["query_objectness"] = QueryObjectness(
                input_shape[name].channels,
                ret["anchor_generator"].num_anchors[0],
                reduction=node.REDUCTION,
            )
        return ret

    def forward_guided(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        query: QueryRegions,
        targets: Optional[list[Instances]] = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor], Optional[AnchorOutputs]]:
        """As :meth:`forward_train`, or without ``targets`` as at inference, with the query.

        In training there is ``loss_query_rpn`` as well: the binary cross-entropy of anchors that
        are sampled like the RPN's own, of which those on the query's person are positive (second
        hand), over as many anchors as the RPN samples.
        """
        if self.query_objectness is None:
            if targets is None:
                return (*self(images, features, None), None)
            return self.forward_train(images, features, targets)
        maps = [features[name] for name in self.in_features]
        logits = [per_anchor(self.query_objectness(x, query.pooled), 1).squeeze(2) for x in maps]
        self._query_logits = logits
        try:
            if targets is None:
                return (*self(images, features, None), None)
            proposals, losses, outputs = self.forward_train(images, features, targets)
        finally:
            self._query_logits = None
        losses["loss_query_rpn"] = self._query_loss(maps, logits, query, targets)
        return proposals, losses, outputs

    def _query_loss(
        self,
        maps: list[torch.Tensor],
        logits: list[torch.Tensor],
        query: QueryRegions,
        targets: list[Instances],
    ) -> torch.Tensor:
        same = [x[x.gt_person_ids == i] for x, i in zip(targets, query.person_ids.tolist())]
        labels, _ = self.label_and_sample_anchors(self.anchor_generator(maps), same)
        sampled = torch.stack(labels)
        chosen = sampled >= 0
        joined = torch.cat(logits, dim=1)[chosen].float()
        loss = F.binary_cross_entropy_with_logits(
            joined, sampled[chosen].to(joined), reduction="sum"
        )
        count = self.batch_size_per_image * len(targets)
        return loss * (self.query_loss_weight / count)

    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        if self._query_logits is not None:
            pred_objectness_logits = [
                own + query for own, query in zip(pred_objectness_logits, self._query_logits)
            ]
        proposals: list[Instances] = super().predict_proposals(
            anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes
        )
        return proposals
