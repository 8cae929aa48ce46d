"""The re-ID branch that both kinds of ROI heads carry: a head and, in training, an ID table."""

from typing import Optional

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from torch import nn

from kd_search.modeling.id_table import IDTable
from kd_search.modeling.reid_heads import build_reid_head


class ReIDBranch(nn.Module):
    """Embeddings of regions, and their online instance matching loss (OIM, CVPR 2017)."""

    @configurable
    def __init__(
        self, *, head: nn.Module, id_table: Optional[IDTable] = None, oim_loss_weight: float = 1.0
    ):
        """
        Args:
            head: (R, C, H, W) -> (R, D) embeddings, see ``REID_HEAD_REGISTRY``.
            id_table: the student's own table; ``None`` trains without OIM.
            oim_loss_weight: factor of ``loss_oim``.
        """
        super().__init__()
        self.head = head
        self.id_table = id_table
        self.oim_loss_weight = oim_loss_weight

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        table = None
        if cfg.MODEL.OIM.ENABLED:
            if cfg.MODEL.OIM.NUM_IDS < 1:
                raise ValueError(
                    "MODEL.OIM.NUM_IDS is 0 and was not resolved: call "
                    "kd_search.engine.resolve_num_ids(cfg) or set it to the number of identities"
                )
            table = IDTable(
                num_ids=cfg.MODEL.OIM.NUM_IDS,
                queue_size=cfg.MODEL.OIM.QUEUE_SIZE,
                embedding_dim=cfg.MODEL.REID_HEAD.EMBEDDING_DIM,
                temperature=cfg.MODEL.OIM.TEMPERATURE,
                momentum=cfg.MODEL.OIM.MOMENTUM,
            )
        return {
            "head": build_reid_head(cfg, input_shape),
            "id_table": table,
            "oim_loss_weight": cfg.MODEL.OIM.LOSS_WEIGHT,
        }

    def forward(self, regions: torch.Tensor) -> torch.Tensor:
        """(R, C, H, W) region features to (R, D) L2-normalised embeddings."""
        return self.head(regions)

    def losses(self, embeddings: torch.Tensor, person_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            embeddings: (P, D) embeddings of foreground regions.
            person_ids: (P,) rows of the table, -1 where unlabelled.

        Returns:
            ``{"loss_oim": scalar}``; without a table, the zero that keeps the branch in the graph.
        """
        if self.id_table is None:
            return {"loss_oim": embeddings.sum() * 0.0}
        return {"loss_oim": self.id_table(embeddings, person_ids) * self.oim_loss_weight}


def foreground_person_ids(foreground: list[Instances], device) -> torch.Tensor:
    """Identities of sampled foreground regions.

    Args:
        foreground: per image, regions matched to a person.
        device: where the answer goes.

    Returns:
        (P,) int64, -1 where unlabelled.

    Raises:
        ValueError: if the ground truth carries no ``gt_person_ids``.
    """
    ids = []
    for regions in foreground:
        if len(regions) == 0:
            continue
        if not regions.has("gt_person_ids"):
            raise ValueError(
                "the ground truth has no gt_person_ids: load it with PersonSearchDatasetMapper"
            )
        ids.append(regions.gt_person_ids)
    if not ids:
        return torch.zeros(0, dtype=torch.int64, device=device)
    return torch.cat(ids)


def set_embeddings(instances: list[Instances], embeddings: torch.Tensor) -> list[Instances]:
    """Give each image its share of ``embeddings`` (R, D) as ``pred_embeddings``."""
    if len(instances) == 1:
        # No split: tracing would bake today's number of detections into the graph.
        instances[0].pred_embeddings = embeddings
        return instances
    counts = [x.pred_boxes.tensor.shape[0] for x in instances]
    for x, part in zip(instances, embeddings.split(counts)):
        x.pred_embeddings = part
    return instances
