#!/usr/bin/env python
"""Pre-compute the table of a teacher's embeddings (Munjal et al., BMVC 2019).

    python tools/build_id_table.py --config-file TEACHER.yaml --weights model_final.pth \\
        --output id_table.pth

Two sources: ``mean`` runs the teacher over the ground-truth boxes of DATASETS.TRAIN and averages
the embeddings of each identity; ``oim`` copies the table of the teacher's own OIM loss. A student
uses the file with DISTILLATION.TERMS ["IDTableTerm"] and DISTILLATION.ID_TABLE.PATH.
"""
# ruff: noqa: E402

from kd_search.utils.threads import wait_passively

wait_passively()  # before anything imports torch

import argparse
import sys

import torch
from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger

from kd_search.checkpoint import load_trained
from kd_search.config import import_modules
from kd_search.data import build_person_search_table_loader, get_id_map
from kd_search.distillation.methods.id_table import IDTableFile
from kd_search.engine import PersonSearchTrainer, build_config, compute_identity_means
from kd_search.engine.defaults import add_import_argument
from kd_search.utils.files import check_writable, file_sha256


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="config of the teacher")
    parser.add_argument("--weights", required=True, help="weights of the teacher")
    parser.add_argument("--output", required=True, help="table to write (.pth)")
    parser.add_argument("--source", choices=("mean", "oim"), default="mean")
    add_import_argument(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides")
    args = parser.parse_args()
    setup_logger(name="kd_search")
    try:
        check_writable(args.output, "--output")
        import_modules(args.imports)
        cfg = build_config(args.config_file, args.opts)
        table = build_table(cfg, args.weights, args.source)
        table.save(args.output)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(
        f"wrote {args.output}: {len(table.person_ids)} identities of {table.dataset}, "
        f"{table.embedding_dim} numbers each, {len(table.unlabelled)} unlabelled boxes"
    )


if __name__ == "__main__":
    main()
