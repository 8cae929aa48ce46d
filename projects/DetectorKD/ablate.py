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
    Study,
    TableLayout,
    add_network_options,
    add_run_options,
    build_run_config,
    carry_out,
    check_run_options,
    choose_rows,
    facts_of,
    fill_in_set,
    student_arch,
    student_runs,
    study_parser,
    teacher_run,
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
    parser = study_parser(__doc__)
    add_network_options(parser, SETS, "person")
    parser.add_argument("--teacher-weights", help="a trained teacher; otherwise one is trained")
    parser.add_argument("--teacher-seed", type=int, default=1)
    add_run_options(parser, [row.name for row in ROWS], "output/detector_kd/ablation_SET")
    args = parser.parse_args(argv)
    check_run_options(parser, args)
    fill_in_set(args, SETS, "output/detector_kd")
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
    teacher = teacher_run(args, args.teacher_seed)
    weights = args.teacher_weights or str(teacher.weights)
    taught_by = (student_arch(student), args.teacher_config, weights, args.teacher_opts)
    return Study(
        rows=rows,
        runs=student_runs(args, student, rows, lambda row, seed: row.student_opts(*taught_by)),
        layout=TableLayout(paper=PAPER),
        output=output,
        dataset=student.DATASETS.TEST[0],
        train_dataset=student.DATASETS.TRAIN[0],
        teachers={} if args.teacher_weights else {TEACHER: teacher},
        facts=facts_of(args),
    )


def main(argv: Optional[list[str]] = None) -> int:
    args = parse_args(argv)
    os.chdir(REPO)
    return carry_out(lambda: make_study(args), jobs=args.jobs, on_train=args.on_train)


if __name__ == "__main__":
    sys.exit(main())
