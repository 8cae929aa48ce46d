"""Rows of the ablations of VKD (Porrello et al., ECCV 2020), and the runs that train them."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from kd_search.experiments import (
    TEACHER,
    Networks,
    Row,
    Study,
    StudyParser,
    TableLayout,
    build_run_config,
    choose_rows,
    student_runs,
    teacher_opts,
    teacher_run,
)

REPO = Path(__file__).resolve().parent.parent.parent
SETS = {
    name: Networks(
        *(f"projects/VKD/configs/{folder}/{x}_{arch}.yaml" for x in ("student", TEACHER))
    )
    for name, folder, arch in (
        ("market", "market1501", "r18w50"),
        ("market_r18", "market1501", "r18"),
        ("market_mobilenetv2", "market1501", "mobilenetv2"),
        ("generated", "generated", "r18w50"),
    )
}

_LOGITS, _DISTANCES = "ViewLogitsTerm", "DistancePreservationTerm"
_TERMS = "DISTILLATION.TERMS"
_CROSS_ENTROPY = "MODEL.REID_NETWORK.CLS_WEIGHT"
_TRIPLET = "MODEL.REID_NETWORK.TRIPLET_WEIGHT"
_VIEWS = "MODEL.REID_NETWORK.TRAIN_VIEWS"
_SOURCE = "REID_DATA.VIEWS.SOURCE"
_DISTANCE = "DISTILLATION.VKD.LOGITS_DISTANCE"
_START = "DISTILLATION.INIT_FROM_TEACHER"
_UP_TO_RES3 = ["backbone.stem", "backbone.res2", "backbone.res3"]

#: A teacher is a row too: students are compared with the one that taught them.
_TEACHER = Row(TEACHER, main=True, fixed=True)
ALL = "all"
#: Sets of rows. The students of a seed learn from that seed's teacher and are initialised from it.
STUDIES: dict[str, tuple[Row, ...]] = {
    # Which losses: L_CE and L_TR are the student's own ("task"), L_KD and L_DP the terms.
    "terms": (
        _TEACHER,
        Row("task", {_TERMS: []}, main=True),
        Row("task+KD", {_TERMS: [_LOGITS]}),
        Row("task+DP", {_TERMS: [_DISTANCES]}),
        Row("KD+DP", {_TERMS: [_LOGITS, _DISTANCES], _CROSS_ENTROPY: 0.0, _TRIPLET: 0.0}),
        Row("CE+KD+DP", {_TERMS: [_LOGITS, _DISTANCES], _TRIPLET: 0.0}),
        Row("TR+KD+DP", {_TERMS: [_LOGITS, _DISTANCES], _CROSS_ENTROPY: 0.0}),
        Row(ALL, {_TERMS: [_LOGITS, _DISTANCES]}, main=True),
    ),
    # How many of the teacher's views the student sees; "all" has the config's number.
    "views": (_TEACHER, *(Row(f"M={number}", {_VIEWS: number}) for number in (1, 2, 4, 8))),
    # Where the teacher's views come from: viewpoint, or time alone; no camera known; nothing known.
    "sources": (
        _TEACHER,
        Row("cameras", {_SOURCE: "cameras"}),
        Row("tracklets", {_SOURCE: "tracklets"}),
        Row("frames", {_SOURCE: "frames"}),
        Row("one tracklet", {_SOURCE: "tracklet"}),
    ),
    # How the student's logits are compared with the teacher's.
    "logits": (_TEACHER, *(Row(name, {_DISTANCE: name}) for name in ("kl", "mse"))),
    # Which layers are not initialised from the teacher; neck and classifier are in the first only.
    "starts": (
        _TEACHER,
        Row("nothing reinitialized", {_START: ["backbone", "neck", "classifier"]}),
        Row("res5 reinitialized", {_START: [*_UP_TO_RES3, "backbone.res4"]}),
        Row("res4 and res5 reinitialized", {_START: _UP_TO_RES3}),
    ),
}


def study_parser(description: str) -> StudyParser:
    """A parser with ``--study`` and the options of every study."""
    names = dict.fromkeys(row.name for rows in STUDIES.values() for row in rows)
    parser = StudyParser(description, SETS, list(names), "output/vkd")
    parser.add_argument("--study", choices=list(STUDIES), default="terms", help="which rows")
    return parser


def make_study(args: argparse.Namespace) -> Study:
    """A teacher for each seed, and the students that learn from it.

    Raises:
        ValueError, FileNotFoundError: unknown rows, or a wrong config.
    """
    rows: Sequence[Row] = choose_rows(STUDIES[args.study], args.rows)
    cfg = build_run_config(args.student_config, args.opts, args.output)
    teachers = {
        seed: teacher_run(
            args, seed, name=f"{TEACHER}, seed {seed}", folder=f"{TEACHER}/seed{seed}"
        )
        for seed in dict.fromkeys([*args.seeds, *args.main_seeds])
    }
    runs = student_runs(
        args,
        cfg,
        [row for row in rows if row.name != TEACHER],
        lambda row, seed: [*teacher_opts(args, str(teachers[seed].weights)), *row.opts()],
        # Rows of several studies that only repeat values of the config are one student.
        folder_of=lambda row: row.name.replace(" ", "_") if row.changes(cfg) else ALL,
    )
    runs.update({(TEACHER, seed): run for seed, run in teachers.items()})
    return Study(
        args,
        cfg,
        rows,
        {
            (row.name, seed): runs[row.name, seed]
            for seed in teachers
            for row in rows
            if (row.name, seed) in runs
        },
        TableLayout(base=TEACHER, stem=args.study),
        first=list(teachers.values()),
    )
