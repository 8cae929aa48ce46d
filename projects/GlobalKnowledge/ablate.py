#!/usr/bin/env python
"""Train the rows of an ablation of global knowledge (Tang et al., ECCV 2022), with a table.

    python projects/GlobalKnowledge/ablate.py --seeds 1 2 3 --jobs 2
    python projects/GlobalKnowledge/ablate.py --set retinanet --rows none +weights --iterations 400
    python projects/GlobalKnowledge/ablate.py --start-iterations 600 --iterations 600

Rows: the student alone; feature distillation where all boxes weigh the same; weighed by agreement;
with projections on the prototypes; with soft labels. The teacher is trained first, unless
--teacher-weights names one. With --start-iterations the student is then trained alone for so long,
for each seed, and every row goes on from there, as in the paper; the row "start" shows it.

Every run has a folder of its own under --output, with its log. Ctrl-C stops all runs with a
checkpoint; the same command goes on from there, and trains nothing twice. More rows and seeds can
be asked for later. After each run ablation.md, ablation.json and ablation.png are written anew.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Optional

from global_knowledge_rows import NONE, ROWS, START

from kd_search.experiments import (
    TEACHER,
    Networks,
    Run,
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
CONFIGS = "projects/GlobalKnowledge/configs"

SETS = {
    "objects": Networks(
        f"{CONFIGS}/objects/student_r18w25_fpn64_distilled.yaml",
        "projects/DetectorKD/configs/objects/teacher_r18_fpn64.yaml",
    ),
    "retinanet": Networks(
        f"{CONFIGS}/objects/retinanet_student_r18w50_fpn_distilled.yaml",
        "configs/objects/retinanet_teacher_r18_fpn.yaml",
    ),
    "coco128": Networks(
        f"{CONFIGS}/coco128/student_r18w25_fpn64_distilled.yaml",
        f"{CONFIGS}/coco128/teacher_r18_fpn64.yaml",
    ),
    "person": Networks(
        f"{CONFIGS}/generated/student_r18w50_fpn.yaml", "configs/generated/teacher_r18_fpn.yaml"
    ),
    "prw_c6": Networks(
        f"{CONFIGS}/prw_c6/student_r18w50_fpn.yaml", "configs/prw_c6/teacher_r18_fpn.yaml"
    ),
}


def parse_args(argv: Optional[list[str]] = None) -> argparse.Namespace:
    parser = study_parser(__doc__)
    add = parser.add_argument
    add_network_options(parser, SETS, "objects")
    add("--teacher-weights", help="a trained teacher; otherwise one is trained")
    add("--teacher-seed", type=int, default=1)
    add_run_options(parser, [row.name for row in ROWS], "output/global_knowledge/ablation_SET")
    add("--start-iterations", type=int, default=0, help="train the student alone before; 0: do not")
    args = parser.parse_args(argv)
    check_run_options(parser, args)
    if args.start_iterations < 0:
        parser.error("--start-iterations must not be negative")
    fill_in_set(args, SETS, "output/global_knowledge")
    return args


def make_study(args: argparse.Namespace) -> Study:
    """What the command line asks for: a teacher, starts, and a run for each row and seed.

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
    starts = _start_runs(args, student) if args.start_iterations else {}

    def opts_of(row, seed: int) -> list:
        begin = ["MODEL.WEIGHTS", str(starts[START.name, seed].weights)] if starts else []
        return [*begin, *row.student_opts(*taught_by)]

    return Study(
        rows=[START, *rows] if starts else rows,
        runs={**starts, **student_runs(args, student, rows, opts_of)},
        layout=TableLayout(base=NONE),
        output=output,
        dataset=student.DATASETS.TEST[0],
        train_dataset=student.DATASETS.TRAIN[0],
        teachers={} if args.teacher_weights else {TEACHER: teacher},
        first=list(starts.values()),
        facts={**facts_of(args), "start_iterations": args.start_iterations},
    )


def _start_runs(args: argparse.Namespace, student) -> dict[tuple[str, int], Run]:
    """By row and seed: the student alone, that the others go on from."""
    alone = START.student_opts(student_arch(student), "", "")
    length = args.start_iterations
    return student_runs(args, student, [START], lambda row, seed: alone, iterations=length)


def main(argv: Optional[list[str]] = None) -> int:
    args = parse_args(argv)
    os.chdir(REPO)
    return carry_out(lambda: make_study(args), jobs=args.jobs, on_train=args.on_train)


if __name__ == "__main__":
    sys.exit(main())
