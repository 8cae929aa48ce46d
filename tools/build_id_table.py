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

from detectron2.utils.logger import setup_logger

from kd_search.config import import_modules
from kd_search.engine import build_config
from kd_search.engine.defaults import add_import_argument
from kd_search.pipeline import build_table
from kd_search.utils.files import check_writable


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
