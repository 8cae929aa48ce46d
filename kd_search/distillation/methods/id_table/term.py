"""Distillation by ID table: the teacher's embeddings classify the student's."""

from typing import Any, Optional

import torch
from detectron2.config import CfgNode, configurable

from kd_search.config.ranges import check_choice
from kd_search.data import get_id_map
from kd_search.data.person_search.loader import (
    build_person_search_table_loader,
    build_person_search_views_loader,
)
from kd_search.distillation.methods.id_table.file import IDTableFile
from kd_search.distillation.methods.id_table.refresh import TableRefresh, build_table_refresh
from kd_search.distillation.terms import DISTILLATION_TERM_REGISTRY, DistillationTerm
from kd_search.modeling.id_table import IDTable
from kd_search.modeling.identity_means import (
    IdentityMeans,
    IDTableRefreshHook,
    compute_identity_means,
)
from kd_search.outputs import ModelOutputs, ModelSpec, Part
from kd_search.utils.comm import joint_share, unwrap_model


@DISTILLATION_TERM_REGISTRY.register()
class IDTableTerm(DistillationTerm):
    """OIM loss with a table of a teacher's embeddings (Munjal et al., BMVC 2019).

    The abstract states that the table is precomputed; that it stays frozen is our reading. In the
    other modes its rows start with the teacher's values and follow the student. Set
    ``MODEL.OIM.ENABLED`` to False to replace the student's own table by this one.
    """

    student_parts = frozenset({Part.EMBEDDINGS})
    # No teacher_parts: a step needs only the table.

    @configurable
    def __init__(
        self,
        *,
        table: IDTable,
        loss_weight: float = 1.0,
        gather_over_ranks: bool = True,
        refresh: Optional[TableRefresh] = None,
        refresh_period: int = 0,
    ):
        """
        Args:
            table: with the teacher's rows.
            loss_weight: factor of ``loss_id_table``.
            gather_over_ranks: as :class:`~kd_search.modeling.ReIDBranch`, whose loss it replaces.
            refresh: computes new rows every ``refresh_period`` iterations.
            refresh_period: iterations between two refreshes.
        """
        super().__init__()
        self.table = table
        self.loss_weight = loss_weight
        self.gather_over_ranks = gather_over_ranks
        self.refresh = refresh
        self.refresh_period = refresh_period
        self.needs_teacher = refresh is not None and refresh.uses_teacher

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.DISTILLATION.ID_TABLE
        if not node.PATH:
            raise ValueError(
                "DISTILLATION.ID_TABLE.PATH is empty: write a table with kd-search table"
            )
        check_choice("DISTILLATION.ID_TABLE.MODE", node.MODE, ("frozen", "momentum", "ema"))
        check_choice("DISTILLATION.ID_TABLE.QUEUE", node.QUEUE, ("student", "teacher", "off"))
        file = IDTableFile.load(node.PATH)
        sets = cfg.DATASETS.TRAIN
        file.check_fits(
            node.PATH,
            embedding_dim=cfg.MODEL.REID_HEAD.EMBEDDING_DIM,
            num_ids=cfg.MODEL.OIM.NUM_IDS or None,
            person_ids=get_id_map(sets).to_list() if sets else None,
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
            "refresh_period": node.REFRESH_PERIOD,
        }

    def setup(self, student: ModelSpec, teacher: ModelSpec) -> None:
        if not self.needs_teacher:
            return
        has_identities = teacher is not None and teacher.identities is not None
        found = teacher.identities.embedding_dim if has_identities else 0
        if found != self.table.embedding_dim:
            raise ValueError(
                "IDTableTerm: the network of DISTILLATION.TEACHER.CONFIG_FILE has embeddings of "
                f"size {found}, the table of DISTILLATION.ID_TABLE.PATH of size "
                f"{self.table.embedding_dim}: use the teacher that made the table, or set "
                "DISTILLATION.ID_TABLE.REFRESH_SOURCE to 'blend'"
            )

    def forward(
        self, student: ModelOutputs, teacher: Optional[ModelOutputs] = None
    ) -> dict[str, torch.Tensor]:
        """``{"loss_id_table": scalar}`` from ``identities``."""
        embeddings, ids = student.identities.embeddings, student.identities.person_ids
        share = joint_share(ids >= 0) if self.gather_over_ranks else 1.0
        loss = self.table(embeddings, ids)
        return {"loss_id_table": loss * self.loss_weight * share}

    def hooks(self, trainer: Any) -> list[Any]:
        refresh = self.refresh
        if refresh is None:
            return []
        distiller: Any = unwrap_model(trainer.model)

        def build_rows(num_ids: int) -> IdentityMeans:
            if self.needs_teacher:
                loader = build_person_search_views_loader(
                    trainer.cfg, trainer.cfg.DATASETS.TRAIN, seed=trainer.seed, draw=trainer.iter
                )
                network, embed = distiller.teacher.model, distiller.teacher.embed
            else:
                loader = build_person_search_table_loader(trainer.cfg, trainer.cfg.DATASETS.TRAIN)
                network, embed = distiller, None
            means = compute_identity_means(network, loader, num_ids, embed, keep_unlabelled=False)
            rows, counts = refresh(means.rows, means.counts)
            return means._replace(rows=rows, counts=counts)

        tables = {"id_table/IDTableTerm": self.table}
        return [IDTableRefreshHook(self.refresh_period, tables, build_rows)]
