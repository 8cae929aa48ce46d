#!/usr/bin/env python
"""Train students with the regression terms of Chen et al. (NIPS 2017) alone, by two teachers.

    python projects/DetectorKD/bound.py --candidates projects/DetectorKD/candidates.yaml

Does the bound help? The paper's argument: box deltas are unbounded, so a teacher that is wrong
misleads a student that is pulled towards it, and the bound protects from that. Therefore one of
the two teachers is noisy: the same network, trained for --noisy-iterations. Rows: the student
alone; pulled to the teacher (L2) or bounded by it (L2-B), by each of the teachers; and with the
same loss to the ground truth everywhere (truth), which is L2-B without its bound.
"""

import argparse
import sys
from dataclasses import dataclass
from typing import Optional

from kd_search.experiments import (
    BASE,
    Networks,
    Row,
    Study,
    StudyParser,
    TableLayout,
    build_run_config,
    choose_rows,
    schedule,
    student_arch,
    student_runs,
    study_command,
    teacher_run,
)

CONFIGS = "projects/DetectorKD/configs"
SETS = {
    "person": Networks(
        f"{CONFIGS}/generated_mini/student_r18w25_fpn64_distilled.yaml",
        f"{CONFIGS}/generated_mini/teacher_r18_fpn64.yaml",
    )
}
GOOD, NOISY = "teacher", "noisy teacher"
_TERMS = ("RegionRegressionTerm", "AnchorRegressionTerm")
_KEYS = "DISTILLATION.BOUNDED_REGRESSION."
_L2 = {f"{_KEYS}KIND": "l2"}
_L2_B = {f"{_KEYS}KIND": "bounded"}
# A margin that no student reaches: the loss of every positive counts.
_TRUTH = {**_L2_B, f"{_KEYS}REGION_MARGIN": 1e9, f"{_KEYS}ANCHOR_MARGIN": 1e9}


@dataclass(frozen=True)
class BoundRow(Row):
    #: Which of the teachers.
    teacher: str = GOOD


ROWS = (
    BoundRow(BASE, main=True),
    BoundRow("L2", _L2, terms=_TERMS, main=True),
    BoundRow("L2-B", _L2_B, terms=_TERMS, main=True),
    BoundRow("L2 noisy", _L2, terms=_TERMS, main=True, teacher=NOISY),
    BoundRow("L2-B noisy", _L2_B, terms=_TERMS, main=True, teacher=NOISY),
    BoundRow("truth", _TRUTH, terms=_TERMS, main=True),
)


def parse_args(argv: Optional[list[str]] = None) -> argparse.Namespace:
    names = [row.name for row in ROWS]
    parser = StudyParser(__doc__, SETS, names, "output/detector_kd/bound")
    parser.add_argument("--teacher-seed", type=int, default=1)
    parser.add_argument("--noisy-iterations", type=int, default=120, help="of the noisy teacher")
    return parser.parse_args(argv)


def make_study(args: argparse.Namespace) -> Study:
    """Two teachers, and a run for each row and seed.

    Raises:
        ValueError, FileNotFoundError: unknown rows, or a wrong config.
    """
    rows = choose_rows(ROWS, args.rows)
    cfg = build_run_config(args.student_config, args.opts, args.output)
    of_teacher = build_run_config(args.teacher_config, args.teacher_opts, args.output)
    short = schedule(of_teacher, args.noisy_iterations)
    teachers = {
        GOOD: teacher_run(args, args.teacher_seed),
        NOISY: teacher_run(args, args.teacher_seed, name=NOISY, folder="noisy_teacher", opts=short),
    }
    arch = student_arch(cfg)
    return Study(
        args,
        cfg,
        rows,
        student_runs(
            args,
            cfg,
            rows,
            lambda row, seed: row.student_opts(arch, args, str(teachers[row.teacher].weights)),
        ),
        # Boxes are what is learned: AP over all thresholds first.
        TableLayout(("AP", "AP50", "AP75"), stem="bound"),
        teachers=teachers,
    )


main = study_command(parse_args, make_study, __file__)

if __name__ == "__main__":
    sys.exit(main())
