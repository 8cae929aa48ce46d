"""Train a distilled person search model on generated data, and write a report.

    kd-search demo

Generates a data set, trains a teacher, pre-computes its ID table, trains a small student without
and with the table from the same initial weights, evaluates and compares all three, exports and
calibrates the distilled student, and writes metrics.json and report.html. A second call skips
finished steps and resumes an interrupted one. The folder is a project: kd-search distill takes it,
too.

Exit status: 0 done, 2 bad input, 130 interrupted.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Optional

from kd_search.cli._arguments import add_verbose_argument, command_parser


def get_parser() -> argparse.ArgumentParser:
    parser = command_parser("demo", __doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("output/demo"), help="folder (default: output/demo)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of data and networks (default: 1)")
    parser.add_argument("--preset", choices=("demo", "tiny"), default="demo", help="size of all")
    add_verbose_argument(parser)
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = get_parser().parse_args(argv)
    from kd_search.pipeline.run import run_command
    from kd_search.utils.threads import limit_threads

    limit_threads()
    return run_command(partial(_distillation, args))


def _distillation(args: argparse.Namespace) -> Any:
    from kd_search.pipeline.console import Console
    from kd_search.pipeline.demo import demo_project
    from kd_search.pipeline.distill import Distillation

    try:
        project = demo_project(args.output, preset=args.preset, seed=args.seed)
    except ValueError as error:
        raise ValueError(f"{error} (--output)") from None
    return Distillation(project, console=Console(args.verbose))
