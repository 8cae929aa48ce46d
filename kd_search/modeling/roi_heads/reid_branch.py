"""The re-ID branch of ROI heads: a head and, in training, an ID table or a classifier."""

from typing import Any, Optional, Union

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from torch import nn
from torch.nn import functional as F

from kd_search.modeling.id_table import IDTable
from kd_search.modeling.roi_heads.reid_head import build_reid_head
from kd_search.utils.comm import joint_share


class ReIDBranch(nn.Module):
    """Embeddings of regions, and their online instance matching loss (OIM, CVPR 2017)."""

    #: See :func:`kd_search.checkpoint.load_trained`.
    training_parts = ("id_table", "classifier")

    @configurable
    def __init__(
        self,
        *,
        head: nn.Module,
        id_table: Optional[IDTable] = None,
        oim_loss_weight: float = 1.0,
        classifier: Optional["CosineClassifier"] = None,
        classifier_loss_weight: float = 1.0,
        gather_over_ranks: bool = True,
    ):
        """
        Args:
            head: (R, C, H, W) -> (R, D) embeddings, see ``REID_HEAD_REGISTRY``.
            id_table: the student's own table; ``None`` trains without OIM.
            oim_loss_weight: factor of ``loss_oim``.
            classifier: (R, D) -> (R, L) identity logits; ``None`` trains without a classifier.
            classifier_loss_weight: factor of ``loss_identity``.
            gather_over_ranks: weight both losses so that their mean over ranks is the mean over
                the labelled regions of all ranks.
        """
        super().__init__()
        self.head = head
        self.id_table = id_table
        self.oim_loss_weight = oim_loss_weight
        self.classifier = classifier
        self.classifier_loss_weight = classifier_loss_weight
        self.gather_over_ranks = gather_over_ranks

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        table, classifier = None, None
        head = cfg.MODEL.REID_HEAD
        if (cfg.MODEL.OIM.ENABLED or head.CLASSIFIER) and cfg.MODEL.OIM.NUM_IDS < 1:
            raise ValueError(
                "MODEL.OIM.NUM_IDS is 0 and was not resolved: build the config with "
                "kd_search.engine.build_config, or set it to the number of identities"
            )
        if cfg.MODEL.OIM.ENABLED:
            table = IDTable(
                num_ids=cfg.MODEL.OIM.NUM_IDS,
                queue_size=cfg.MODEL.OIM.QUEUE_SIZE,
                embedding_dim=head.EMBEDDING_DIM,
                temperature=cfg.MODEL.OIM.TEMPERATURE,
                momentum=cfg.MODEL.OIM.MOMENTUM,
            )
        embedding_head = build_reid_head(cfg, input_shape)
        if head.CLASSIFIER:
            classifier = CosineClassifier(
                head.EMBEDDING_DIM, cfg.MODEL.OIM.NUM_IDS, cfg.MODEL.OIM.TEMPERATURE
            )
        return {
            "head": embedding_head,
            "id_table": table,
            "oim_loss_weight": cfg.MODEL.OIM.LOSS_WEIGHT,
            "classifier": classifier,
            "classifier_loss_weight": head.CLASSIFIER_WEIGHT,
            "gather_over_ranks": cfg.SOLVER.GATHER_OVER_RANKS,
        }

    @property
    def num_identities(self) -> int:
        """L of :meth:`identity_logits`; 0 without table and classifier."""
        part: Union[IDTable, CosineClassifier, None] = self.classifier or self.id_table
        return 0 if part is None else part.num_ids

    def forward(self, regions: torch.Tensor) -> torch.Tensor:
        """(R, C, H, W) region features to (R, D) L2-normalised embeddings."""
        return self.head(regions)

    def identity_logits(self, embeddings: torch.Tensor) -> Optional[torch.Tensor]:
        """(R, L) logits of the labelled identities, of the classifier or else the ID table."""
        if self.classifier is not None:
            return self.classifier(embeddings)
        if self.id_table is not None:
            return self.id_table.logits(embeddings)[:, : self.id_table.num_ids]
        return None

    def losses(self, embeddings: torch.Tensor, person_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """``loss_oim``, 0 without a table, and with a classifier ``loss_identity``.

        Args:
            embeddings: (P, D) embeddings of foreground regions.
            person_ids: (P,) rows of the table, -1 where unlabelled.
        """
        share = joint_share(person_ids >= 0) if self.gather_over_ranks else 1.0
        if self.id_table is None:
            losses = {"loss_oim": embeddings.sum() * 0.0}
        else:
            loss = self.id_table(embeddings, person_ids)
            losses = {"loss_oim": loss * self.oim_loss_weight * share}
        if self.classifier is not None:
            loss = self.classifier.loss(embeddings, person_ids)
            losses["loss_identity"] = loss * self.classifier_loss_weight * share
        return losses


class CosineClassifier(nn.Module):
    """Identity logits: cosines with a trained direction of each identity, over a temperature."""

    def __init__(self, embedding_dim: int, num_ids: int, temperature: float = 0.1):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_ids, embedding_dim))
        nn.init.normal_(self.weight)
        self.temperature = temperature

    @property
    def num_ids(self) -> int:
        return self.weight.shape[0]

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(R, D) embeddings of length one to (R, L) float32 logits."""
        with torch.autocast(embeddings.device.type, enabled=False):
            directions = F.normalize(self.weight.float(), dim=1)
            return embeddings.float() @ directions.T / self.temperature

    def loss(self, embeddings: torch.Tensor, person_ids: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the labelled rows; 0 on the graph if there are none."""
        labelled = person_ids >= 0
        logits = self(embeddings[labelled])
        loss = F.cross_entropy(logits, person_ids[labelled], reduction="sum")
        return loss / labelled.sum().clamp(min=1)


def foreground_person_ids(foreground: list[Instances], device: torch.device) -> torch.Tensor:
    """(P,) int64 identities of the foreground regions of all images, -1 where unlabelled.

    Raises:
        ValueError: the ground truth has no ``gt_person_ids``.
    """
    ids = [torch.zeros(0, dtype=torch.int64, device=device)]
    for regions in foreground:
        if len(regions) == 0:
            continue
        if not regions.has("gt_person_ids"):
            raise ValueError(
                "the ground truth has no gt_person_ids: load it with PersonSearchDatasetMapper"
            )
        ids.append(regions.gt_person_ids)
    return torch.cat(ids)


def set_embeddings(instances: list[Instances], embeddings: torch.Tensor) -> list[Instances]:
    """Set ``pred_embeddings`` of each image to its share of (R, D) ``embeddings``."""
    if len(instances) == 1:
        # No split: tracing would make the number of detections a constant of the graph.
        instances[0].pred_embeddings = embeddings
        return instances
    counts = [x.pred_boxes.tensor.shape[0] for x in instances]
    for x, part in zip(instances, embeddings.split(counts)):
        x.pred_embeddings = part
    return instances
