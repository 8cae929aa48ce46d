"""Re-identification of crops and tracklets."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from torch import nn
from torch.nn import functional as F

from kd_search.config.ranges import check_choice
from kd_search.losses import batch_hard_triplet
from kd_search.outputs import (
    IDENTITY_PARTS,
    IdentityOutputs,
    IdentitySpec,
    ModelOutputs,
    ModelSpec,
    Part,
)
from kd_search.utils.comm import join_rows


@META_ARCH_REGISTRY.register()
class ReIDNetwork(nn.Module):
    """Embeddings and identity logits of sets of frames; a crop is a set of one frame.

    As in VKD (Porrello et al., ECCV 2020), the feature of a set is the mean of its frames', the
    triplet loss is computed before the batch normalisation of the neck (BNNeck), and the logits of
    a set are the mean of its frames'. With single crops it is the network of BoT (Luo et al.,
    CVPRW 2019), the kind that DKD (Zhang et al., AAAI 2021) distils.
    """

    #: See :func:`kd_search.checkpoint.load_trained`.
    training_parts = ("classifier",)
    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Any,
        feature: str,
        num_ids: int,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        image_format: str = "BGR",
        label_smoothing: float = 0.0,
        cls_weight: float = 1.0,
        triplet_weight: float = 1.0,
        margin: float = -1.0,
        train_views: int = 0,
        test_embedding: str = "after",
        gather_over_ranks: bool = True,
    ):
        """
        Args:
            backbone: Detectron2 backbone.
            feature: name of the feature map to pool.
            num_ids: L.
            pixel_mean, pixel_std: of the channels in the order of ``image_format``.
            image_format: "BGR" or "RGB".
            label_smoothing: of the cross-entropy.
            cls_weight: of ``loss_reid_cls``.
            triplet_weight: of ``loss_reid_triplet``; 0 for none.
            margin: of the triplet loss; negative for the soft margin.
            train_views: number of frames of each set that :meth:`forward_train` draws; 0 for all.
            test_embedding: "before" or "after" the batch normalisation of the neck.
            gather_over_ranks: with several ranks, compute the losses of the joint batch.

        Raises:
            ValueError: there is no identity, the backbone does not output ``feature``, or
                ``test_embedding`` is unknown.
        """
        super().__init__()
        if num_ids < 1:
            raise ValueError(
                "MODEL.REID_NETWORK.NUM_IDS is 0 and was not resolved: build the config with "
                "kd_search.engine.build_config, or set it to the number of identities"
            )
        check_choice("MODEL.REID_NETWORK.TEST_EMBEDDING", test_embedding, ("before", "after"))
        self.backbone = backbone
        check_choice("MODEL.REID_NETWORK.FEATURE", feature, backbone.output_shape())
        self.feature = feature
        channels = backbone.output_shape()[feature].channels
        self.neck = nn.BatchNorm1d(channels)
        # BNNeck: neither the classifier nor the neck has a bias; the neck's stays zero.
        self.neck.bias.requires_grad_(False)
        self.classifier = nn.Linear(channels, num_ids, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.input_format = image_format
        self.label_smoothing = label_smoothing
        self.cls_weight = cls_weight
        self.triplet_weight = triplet_weight
        self.margin = None if margin < 0 else margin
        self.train_views = train_views
        self.test_embedding = test_embedding
        self.gather_over_ranks = gather_over_ranks

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.MODEL.REID_NETWORK
        return {
            "backbone": build_backbone(cfg),
            "feature": node.FEATURE,
            "num_ids": node.NUM_IDS,
            "pixel_mean": tuple(cfg.MODEL.PIXEL_MEAN),
            "pixel_std": tuple(cfg.MODEL.PIXEL_STD),
            "image_format": cfg.INPUT.FORMAT,
            "label_smoothing": node.LABEL_SMOOTHING,
            "cls_weight": node.CLS_WEIGHT,
            "triplet_weight": node.TRIPLET_WEIGHT,
            "margin": node.MARGIN,
            "train_views": node.TRAIN_VIEWS,
            "test_embedding": node.TEST_EMBEDDING,
            "gather_over_ranks": cfg.SOLVER.GATHER_OVER_RANKS,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def num_ids(self) -> int:
        return self.classifier.out_features

    def spec(self) -> ModelSpec:
        """Feature maps, size of an embedding and number of identities."""
        identities = IdentitySpec(self.classifier.in_features, self.num_ids)
        return ModelSpec(
            features=self.backbone.output_shape(),
            num_classes=0,
            parts=IDENTITY_PARTS,
            image_format=self.input_format,
            identities=identities,
            crops=identities,
        )

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """
        Args:
            batched_inputs: each with ``frames`` (T, 3, H, W), 0..255, T and size alike in a batch;
                in training ``person_id``, the row of an identity or -1.

        Returns:
            In training a dict of scalar losses. Otherwise per sample ``{"embedding": (D,)}``.
        """
        if not self.training:
            return [{"embedding": x} for x in self.embed(self._frames(batched_inputs))]
        return self.forward_train(batched_inputs)[0]

    def forward_train(
        self, batched_inputs: list[dict[str, Any]]
    ) -> tuple[dict[str, torch.Tensor], ModelOutputs]:
        """Losses and outputs of a training batch.

        Returns:
            ``loss_reid_cls`` and ``loss_reid_triplet``, means over labelled samples and over those
            with a triplet, of all ranks with ``gather_over_ranks``; and ``identities`` of this
            rank's batch: embeddings (B, D) before the neck, logits (B, L), ``person_ids`` (B,).
        """
        ids = torch.tensor([x["person_id"] for x in batched_inputs], device=self.device)
        features, logits = self._predict(self._drawn_views(self._frames(batched_inputs)))
        predicted = [features, logits, ids]
        # Without gradients nothing is trained, and other ranks may not make the call.
        if self.gather_over_ranks and torch.is_grad_enabled():
            predicted = join_rows(*predicted)
        losses = self.losses(*predicted)
        return losses, ModelOutputs(identities=IdentityOutputs(features, ids, logits))

    def losses(
        self, features: torch.Tensor, logits: torch.Tensor, person_ids: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Cross-entropy and batch-hard triplet loss of (B, D) features and (B, L) logits."""
        labelled = person_ids >= 0
        count = labelled.sum().clamp(min=1)
        cross_entropy = F.cross_entropy(
            logits[labelled].float(),
            person_ids[labelled],
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        losses = {"loss_reid_cls": self.cls_weight * cross_entropy / count}
        if self.triplet_weight:
            triplet, exists = batch_hard_triplet(features, person_ids, self.margin)
            mean = triplet.sum() / exists.sum().clamp(min=1)
            losses["loss_reid_triplet"] = self.triplet_weight * mean
        return losses

    @torch.no_grad()
    def forward_teacher(
        self, batched_inputs: list[dict[str, Any]], parts: frozenset[Part]
    ) -> ModelOutputs:
        """Identities of a batch as in :meth:`forward`, of all frames and of all parts."""
        features, logits = self._predict(self._frames(batched_inputs))
        return ModelOutputs(identities=IdentityOutputs(features, logits=logits))

    def crop_features(self, crops: torch.Tensor) -> torch.Tensor:
        """(P, D) float32 features of single crops before the neck, the input of :meth:`classify`.

        Args:
            crops: (P, 3, H, W), 0..255, channels in the order of ``INPUT.FORMAT``; P may be 0.
        """
        if len(crops) == 0:
            return self.classifier.weight.new_zeros((0, self.classifier.in_features))
        return self._pooled(crops[:, None])[:, 0]

    def feature_maps(self, crops: torch.Tensor) -> torch.Tensor:
        """(P, D, h, w) float32 maps of crops as in :meth:`crop_features`, which averages them."""
        images = (crops.float() - self.pixel_mean) / self.pixel_std
        return self.backbone(images)[self.feature].float()

    def classify(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(P, D) features of crops to their (P, D) test embeddings and (P, L) identity logits."""
        if len(features) == 0:
            return features, features.new_zeros((0, self.num_ids))
        return self._test_embedding(features), self.classifier(self.neck(features))

    def embed(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, T, 3, H, W) frames to the (B, D) embeddings of a test."""
        return self._test_embedding(self._pooled(frames).mean(dim=1))

    def _test_embedding(self, features: torch.Tensor) -> torch.Tensor:
        return self.neck(features) if self.test_embedding == "after" else features

    def _predict(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, 3, H, W) to features before the neck (B, D) and logits (B, L)."""
        pooled = self._pooled(frames)
        batch, length = pooled.shape[:2]
        logits = self.classifier(self.neck(pooled.flatten(0, 1)))
        return pooled.mean(dim=1), logits.view(batch, length, -1).mean(dim=1)

    def _pooled(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, T, 3, H, W) to (B, T, D), float32."""
        batch, length = frames.shape[:2]
        maps = self.feature_maps(frames.flatten(0, 1))
        return maps.mean(dim=(2, 3)).view(batch, length, -1)

    def _drawn_views(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, T, ...) to (B, M, ...): M random frames of every set, without repetition."""
        batch, length = frames.shape[:2]
        if not 0 < self.train_views < length:
            return frames
        drawn = torch.rand((batch, length)).argsort(dim=1)[:, : self.train_views]
        return frames[torch.arange(batch)[:, None], drawn]

    def _frames(self, batched_inputs: list[dict[str, Any]]) -> torch.Tensor:
        return torch.stack([x["frames"] for x in batched_inputs]).to(self.device)
