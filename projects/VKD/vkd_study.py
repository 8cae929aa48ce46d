"""What ablate.py trains, and views.py looks at again: a teacher and its students for each seed."""

import argparse
from pathlib import Path

from vkd_rows import STUDIES, student_opts

from kd_search.experiments import (
    TEACHER,
    Networks,
    Row,
    Run,
    Study,
    TableLayout,
    add_run_options,
    build_run_config,
    check_run_options,
    choose_rows,
    schedule,
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
    add = parser.add_argument
    add("--set", choices=sorted(SETS), default="market", help="default networks")
    add("--study", choices=list(STUDIES), default="terms", help="which rows")
    add("--student-config", help="instead of the set's")
    add("--teacher-config", help="instead of the set's")
    names = dict.fromkeys(row.name for rows in STUDIES.values() for row in rows)
    add_run_options(parser, list(names), "output/vkd/ablation_SET")


def complete(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Check the options of :func:`add_study_options`, and fill in what the set says."""
    check_run_options(parser, args)
    args.student_config = args.student_config or SETS[args.set].student
    args.teacher_config = args.teacher_config or SETS[args.set].teacher
    args.output = args.output or Path("output/vkd") / f"ablation_{args.set}"


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
    teachers = _teacher_runs(args, output)
    runs = {}
    for seed in args.seeds:
        for row in rows:
            is_teacher = row.name == TEACHER
            run = teachers[seed] if is_teacher else _student_run(args, row, seed, student, teachers)
            runs[row.name, seed] = run
    return Study(
        rows=rows,
        runs=runs,
        layout=TableLayout(base=TEACHER, stem=args.study),
        output=output,
        dataset=student.DATASETS.TEST[0],
        first=list(teachers.values()),
        facts={
            "student_config": args.student_config,
            "teacher_config": args.teacher_config,
            "overrides": list(args.opts),
            "teacher_overrides": list(args.teacher_opts),
        },
    )


def _teacher_runs(args: argparse.Namespace, output: Path) -> dict[int, Run]:
    cfg = build_run_config(args.teacher_config, args.teacher_opts, output)
    opts = [*schedule(cfg, args.teacher_iterations), *args.teacher_opts]
    return {
        seed: Run(
            f"{TEACHER}, seed {seed}",
            args.teacher_config,
            [*opts, "SEED", seed],
            output / TEACHER / f"seed{seed}",
        )
        for seed in args.seeds
    }


def _student_run(args, row: Row, seed: int, student, teachers: dict[int, Run]) -> Run:
    # Rows of several studies that only name what the config has are one student.
    name = row.name.replace(" ", "_") if row.changes(student) else "all"
    opts = [*schedule(student, args.iterations), "SEED", seed]
    opts += student_opts(row, args.teacher_config, str(teachers[seed].weights))
    opts += ["DISTILLATION.TEACHER.OPTS", list(args.teacher_opts), *args.opts]
    folder = args.output.absolute() / name / f"seed{seed}"
    return Run(f"{row.name}, seed {seed}", args.student_config, opts, folder)
