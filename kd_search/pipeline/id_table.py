"""Pre-computation of the table of a teacher's embeddings (Munjal et al., BMVC 2019)."""

import torch
from detectron2.config import CfgNode

from kd_search.checkpoint import load_trained
from kd_search.data import build_person_search_table_loader, get_id_map
from kd_search.distillation.methods.id_table import IDTableFile
from kd_search.engine import PersonSearchTrainer, compute_identity_means
from kd_search.utils.files import file_sha256


def build_table(cfg: CfgNode, weights: str, source: str = "mean") -> IDTableFile:
    """Build the table of one teacher.

    Args:
        cfg: config of the teacher; ``DATASETS.TRAIN`` is the training set of the student.
        weights: file of the teacher's weights.
        source: "mean" or "oim".

    Raises:
        ValueError: for the source "oim", if the teacher was trained without a table.
    """
    model = PersonSearchTrainer.build_model(cfg).eval()
    load_trained(model, weights, trust_pickle=cfg.MODEL.TRUST_PICKLE)
    person_ids = get_id_map(cfg.DATASETS.TRAIN).to_list()
    loader = build_person_search_table_loader(cfg, cfg.DATASETS.TRAIN)
    means = compute_identity_means(model, loader, len(person_ids))
    rows, counts = means.rows, means.counts
    if source == "oim":
        table = getattr(model, "id_table", None)
        if table is None or not table.rows.any():
            raise ValueError(f"{weights} has no OIM table of its own: use --source mean")
        rows, counts = table.rows.cpu(), torch.zeros_like(counts)
    return IDTableFile(
        rows=rows,
        counts=counts,
        unlabelled=means.unlabelled,
        person_ids=person_ids,
        source=source,
        dataset=",".join(cfg.DATASETS.TRAIN),
        teacher_sha256=file_sha256(weights),
        teacher_config=cfg.dump(),
    )
