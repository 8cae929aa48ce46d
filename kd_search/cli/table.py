"""Pre-compute the table of a teacher's embeddings (Munjal et al., BMVC 2019).

    kd-search table output/teacher --output id_table.pth
    kd-search table --config-file TEACHER.yaml --weights model_final.pth --output id_table.pth

Two sources: ``mean`` runs the teacher over the ground-truth boxes of DATASETS.TRAIN and averages
the embeddings of each identity; ``oim`` copies the table of the teacher's own OIM loss. A student
uses the file with DISTILLATION.TERMS ["IDTableTerm"] and DISTILLATION.ID_TABLE.PATH.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Optional

from kd_search.cli._arguments import add_network_arguments, command_parser, parse


def get_parser() -> argparse.ArgumentParser:
    parser = command_parser("table", __doc__)
    add_network_arguments(parser)
    parser.add_argument("--output", metavar="FILE", required=True, help="table to write (.pth)")
    parser.add_argument("--source", choices=("mean", "oim"), default="mean", help="default: mean")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse(get_parser(), argv)
    from detectron2.utils.logger import setup_logger

    from kd_search.cli._runs import network_config
    from kd_search.pipeline import build_table
    from kd_search.utils.files import check_writable

    setup_logger(name="kd_search")
    try:
        check_writable(args.output, "--output")
        cfg, weights = network_config(args, eval_only=False)
        table = build_table(cfg, weights, args.source)
        table.save(args.output)
    except (ValueError, OSError) as error:
        print(f"table: {error}", file=sys.stderr)
        return 2
    print(
        f"wrote {args.output}: {len(table.person_ids)} identities of {table.dataset}, "
        f"{table.embedding_dim} numbers each, {len(table.unlabelled)} unlabelled boxes"
    )
    return 0
