#!/usr/bin/env python
"""Train the rows of Table 4 of Chen et al. (NIPS 2017), several seeds each, and tabulate them.

    python projects/DetectorKD/ablate.py --seeds 1 2 3 --jobs 2
    python projects/DetectorKD/ablate.py --set objects --rows base L2 L2-B all --iterations 400

The teacher is trained first, unless --teacher-weights names one. Every run has a folder of its own
under --output, with its log. Ctrl-C stops all runs with a checkpoint; the same command goes on
from there, and trains nothing twice. More rows and seeds can be asked for later. After each run
ablation.md, ablation.json and ablation.png are written anew.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Optional

from ablation_rows import PAPER, ROWS

from kd_search.experiments import (
    TEACHER,
    Networks,
    Run,
    Study,
    TableLayout,
    add_run_options,
    build_run_config,
    carry_out,
    check_run_options,
    choose_rows,
    schedule,
)

REPO = Path(__file__).resolve().parent.parent.parent
CONFIGS = "projects/DetectorKD/configs"


SETS = {
    "person": Networks(
        f"{CONFIGS}/generated/student_r18w25_fpn64_distilled.yaml",
        f"{CONFIGS}/generated/teacher_r18_fpn64.yaml",
    ),
    "objects": Networks(
        f"{CONFIGS}/objects/student_r18w25_fpn64_distilled.yaml",
        f"{CONFIGS}/objects/teacher_r18_fpn64.yaml",
    ),
}


def parse_args(argv: Optional[list[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", choices=sorted(SETS), default="person", help="default networks")
    parser.add_argument("--student-config", help="instead of the set's; distilled or plain")
    parser.add_argument("--teacher-config", help="instead of the set's")
    parser.add_argument("--teacher-weights", help="a trained teacher; otherwise one is trained")
    add_run_options(parser, [row.name for row in ROWS], "output/detector_kd/ablation_SET")
    parser.add_argument("--teacher-seed", type=int, default=1)
    args = parser.parse_args(argv)
    check_run_options(parser, args)
    args.student_config = args.student_config or SETS[args.set].student
    args.teacher_config = args.teacher_config or SETS[args.set].teacher
    args.output = args.output or Path("output/detector_kd") / f"ablation_{args.set}"
    return args


def make_study(args: argparse.Namespace) -> Study:
    """What the command line asks for: a teacher, and a run for each row and seed.

    Args:
        args: of :func:`parse_args`.

    Raises:
        ValueError, FileNotFoundError: unknown rows, or what is wrong with a config.
    """
    rows, output = choose_rows(ROWS, args.rows), args.output.absolute()
    student = build_run_config(args.student_config, args.opts, output)
    teacher_run = _teacher_run(args, output)
    return Study(
        rows=rows,
        runs=_student_runs(args, rows, student, teacher_run),
        layout=TableLayout(paper=PAPER),
        output=output,
        dataset=student.DATASETS.TEST[0],
        train_dataset=student.DATASETS.TRAIN[0],
        teachers={} if args.teacher_weights else {TEACHER: teacher_run},
        facts={
            "student_config": args.student_config,
            "teacher_config": args.teacher_config,
            "overrides": list(args.opts),
        },
    )


def _teacher_run(args: argparse.Namespace, output: Path) -> Run:
    cfg = build_run_config(args.teacher_config, args.teacher_opts, output)
    opts = [*schedule(cfg, args.teacher_iterations), "SEED", args.teacher_seed, *args.teacher_opts]
    return Run(TEACHER, args.teacher_config, opts, output / TEACHER)


def _student_runs(args: argparse.Namespace, rows, student, teacher: Run) -> dict:
    """By row and seed; all rows of a seed before the next seed."""
    arch = student.MODEL.META_ARCHITECTURE
    arch = student.DISTILLATION.STUDENT_META_ARCH if arch == "Distiller" else arch
    weights = args.teacher_weights or str(teacher.weights)
    runs = {}
    for seed in args.seeds:
        for row in rows:
            overrides = row.student_opts(arch, args.teacher_config, weights)
            if row.terms:
                # After the row's own: the teacher must be built as it was trained.
                overrides += ["DISTILLATION.TEACHER.OPTS", list(args.teacher_opts)]
            opts = [*schedule(student, args.iterations), "SEED", seed, *overrides, *args.opts]
            folder = args.output.absolute() / row.name / f"seed{seed}"
            runs[row.name, seed] = Run(
                f"{row.name}, seed {seed}", args.student_config, opts, folder
            )
    return runs


def main(argv: Optional[list[str]] = None) -> int:
    args = parse_args(argv)
    os.chdir(REPO)
    return carry_out(lambda: make_study(args), jobs=args.jobs, on_train=args.on_train)


if __name__ == "__main__":
    sys.exit(main())
