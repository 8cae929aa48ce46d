"""ROI heads that start inside res4, and their similarity to a query (QSimNet)."""

from collections import OrderedDict
from typing import Any, Optional

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import cat
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.backbone.resnet import CNNBlockBase
from detectron2.modeling.roi_heads import select_foreground_proposals
from detectron2.structures import Boxes, Instances
from torch import nn
from torch.nn import functional as F

from kd_search.config import ConfigError
from kd_search.modeling import PersonSearchRes5ROIHeads
from kd_search.modeling.backbones.resnet import resnet_stage, stage_channels
from kd_search.modeling.roi_heads.reid_branch import foreground_person_ids
from kd_search.outputs import IdentityOutputs
from qeeps.backbone import is_query_guided, split_stage
from qeeps.rpn import QueryRegions

Features = dict[str, torch.Tensor]
_RANK_BY = ("network", "cosine", "product")
_REGIONS = ("people", "all")


class ResNetTail(nn.Module):
    """The blocks of res4 after the split, and res5, on regions.

    Parameters end in the names of the whole network, so that Detectron2's weights load.
    """

    def __init__(self, res4: list[CNNBlockBase], first: int, res5: list[CNNBlockBase]):
        """
        Args:
            res4: the blocks.
            first: number of the first one in res4.
            res5: all blocks.
        """
        super().__init__()
        named = OrderedDict((str(first + i), block) for i, block in enumerate(res4))
        self.res4 = nn.Sequential(named)
        self.res5 = nn.Sequential(*res5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.res5(self.res4(x))
        return result


@ROI_HEADS_REGISTRY.register()
class SplitRes5ROIHeads(PersonSearchRes5ROIHeads):
    """PersonSearchRes5ROIHeads for ``build_split_resnet_backbone``: regions run the rest of res4.

    The network of OIM (Xiao et al., CVPR 2017), which splits there.
    """

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Module, int]:
        if cfg.MODEL.BACKBONE.NAME != "build_split_resnet_backbone":
            raise ConfigError(
                f"MODEL.ROI_HEADS.NAME {cfg.MODEL.ROI_HEADS.NAME} requires MODEL.BACKBONE.NAME "
                f"build_split_resnet_backbone, not {cfg.MODEL.BACKBONE.NAME}"
            )
        first = cfg.MODEL.QUERY_GUIDED.SPLIT_BLOCK
        tail = ResNetTail(split_stage(cfg)[1], first, resnet_stage(cfg, 5))
        return tail, stage_channels(cfg, 5)


class QuerySimilarity(nn.Module):
    """QSimNet: logit of the probability that two embeddings are of one person.

    A linear layer on the batch-normalised squared difference (x_q - x_g)^2 (second hand). One pair
    has no variance: it is normalised as at inference.
    """

    def __init__(self, embedding_dim: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(embedding_dim)
        self.linear = nn.Linear(embedding_dim, 1)

    def forward(self, query: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
        """(P,) float32 logits of P pairs of embeddings (P, D)."""
        with torch.autocast(query.device.type, enabled=False):
            difference = (query.float() - gallery.float()).square()
            norm = self.norm
            if self.training and len(difference) > 1:
                difference = norm(difference)
            else:
                difference = F.batch_norm(
                    difference,
                    norm.running_mean,
                    norm.running_var,
                    norm.weight,
                    norm.bias,
                    eps=norm.eps,
                )
            logits: torch.Tensor = self.linear(difference).squeeze(1)
            return logits


@ROI_HEADS_REGISTRY.register()
class QueryGuidedROIHeads(SplitRes5ROIHeads):
    """SplitRes5ROIHeads that also embed the query and compare regions with it.

    Without a query they are SplitRes5ROIHeads.
    """

    #: Set during :meth:`forward_train_guided`.
    _query: Optional[QueryRegions] = None

    @configurable
    def __init__(
        self,
        *,
        similarity: Optional[QuerySimilarity] = None,
        similarity_loss_weight: float = 1.0,
        similarity_regions: str = "people",
        unlabelled_are_negative: bool = False,
        rank_by: str = "network",
        oim_on_query: bool = True,
        **kwargs: Any,
    ):
        """
        Args:
            similarity: ``None``: a search ranks by the cosine.
            similarity_loss_weight: factor of ``loss_similarity``.
            similarity_regions: "people" or "all" regions have that loss.
            unlabelled_are_negative: as pairs of that loss; otherwise they are left out.
            rank_by: "network", "cosine" or "product", see :meth:`similarities`.
            oim_on_query: the OIM loss is over the embeddings of regions and queries.
            kwargs: as ``SplitRes5ROIHeads``.
        """
        super().__init__(**kwargs)
        node = "MODEL.QUERY_GUIDED.SIMILARITY"
        for key, value, known in (
            ("REGIONS", similarity_regions, _REGIONS),
            ("RANK_BY", rank_by, _RANK_BY),
        ):
            if value not in known:
                raise ConfigError(f"{node}.{key} {value!r} is none of {known}")
        self.similarity: Any = similarity
        self.similarity_loss_weight = similarity_loss_weight
        self.similarity_regions = similarity_regions
        self.unlabelled_are_negative = unlabelled_are_negative
        self.rank_by = rank_by if similarity is not None else "cosine"
        self.oim_on_query = oim_on_query

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Any) -> dict[str, Any]:
        ret: dict[str, Any] = super().from_config(cfg, input_shape)
        node = cfg.MODEL.QUERY_GUIDED
        sim = node.SIMILARITY
        if sim.ENABLED and is_query_guided(cfg):
            ret["similarity"] = QuerySimilarity(cfg.MODEL.REID_HEAD.EMBEDDING_DIM)
        return {
            **ret,
            "similarity_loss_weight": sim.LOSS_WEIGHT,
            "similarity_regions": sim.REGIONS,
            "unlabelled_are_negative": sim.UNLABELLED_ARE_NEGATIVE,
            "rank_by": sim.RANK_BY,
            "oim_on_query": node.OIM_ON_QUERY,
        }

    def pool(self, features: Features, boxes: list[Boxes]) -> torch.Tensor:
        """(R, C, h, w) regions of the backbone's map, the input of the rest of res4."""
        pooled: torch.Tensor = self.pooler([features[name] for name in self.in_features], boxes)
        return pooled

    def embed_pooled(self, pooled: torch.Tensor) -> torch.Tensor:
        """(R, D) embeddings of :meth:`pool`."""
        tail = self.res5 if self.reid_res5 is None else self.reid_res5
        embeddings: torch.Tensor = self.reid(tail(pooled))
        return embeddings

    def forward_train_guided(
        self,
        features: Features,
        proposals: list[Instances],
        targets: list[Instances],
        query: QueryRegions,
    ) -> Any:
        """As :meth:`forward_train`, with the losses of the query."""
        self._query = query
        try:
            return self.forward_train(features, proposals, targets)
        finally:
            self._query = None

    def _other_losses(
        self, features: Features, proposals: list[Instances], pooled: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], IdentityOutputs]:
        query = self._query
        if query is None:
            return super()._other_losses(features, proposals, pooled)
        foreground, masks = select_foreground_proposals(proposals, self.num_classes)
        embeddings = self._embed_foreground(features, foreground, masks, pooled)
        person_ids = foreground_person_ids(foreground, embeddings.device)
        wanted = self.embed_pooled(query.pooled)
        learnt, learnt_ids = embeddings, person_ids
        if self.oim_on_query:
            # One call: a second one would commit the first one's update of the table.
            learnt = torch.cat([embeddings, wanted])
            learnt_ids = torch.cat([person_ids, query.person_ids])
        losses = self.reid.losses(learnt, learnt_ids)
        if self.similarity is not None:
            regions, ids, owner = embeddings, person_ids, [len(p) for p in foreground]
            if self.similarity_regions == "all":
                regions, ids, owner = self._all_regions(features, proposals, pooled)
            of_query = torch.repeat_interleave(
                torch.arange(len(owner), device=ids.device), torch.tensor(owner, device=ids.device)
            )
            losses["loss_similarity"] = self._similarity_loss(
                wanted[of_query], query.person_ids[of_query], regions, ids
            )
        return losses, IdentityOutputs(embeddings, person_ids)

    def _all_regions(
        self, features: Features, proposals: list[Instances], pooled: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """Embeddings of all regions, their identities (-2: background), and how many of each."""
        if self.reid_res5 is None:
            embeddings = self.reid(pooled)
        else:
            embeddings = self.embed(features, [p.proposal_boxes for p in proposals])
        parts = []
        for p in proposals:
            ids = torch.full_like(p.gt_classes, -2)
            is_person = (p.gt_classes >= 0) & (p.gt_classes < self.num_classes)
            if p.has("gt_person_ids"):
                ids[is_person] = p.gt_person_ids[is_person]
            parts.append(ids)
        return embeddings, cat(parts), [len(p) for p in proposals]

    def _similarity_loss(
        self, query: torch.Tensor, query_ids: torch.Tensor, regions: torch.Tensor, ids: torch.Tensor
    ) -> torch.Tensor:
        """Mean binary cross-entropy of pairs (P, D); 0 on the graph if there are none."""
        chosen = ids != -1
        if self.unlabelled_are_negative:
            chosen = torch.ones_like(chosen)
        logits = self.similarity(query[chosen], regions[chosen])
        same = (query_ids == ids)[chosen].to(logits)
        loss = F.binary_cross_entropy_with_logits(logits, same, reduction="sum")
        return loss * (self.similarity_loss_weight / max(len(same), 1))

    def similarities(self, query: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
        """(P,) float64 similarities that a search ranks by, of P pairs of embeddings (P, D).

        "network": probability of one person, 0 to 1. "cosine": -1 to 1. "product": of the
        probability and (1 + cosine) / 2.
        """
        cosine = (query.double() * gallery.double()).sum(dim=1)
        if self.similarity is None or self.rank_by == "cosine":
            return cosine
        probability = torch.sigmoid(self.similarity(query, gallery).double())
        if self.rank_by == "network":
            return probability
        return probability * (1 + cosine) / 2
