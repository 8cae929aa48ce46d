"""The query-guided network as one graph of fixed shapes, for ONNX."""

from typing import Any

import torch

from kd_search.export.flat import FlatPersonSearch, pooled
from qeeps.backbone import FEATURE


class FlatQueryGuided(FlatPersonSearch):
    """Detection of people in a gallery picture, and their similarity to a query.

    Equal to ``QueryGuidedRCNN.search``. Both pictures are inputs of one graph: with the gates of
    the paper, all features of the query after the first convolution depend on the gallery picture.
    """

    def forward(  # type: ignore[override]  # a graph with inputs of its own
        self,
        image: torch.Tensor,
        size: torch.Tensor,
        query_image: torch.Tensor,
        query_box: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Detect people and compare them with a query.

        Args:
            image, size: as :class:`FlatPersonSearch`.
            query_image: (3, H', W') uint8, as ``image`` without padding.
            query_box: (1, 4) float32 XYXY in pixels of it.

        Returns:
            boxes (K, 4), scores (K,), embeddings (K, D) and valid (K,) as
            :class:`FlatPersonSearch`; similarities (K,) float32, see
            ``QueryGuidedROIHeads.similarities``, 0 in rows that are not valid; query_embeddings
            (1, D).
        """
        model: Any = self.model
        heads, rpn = model.roi_heads, model.proposal_generator
        # Without padding no size is read, so that the query's needs no input of its own.
        features, query_features = model.backbone.forward_pair(
            self._normalised(image, size), self._normalised(query_image, size)
        )
        region = pooled(heads.pooler, [query_features[FEATURE]], query_box)
        logits = None
        if rpn.query_objectness is not None:
            logits = [rpn.query_objectness(features[name], region) for name in rpn.in_features]
        limit = size.flip(0).repeat(2).float()
        boxes, scores = self._detections(features, limit, *self._proposals(features, limit, logits))
        valid = scores > -torch.inf
        embeddings = self._embeddings(features, boxes, valid)
        wanted = heads.embed_pooled(region)
        return (
            boxes,
            torch.where(valid, scores, 0.0),
            embeddings,
            torch.where(valid, self._similarities(wanted, embeddings), 0.0),
            valid,
            wanted,
        )

    def _similarities(self, query: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
        """(K,) of (1, D) and (K, D), as the heads' ``similarities`` in single precision."""
        model: Any = self.model
        heads = model.roi_heads
        cosine = (query * gallery).sum(dim=1)
        if heads.rank_by == "cosine":
            return cosine
        part = heads.similarity
        probability = part.linear(part.norm((query - gallery).square())).squeeze(1).sigmoid()
        if heads.rank_by == "network":
            return probability
        return probability * (1 + cosine) / 2
