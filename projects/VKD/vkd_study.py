"""What ablate.py trains, and views.py looks at again: a teacher and its students for each seed."""

import argparse
from pathlib import Path

from vkd_rows import STUDIES, student_opts

from kd_search.experiments import (
    TEACHER,
    Networks,
    Run,
    Study,
    TableLayout,
    add_network_options,
    add_run_options,
    build_run_config,
    check_run_options,
    choose_rows,
    facts_of,
    fill_in_set,
    student_runs,
    teacher_run,
)

REPO = Path(__file__).resolve().parent.parent.parent
CONFIGS = "projects/VKD/configs"


def _networks(folder: str, name: str) -> Networks:
    return Networks(
        f"{CONFIGS}/{folder}/student_{name}.yaml", f"{CONFIGS}/{folder}/teacher_{name}.yaml"
    )


SETS = {
    "market": _networks("market1501", "r18w50"),
    "market_r18": _networks("market1501", "r18"),
    "generated": _networks("generated", "r18w50"),
}


def add_study_options(parser: argparse.ArgumentParser) -> None:
    """--set, --study, the two configs, and those of every study."""
    add_network_options(parser, SETS, "market")
    parser.add_argument("--study", choices=list(STUDIES), default="terms", help="which rows")
    names = dict.fromkeys(row.name for rows in STUDIES.values() for row in rows)
    add_run_options(parser, list(names), "output/vkd/ablation_SET")


def complete(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Check the options of :func:`add_study_options`, and fill in what the set says."""
    check_run_options(parser, args)
    fill_in_set(args, SETS, "output/vkd")


def make_study(args: argparse.Namespace) -> Study:
    """A teacher for each seed, and the students that learn from it.

    Args:
        args: of :func:`add_study_options`.

    Raises:
        ValueError, FileNotFoundError: unknown rows, or what is wrong with a config.
    """
    output = args.output.absolute()
    rows = choose_rows(STUDIES[args.study], args.rows)
    student = build_run_config(args.student_config, args.opts, output)
    teachers = _teacher_runs(args)
    runs = {(TEACHER, seed): run for seed, run in teachers.items()}
    runs |= student_runs(
        args,
        student,
        [row for row in rows if row.name != TEACHER],
        lambda row, seed: student_opts(
            row, args.teacher_config, str(teachers[seed].weights), args.teacher_opts
        ),
        # Rows of several studies that only name what the config has are one student.
        folder_of=lambda row: row.name.replace(" ", "_") if row.changes(student) else "all",
    )
    return Study(
        rows=rows,
        runs={(row.name, seed): runs[row.name, seed] for seed in args.seeds for row in rows},
        layout=TableLayout(base=TEACHER, stem=args.study),
        output=output,
        dataset=student.DATASETS.TEST[0],
        first=list(teachers.values()),
        facts=facts_of(args),
    )


def _teacher_runs(args: argparse.Namespace) -> dict[int, Run]:
    return {
        seed: teacher_run(
            args, seed, name=f"{TEACHER}, seed {seed}", folder=f"{TEACHER}/seed{seed}"
        )
        for seed in args.seeds
    }
