"""Command-line options that the studies of all projects share."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from kd_search.experiments.rows import Networks


def study_parser(description: str) -> argparse.ArgumentParser:
    """A parser whose help shows the lines of a script's docstring as they stand."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_network_options(
    parser: argparse.ArgumentParser, sets: Mapping[str, Networks], default: str
) -> None:
    """--set, --student-config and --teacher-config: who learns from whom.

    Args:
        parser: of the script.
        sets: what --set can name.
        default: key of ``sets``.
    """
    add = parser.add_argument
    add("--set", choices=sorted(sets), default=default, help="default networks")
    add("--student-config", help="instead of the set's; distilled or plain")
    add("--teacher-config", help="instead of the set's")


def add_run_options(parser: argparse.ArgumentParser, rows: Sequence[str], output: str) -> None:
    """Options that all studies have: --rows, --seeds, --iterations, --output, --jobs, --on-train,
    --opts, and --teacher-opts, --teacher-iterations.

    Args:
        parser: of the script.
        rows: names, for the help.
        output: default folder, for the help.
    """
    add = parser.add_argument
    add("--rows", nargs="+", default=[], metavar="ROW", help=f"of {', '.join(rows)}")
    add("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="SEED")
    add("--iterations", type=int, help="instead of the student's SOLVER.MAX_ITER")
    add("--output", type=Path, help=f"default: {output}")
    add("--jobs", type=int, default=1, help="runs at a time, one core each")
    add("--on-train", action="store_true", help="evaluate on training images too")
    add("--opts", nargs="+", default=[], metavar="X", help="KEY VALUE ... of every student")
    add("--teacher-opts", nargs="+", default=[], metavar="X", help="KEY VALUE ... of the teacher")
    add("--teacher-iterations", type=int, help="instead of the teacher's SOLVER.MAX_ITER")


def check_run_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with a usage error where options of :func:`add_run_options` cannot be."""
    for option, opts in (("--opts", args.opts), ("--teacher-opts", args.teacher_opts)):
        if len(opts) % 2:
            parser.error(f"{option} must be pairs KEY VALUE")
    if args.jobs < 1:
        parser.error("--jobs must be at least 1")


def fill_in_set(args: argparse.Namespace, sets: Mapping[str, Networks], folder: str) -> None:
    """Give options that were not given what --set stands for.

    Args:
        args: of :func:`add_network_options` and :func:`add_run_options`.
        sets: as there.
        folder: that of the project; the study is the folder ``ablation_SET`` in it.
    """
    networks = sets[args.set]
    args.student_config = args.student_config or networks.student
    args.teacher_config = args.teacher_config or networks.teacher
    args.output = args.output or Path(folder) / f"ablation_{args.set}"
