"""The query-guided person search network."""

from dataclasses import replace
from typing import Any, Optional

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import Boxes

from kd_search.modeling import PersonSearchRCNN
from kd_search.outputs import ModelOutputs
from qeeps.backbone import FEATURE, QueryStream
from qeeps.pairs import PairTrainLoader, build_pair_train_loader
from qeeps.rpn import QueryRegions
from qeeps.search import query_guided_search

Batch = list[dict[str, Any]]


@META_ARCH_REGISTRY.register()
class QueryGuidedRCNN(PersonSearchRCNN):
    """PersonSearchRCNN whose detections and embeddings depend on a query's picture and box.

    An independent implementation of QEEPS (Munjal et al., CVPR 2019) from public descriptions.
    Inputs have ``query_image`` ((3, H, W), as ``image``), ``query_boxes`` ((1, 4), XYXY in pixels
    of it) and in training ``query_person_id``. Inputs without a query are pictures paired with
    themselves, without the query's objectness: plain evaluation, ID tables and exporters see a
    PersonSearchRCNN.

    A checkpoint of a plain network, split at the same block or after res4, loads: its parameters
    are renamed, and the gates, the query's objectness and the similarity network keep their initial
    values.
    """

    #: The parts of the network build what a query needs.
    reads_query = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._register_load_state_dict_pre_hook(self._rename_split)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, start_iter: int = 0) -> PairTrainLoader:
        """See :func:`build_pair_train_loader`."""
        return build_pair_train_loader(cfg, start_iter)

    @classmethod
    def evaluate_search(
        cls, cfg: CfgNode, network: Any, dataset_name: str, output_dir: Optional[str] = None
    ) -> dict[str, dict[str, float]]:
        """See :func:`query_guided_search`."""
        return query_guided_search(cfg, network, dataset_name, output_dir)

    def flat_query_guided(self) -> torch.nn.Module:
        """:meth:`search` of one picture with fixed shapes, for ``kd-search export``."""
        from qeeps.flat import FlatQueryGuided  # imports the exporters

        return FlatQueryGuided(self)

    def _rename_split(self, state: dict[str, Any], prefix: str, *_: Any) -> None:
        rename_split(state, prefix, set(self.state_dict()))

    def forward_train(self, batched_inputs: Batch) -> tuple[dict[str, torch.Tensor], ModelOutputs]:
        """Losses and outputs of N pairs; the outputs are those of the gallery pictures.

        Raises:
            ValueError: an input has no query.
        """
        if not all("query_person_id" in x for x in batched_inputs):
            raise ValueError(
                "QueryGuidedRCNN trains on pairs of pictures: use the loader of "
                "build_train_loader()"
            )
        images = self.preprocess_image(batched_inputs)
        targets = [x["instances"].to(self.device) for x in batched_inputs]
        features, query = self._pair_features(images, batched_inputs)
        proposals, losses, anchors = self.proposal_generator.forward_guided(
            images, features, query, targets
        )
        region_losses, regions, identities = self.roi_heads.forward_train_guided(
            features, proposals, targets, query
        )
        logits = self.roi_heads.reid.identity_logits(identities.embeddings)
        identities = replace(identities, logits=logits)
        outputs = ModelOutputs(images, features, anchors, regions, identities, annotated=targets)
        return {**losses, **region_losses}, outputs

    def _pair_features(
        self, images: Any, batched_inputs: Batch
    ) -> tuple[dict[str, torch.Tensor], QueryRegions]:
        queries = self.preprocess_image([{"image": x["query_image"]} for x in batched_inputs])
        features, query_features = self.backbone.forward_pair(images.tensor, queries.tensor)
        boxes = [Boxes(x["query_boxes"].to(self.device)) for x in batched_inputs]
        ids = [x["query_person_id"] for x in batched_inputs]
        return features, QueryRegions(
            self.roi_heads.pool(query_features, boxes), torch.tensor(ids, device=self.device)
        )

    @torch.no_grad()
    def prepare_query(self, image: torch.Tensor, box: torch.Tensor) -> "Query":
        """What :meth:`search` needs of a query.

        Args:
            image: (3, H, W), as in inputs.
            box: (4,) XYXY in pixels of it.
        """
        images = self.preprocess_image([{"image": image}]).tensor
        boxes = [Boxes(box[None].to(self.device))]
        if not self.backbone.query_is_reusable:
            return Query(images, boxes)
        stream = self.backbone.query_stream(images)
        return Query(images, boxes, stream, self.roi_heads.pool(stream.features, boxes))

    @torch.no_grad()
    def search(self, query: "Query", batched_inputs: Batch) -> list[dict[str, Any]]:
        """Detect people in gallery pictures, and compare them with a query.

        Args:
            query: of :meth:`prepare_query`.
            batched_inputs: as for inference, best of one size (see ``QueryGuidedResNet``).

        Returns:
            As :meth:`inference`, with ``pred_similarities`` (N,) of the instances, see
            :meth:`QueryGuidedROIHeads.similarities`, and ``query_embeddings`` (1, D), which may
            depend on the gallery picture.
        """
        images = self.preprocess_image(batched_inputs)
        count = len(batched_inputs)
        if query.stream is not None:
            features = self.backbone.forward_gallery(images.tensor, _repeat(query.stream, count))
            pooled = query.pooled
            wanted = self.roi_heads.embed_pooled(pooled).expand(count, -1)
            pooled = pooled.expand(count, -1, -1, -1)
        else:
            features, query_features = self.backbone.forward_pair(
                images.tensor, query.images.expand(count, -1, -1, -1)
            )
            pooled = self.roi_heads.pool(query_features, query.boxes * count)
            wanted = self.roi_heads.embed_pooled(pooled)
        if "gallery_boxes" in batched_inputs[0]:
            given = [x.to(self.device) for x in self._given_boxes(batched_inputs, images)]
            results = self.roi_heads.forward_with_given_boxes(features, given)
        else:
            proposals, *_ = self.proposal_generator.forward_guided(
                images, features, QueryRegions(pooled)
            )
            results, _ = self.roi_heads(images, features, proposals, None)
        for found, row in zip(results, wanted):
            found.pred_similarities = self.roi_heads.similarities(
                row.expand(len(found), -1), found.pred_embeddings
            )
        outputs = GeneralizedRCNN._postprocess(results, batched_inputs, images.image_sizes)
        return [{**output, "query_embeddings": row[None]} for output, row in zip(outputs, wanted)]


class Query:
    """A query of :meth:`QueryGuidedRCNN.search`.

    ``images`` and ``boxes`` are the network's input; ``stream`` and ``pooled`` are there if they do
    not depend on gallery pictures.
    """

    def __init__(self, images: Any, boxes: list[Boxes], stream: Any = None, pooled: Any = None):
        self.images, self.boxes, self.stream, self.pooled = images, boxes, stream, pooled


def _repeat(stream: QueryStream, count: int) -> QueryStream:
    means = [mean.expand(count, -1) for mean in stream.means]
    return QueryStream(stream.features, means)


def rename_split(state: dict[str, Any], prefix: str, wanted: set[str]) -> None:
    """Give parameters of a network that splits at another block of res4 the names of this one.

    Args:
        state: a state dict; changed in place.
        prefix: of its names.
        wanted: names in this network, without the prefix.
    """
    backbone, heads = f"{prefix}backbone.{FEATURE}.", f"{prefix}roi_heads.res5."
    for name in list(state):
        if not name.startswith((backbone, heads)) or name[len(prefix) :] in wanted:
            continue
        if name.startswith(backbone):
            new = f"{heads}{FEATURE}.{name[len(backbone) :]}"
        elif name.startswith(f"{heads}{FEATURE}."):
            new = f"{backbone}{name[len(heads) + len(FEATURE) + 1 :]}"
        else:
            new = f"{heads}res5.{name[len(heads) :]}"
        if new[len(prefix) :] in wanted:
            state[new] = state.pop(name)
