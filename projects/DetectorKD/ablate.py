#!/usr/bin/env python
"""Train the rows of Table 4 of Chen et al. (NIPS 2017), several seeds each, and tabulate them.

    python projects/DetectorKD/ablate.py --seeds 1 2 3 --jobs 2
    python projects/DetectorKD/ablate.py --set objects --rows base L2 L2-B all --iterations 400

The teacher is trained first, unless --teacher-weights names one.
"""

import argparse
import sys
from dataclasses import dataclass
from typing import Optional

from kd_search.experiments import (
    TEACHER,
    Networks,
    Row,
    Study,
    StudyParser,
    TableLayout,
    build_run_config,
    choose_rows,
    student_arch,
    student_runs,
    study_command,
    teacher_run,
)

CONFIGS = "projects/DetectorKD/configs"
SETS = {
    name: Networks(
        f"{CONFIGS}/{folder}/student_r18w25_fpn64_distilled.yaml",
        f"{CONFIGS}/{folder}/teacher_r18_fpn64.yaml",
    )
    for name, folder in (("person", "generated"), ("objects", "objects"))
}

#: Data sets of the paper's numbers: mAP, VGG-16 teaching the Tucker network.
PAPER = ("PASCAL", "KITTI")
#: Meta-architectures without region heads: the region terms are left out for them.
ONE_STAGE = ("RetinaNet", "DistillableRetinaNet")

_REGRESSION = ("RegionRegressionTerm", "AnchorRegressionTerm")
_CLASSES = ("RegionClassTerm", "AnchorClassTerm")
_HINT = ("HintTerm",)
_L2 = {"DISTILLATION.BOUNDED_REGRESSION.KIND": "l2"}
_L2_B = {"DISTILLATION.BOUNDED_REGRESSION.KIND": "bounded"}
_CLS = {"DISTILLATION.SOFT_LABELS.BACKGROUND_WEIGHT": 1.0}
_CLS_W = {"DISTILLATION.SOFT_LABELS.BACKGROUND_WEIGHT": 1.5}
_HINTS = {"DISTILLATION.HINT.ADAPTATION": False}
_HINTS_A = {"DISTILLATION.HINT.ADAPTATION": True}


@dataclass(frozen=True)
class DetectorRow(Row):
    """A row without the region terms for one-stage students."""

    def terms_for(self, student_arch: str) -> list[str]:
        one_stage = student_arch in ONE_STAGE
        return [term for term in self.terms if not (one_stage and "Region" in term)]


#: The paper's rows, and the two pairs that it leaves out.
ROWS = (
    DetectorRow("base", paper=(54.7, 49.3), main=True),
    DetectorRow("L2", _L2, (54.6, 48.5), _REGRESSION),
    DetectorRow("L2-B", _L2_B, (55.9, 50.1), _REGRESSION),
    DetectorRow("CLS", _CLS, (57.4, 50.8), _CLASSES),
    DetectorRow("CLS-W", _CLS_W, (57.7, 51.3), _CLASSES),
    DetectorRow("Hints", _HINTS, (56.9, 50.3), _HINT),
    DetectorRow("Hints-A", _HINTS_A, (58.0, 52.1), _HINT),
    DetectorRow("L2-B+CLS-W", {**_L2_B, **_CLS_W}, (58.4, 51.7), (*_REGRESSION, *_CLASSES)),
    DetectorRow("CLS-W+Hints-A", {**_CLS_W, **_HINTS_A}, (), (*_CLASSES, *_HINT)),
    DetectorRow("L2-B+Hints-A", {**_L2_B, **_HINTS_A}, (), (*_REGRESSION, *_HINT)),
    DetectorRow(
        "all",
        {**_L2_B, **_CLS_W, **_HINTS_A},
        (59.4, 53.7),
        (*_REGRESSION, *_CLASSES, *_HINT),
        main=True,
    ),
)


def parse_args(argv: Optional[list[str]] = None) -> argparse.Namespace:
    names = [row.name for row in ROWS]
    return StudyParser(__doc__, SETS, names, "output/detector_kd", one_teacher=True).parse_args(
        argv
    )


def make_study(args: argparse.Namespace) -> Study:
    """A teacher, and a run for each row and seed.

    Raises:
        ValueError, FileNotFoundError: unknown rows, or a wrong config.
    """
    rows = choose_rows(ROWS, args.rows)
    cfg = build_run_config(args.student_config, args.opts, args.output)
    teacher, arch = teacher_run(args, args.teacher_seed), student_arch(cfg)
    weights = args.teacher_weights or str(teacher.weights)
    return Study(
        args,
        cfg,
        rows,
        student_runs(args, cfg, rows, lambda row, seed: row.student_opts(arch, args, weights)),
        TableLayout(paper=PAPER),
        teachers={} if args.teacher_weights else {TEACHER: teacher},
    )


main = study_command(parse_args, make_study, __file__)

if __name__ == "__main__":
    sys.exit(main())
