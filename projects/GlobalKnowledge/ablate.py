#!/usr/bin/env python
"""Train the rows of an ablation of global knowledge (Tang et al., ECCV 2022), with a table.

    python projects/GlobalKnowledge/ablate.py --seeds 1 2 3 --jobs 2
    python projects/GlobalKnowledge/ablate.py --set retinanet --rows none +weights --iterations 400
    python projects/GlobalKnowledge/ablate.py --start-iterations 600 --iterations 600

Rows: the student alone; feature distillation where all boxes weigh the same; weighted by agreement;
with projections on the prototypes; with soft labels. For person search there is one more, which
--rows has to name: all terms, with prototypes of clusters of identities instead of the one class.
The teacher is trained first, unless
--teacher-weights names one. With --start-iterations the student is first trained alone for that
long, for each seed, and every row continues from there, as in the paper; the row "start" shows it.
"""

import argparse
import sys
from typing import Any, Optional

from kd_search.experiments import (
    TEACHER,
    Networks,
    Row,
    Run,
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
    "prw_c6_mini": Networks(
        f"{CONFIGS}/prw_c6_mini/student_mobilenetv2_fpn.yaml",
        "projects/PersonSearchKD/configs/prw_c6_mini/teacher_mobilenetv2_fpn.yaml",
    ),
}

NONE = "none"
_FEATURE = ("WeightedFeatureTerm",)
_GLOBAL = (*_FEATURE, "GlobalKnowledgeTerm")
_ALL = (*_GLOBAL, "WeightedSoftLabelTerm")
_NODE = "DISTILLATION.GLOBAL_KNOWLEDGE."
_WEIGHTED = f"{_NODE}WEIGHTED"
#: Each row has the terms of the one before and more. The paper has such tables, but their numbers
#: could not be recovered.
ROWS = (
    Row(NONE, main=True),
    Row("feature", {_WEIGHTED: False}, terms=_FEATURE),
    Row("+weights", {_WEIGHTED: True}, terms=_FEATURE),
    Row("+global", {_WEIGHTED: True}, terms=_GLOBAL),
    Row("+soft", {_WEIGHTED: True}, terms=_ALL, main=True),
)
#: About as many prototypes as the one class has in the configs for person search.
IDENTITIES = Row(
    "+soft, identities",
    {
        _WEIGHTED: True,
        f"{_NODE}GROUPS": "identity",
        f"{_NODE}CLUSTERS": 8,
        f"{_NODE}PER_CLASS": 6,
    },
    terms=_ALL,
    main=True,
)
#: The students' common start with --start-iterations.
START = Row("start", main=True, fixed=True)


def parse_args(argv: Optional[list[str]] = None) -> argparse.Namespace:
    names = [row.name for row in (*ROWS, IDENTITIES)]
    parser = StudyParser(__doc__, SETS, names, "output/global_knowledge", one_teacher=True)
    start = "train the student alone before; 0: do not"
    parser.add_argument("--start-iterations", type=int, default=0, help=start)
    args = parser.parse_args(argv)
    if args.start_iterations < 0:
        parser.error("--start-iterations must not be negative")
    return args


def make_study(args: argparse.Namespace) -> Study:
    """A teacher, starts, and a run for each row and seed.

    Raises:
        ValueError, FileNotFoundError: unknown rows, or a wrong config.
    """
    rows = choose_rows((*ROWS, IDENTITIES), args.rows or [row.name for row in ROWS])
    cfg = build_run_config(args.student_config, args.opts, args.output)
    teacher, arch = teacher_run(args, args.teacher_seed), student_arch(cfg)
    weights = args.teacher_weights or str(teacher.weights)
    starts: dict[tuple[str, int], Run] = {}

    def opts_of(row: Row, seed: int) -> list[Any]:
        begin = ["MODEL.WEIGHTS", str(starts[START.name, seed].weights)] if starts else []
        return [*begin, *row.student_opts(arch, args, weights)]

    if args.start_iterations:
        starts = student_runs(args, cfg, [START], opts_of, iterations=args.start_iterations)
    return Study(
        args,
        cfg,
        [START, *rows] if starts else rows,
        {**starts, **student_runs(args, cfg, rows, opts_of)},
        TableLayout(base=NONE),
        teachers={} if args.teacher_weights else {TEACHER: teacher},
        first=list(starts.values()),
        metadata={"start_iterations": args.start_iterations},
    )


main = study_command(parse_args, make_study, __file__)

if __name__ == "__main__":
    sys.exit(main())
