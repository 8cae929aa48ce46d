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

from global_knowledge_rows import NONE, ROWS, START, GlobalKnowledgeRow

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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--set", choices=sorted(SETS), default="objects", help="default networks")
    add("--student-config", help="instead of the set's; distilled or plain")
    add("--teacher-config", help="instead of the set's")
    add("--teacher-weights", help="a trained teacher; otherwise one is trained")
    add_run_options(parser, [row.name for row in ROWS], "output/global_knowledge/ablation_SET")
    add("--teacher-seed", type=int, default=1)
    add("--start-iterations", type=int, default=0, help="train the student alone before; 0: do not")
    args = parser.parse_args(argv)
    check_run_options(parser, args)
    if args.start_iterations < 0:
        parser.error("--start-iterations must not be negative")
    args.student_config = args.student_config or SETS[args.set].student
    args.teacher_config = args.teacher_config or SETS[args.set].teacher
    args.output = args.output or Path("output/global_knowledge") / f"ablation_{args.set}"
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
    teacher_run = _teacher_run(args, output)
    starts = _start_runs(args, student) if args.start_iterations else {}
    shown = [GlobalKnowledgeRow(START), *rows] if starts else rows
    return Study(
        rows=shown,
        runs={**starts, **_student_runs(args, rows, student, teacher_run, starts)},
        layout=TableLayout(base=NONE),
        output=output,
        dataset=student.DATASETS.TEST[0],
        train_dataset=student.DATASETS.TRAIN[0],
        teachers={} if args.teacher_weights else {TEACHER: teacher_run},
        first=list(starts.values()),
        facts={
            "student_config": args.student_config,
            "teacher_config": args.teacher_config,
            "overrides": list(args.opts),
            "start_iterations": args.start_iterations,
        },
    )


def _teacher_run(args: argparse.Namespace, output: Path) -> Run:
    cfg = build_run_config(args.teacher_config, args.teacher_opts, output)
    opts = [*schedule(cfg, args.teacher_iterations), "SEED", args.teacher_seed, *args.teacher_opts]
    return Run(TEACHER, args.teacher_config, opts, output / TEACHER)


def _start_runs(args: argparse.Namespace, student) -> dict[tuple[str, int], Run]:
    """By row and seed: the student alone, that the others go on from."""
    alone = ROWS[0].student_opts(_arch(student), "", "")
    runs = {}
    for seed in args.seeds:
        opts = [*schedule(student, args.start_iterations), "SEED", seed, *alone, *args.opts]
        runs[START, seed] = _run(args, START, seed, opts)
    return runs


def _student_runs(
    args: argparse.Namespace, rows, student, teacher: Run, starts
) -> dict[tuple[str, int], Run]:
    """By row and seed; all rows of a seed before the next seed."""
    weights = args.teacher_weights or str(teacher.weights)
    runs = {}
    for seed in args.seeds:
        begin = ["MODEL.WEIGHTS", str(starts[START, seed].weights)] if starts else []
        for row in rows:
            overrides = row.student_opts(_arch(student), args.teacher_config, weights)
            if row.terms:
                # After the row's own: the teacher must be built as it was trained.
                overrides += ["DISTILLATION.TEACHER.OPTS", list(args.teacher_opts)]
            opts = [*schedule(student, args.iterations), "SEED", seed, *begin, *overrides]
            runs[row.name, seed] = _run(args, row.name, seed, [*opts, *args.opts])
    return runs


def _run(args: argparse.Namespace, row: str, seed: int, opts: list) -> Run:
    folder = args.output.absolute() / row / f"seed{seed}"
    return Run(f"{row}, seed {seed}", args.student_config, opts, folder)


def _arch(student) -> str:
    arch = student.MODEL.META_ARCHITECTURE
    return student.DISTILLATION.STUDENT_META_ARCH if arch == "Distiller" else arch


def main(argv: Optional[list[str]] = None) -> int:
    args = parse_args(argv)
    os.chdir(REPO)
    return carry_out(lambda: make_study(args), jobs=args.jobs, on_train=args.on_train)


if __name__ == "__main__":
    sys.exit(main())
