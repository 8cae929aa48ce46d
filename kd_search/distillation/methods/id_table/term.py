"""Distillation by ID table: the teacher's embeddings are the student's classifier."""

from typing import Optional

import torch
from detectron2.config import configurable

from kd_search.data import get_id_map
from kd_search.distillation.methods.id_table.file import IDTableFile
from kd_search.distillation.methods.id_table.refresh import (
    TableRefresh,
    build_table_refresh,
)
from kd_search.distillation.terms import DISTILLATION_TERM_REGISTRY, DistillationTerm
from kd_search.modeling.id_table import IDTable
from kd_search.outputs import Knowledge
from kd_search.utils.collectives import joint_share

MODES = ("frozen", "momentum", "ema")
QUEUES = ("student", "teacher", "off")


@DISTILLATION_TERM_REGISTRY.register()
class IDTableTerm(DistillationTerm):
    """OIM loss against a table that a teacher filled (Munjal et al., BMVC 2019).

    The abstract fixes the table being pre-computed; that it stays frozen is our reading. The
    other modes let its rows follow the student, from the teacher's values on. Set
    ``MODEL.OIM.ENABLED`` to False to put this table in the place of the student's own.
    """

    # No teacher_fields: in a step the table is all there is of the teacher.

    @configurable
    def __init__(
        self,
        *,
        table: IDTable,
        loss_weight: float = 1.0,
        gather_over_ranks: bool = True,
        refresh: Optional[TableRefresh] = None,
    ):
        """
        Args:
            table: filled with the teacher's rows.
            loss_weight: factor of ``loss_id_table``.
            gather_over_ranks: as :class:`~kd_search.modeling.ReIDBranch`, whose loss it replaces.
            refresh: what the rows become every so many iterations; the trainer's hook calls it.
        """
        super().__init__()
        self.table = table
        self.loss_weight = loss_weight
        self.gather_over_ranks = gather_over_ranks
        self.refresh = refresh

    @property
    def teacher_embedding_dim(self) -> int:
        asks = self.refresh is not None and self.refresh.asks_teacher
        return self.table.embedding_dim if asks else 0

    @classmethod
    def from_config(cls, cfg):
        node = cfg.DISTILLATION.ID_TABLE
        if not node.PATH:
            raise ValueError(
                "DISTILLATION.ID_TABLE.PATH is empty: write a table with tools/build_id_table.py"
            )
        if node.MODE not in MODES:
            raise ValueError(f"DISTILLATION.ID_TABLE.MODE {node.MODE!r} must be one of {MODES}")
        if node.QUEUE not in QUEUES:
            raise ValueError(f"DISTILLATION.ID_TABLE.QUEUE {node.QUEUE!r} must be one of {QUEUES}")
        file = IDTableFile.load(node.PATH)
        file.check_fits(
            node.PATH,
            embedding_dim=cfg.MODEL.REID_HEAD.EMBEDDING_DIM,
            num_ids=cfg.MODEL.OIM.NUM_IDS or None,
            person_ids=_training_identities(cfg),
        )
        queue_size = 0 if node.QUEUE == "off" else node.QUEUE_SIZE
        table = IDTable(
            num_ids=file.rows.shape[0],
            queue_size=queue_size,
            embedding_dim=file.embedding_dim,
            temperature=node.TEMPERATURE,
            momentum=node.EMA_MOMENTUM if node.MODE == "ema" else node.MOMENTUM,
            frozen=node.MODE == "frozen",
        )
        fill = node.QUEUE == "teacher" and queue_size > 0
        table.load_rows(file.rows, file.unlabelled[-queue_size:] if fill else None)
        return {
            "table": table,
            "loss_weight": node.LOSS_WEIGHT,
            "gather_over_ranks": cfg.SOLVER.GATHER_OVER_RANKS,
            "refresh": build_table_refresh(cfg, file.rows),
        }

    def forward(
        self, student: Knowledge, teacher: Optional[Knowledge] = None
    ) -> dict[str, torch.Tensor]:
        """``{"loss_id_table": scalar}`` from ``student.embeddings`` and ``student.person_ids``."""
        share = joint_share(student.person_ids >= 0) if self.gather_over_ranks else 1.0
        loss = self.table(student.embeddings, student.person_ids)
        return {"loss_id_table": loss * self.loss_weight * share}


def _training_identities(cfg):
    """Original identities of the training set by row; ``None`` where no set is named."""
    return get_id_map(cfg.DATASETS.TRAIN).to_list() if cfg.DATASETS.TRAIN else None
