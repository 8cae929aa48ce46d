"""Train, evaluate, compare and export a distilled student, from a project to a report.

    kd-search distill DIR

DIR is a folder of kd-search init. Steps: check, teacher, table, student, student_distilled,
evaluate, compare, export, calibrate, report. Each can be interrupted at any time (Ctrl-C, kill -9):
the same command goes on. Finished steps are skipped unless their config or what they were made from
has changed; then a training starts anew, and the earlier one is kept in another folder. Each step
has one line on the console; what is logged is in log.txt of DIR and of each training.

    kd-search distill DIR --seeds 1 2 3           # the spread over trainings of the students
    kd-search distill DIR --terms IDTableTerm HintTerm
    kd-search distill DIR --from student SOLVER.MAX_ITER 900

Exit status: 0 done, 2 bad input, 130 interrupted.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Optional

from kd_search.cli._arguments import add_verbose_argument, command_parser
from kd_search.utils.arguments import add_import_argument

#: A config key: it ends the values of --terms and --seeds.
_KEY = re.compile(r"SEED|OUTPUT_DIR|VIS_PERIOD|[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+")


def get_parser() -> argparse.ArgumentParser:
    parser = command_parser("distill", __doc__)
    parser.add_argument("folder", metavar="DIR", type=Path, help="of kd-search init")
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument("--only", metavar="STEP", default="", help="run this step, also if done")
    steps.add_argument(
        "--from", metavar="STEP", dest="first", default="", help="run this step and those after it"
    )
    parser.add_argument(
        "--terms",
        nargs="+",
        metavar="NAME",
        default=[],
        help="distillation terms (DISTILLATION.TERMS); default: those of "
        "configs/student_distilled.yaml. Others get a folder of their own",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        metavar="N",
        default=[],
        help="train the students with each of these seeds",
    )
    parser.add_argument("--dry-run", action="store_true", help="list the steps and settings")
    add_verbose_argument(parser)
    add_import_argument(parser)
    parser.add_argument(
        "opts",
        nargs="*",
        metavar="KEY VALUE",
        help="overrides of the configs of all three networks, at the end",
    )
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    end = next((i for i, word in enumerate(argv[1:], 1) if _KEY.fullmatch(word)), len(argv))
    args = get_parser().parse_args(argv[:end])
    args.opts += argv[end:]
    if late := [word for word in args.opts if word.startswith("--")]:
        print(f"error: {late[0]} must come before the overrides KEY VALUE", file=sys.stderr)
        return 2
    from kd_search.pipeline.run import run_command
    from kd_search.utils.threads import limit_threads

    limit_threads()
    return run_command(partial(_distillation, args), args.only, args.first, dry_run=args.dry_run)


def _distillation(args: argparse.Namespace) -> Any:
    from kd_search.config import import_modules
    from kd_search.pipeline.console import Console
    from kd_search.pipeline.distill import Distillation
    from kd_search.pipeline.project import Project

    import_modules(args.imports)
    project = Project.open(args.folder)
    return Distillation(
        project,
        args.opts,
        terms=args.terms,
        seeds=args.seeds,
        imports=args.imports,
        console=Console(args.verbose),
    )
