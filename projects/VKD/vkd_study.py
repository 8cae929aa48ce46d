"""Rows of the ablations of VKD (Porrello et al., ECCV 2020), and the runs that train them."""

import argparse
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    student_runs,
    teacher_opts,
    teacher_run,
)

REPO = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class CrossNetworks(Networks):
    """A student and a teacher of another architecture."""

    #: Stage 1 of the student's own architecture, which the student starts from.
    own: str


_CONFIGS = "projects/VKD/configs"
SETS = {
    name: Networks(*(f"{_CONFIGS}/{folder}/{x}_{arch}.yaml" for x in ("student", TEACHER)))
    for name, folder, arch in (
        ("market", "market1501", "r18w50"),
        ("market_r18", "market1501", "r18"),
        ("market_mobilenetv2", "market1501", "mobilenetv2"),
        ("generated", "generated", "r18w50"),
    )
}
CROSS_SETS = {
    "market_cross": CrossNetworks(
        f"{_CONFIGS}/market1501/student_r18w50_from_mobilenetv2.yaml",
        f"{_CONFIGS}/market1501/teacher_mobilenetv2.yaml",
        f"{_CONFIGS}/market1501/teacher_r18w50.yaml",
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
ALL, CROSS = "all", "cross"
#: The student's own stage 1, and the student that learns from it.
OWN, _SELF = Row("own stage 1", main=True, fixed=True), Row("self", main=True)
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
    # "backbone kept" is what the authors' code does with a MobileNet-V2; res5 is a ResNet's.
    "starts": (
        _TEACHER,
        Row("nothing reinitialized", {_START: ["backbone", "neck", "classifier"]}),
        Row("task, backbone kept", {_START: ["backbone"], _TERMS: []}),
        Row("all, backbone kept", {_START: ["backbone"]}),
        Row("res5 reinitialized", {_START: [*_UP_TO_RES3, "backbone.res4"]}),
        Row("res4 and res5 reinitialized", {_START: _UP_TO_RES3}),
    ),
    # Whom the student learns from: nobody, its own stage 1, the other network. All start alike.
    CROSS: (
        _TEACHER,
        OWN,
        Row("task", {_TERMS: []}, main=True),
        _SELF,
        Row("cross", main=True),
    ),
}


def study_parser(description: str) -> StudyParser:
    """A parser with ``--study`` and the options of every study."""
    names = dict.fromkeys(row.name for rows in STUDIES.values() for row in rows)
    parser = StudyParser(description, {**SETS, **CROSS_SETS}, list(names), "output/vkd")
    parser.add_argument("--study", choices=list(STUDIES), default="terms", help="which rows")
    parser.add_argument("--own-iterations", type=int, help=f"of {OWN.name!r}, in --study {CROSS}")
    return parser


def make_study(args: argparse.Namespace) -> Study:
    """A teacher for each seed, and the students that learn from it.

    Raises:
        ValueError, FileNotFoundError: unknown rows, or a wrong config; or a set that is not for
            the study.
    """
    if (args.set in CROSS_SETS) != (args.study == CROSS):
        raise ValueError(f"--study {CROSS} goes with --set {' or '.join(CROSS_SETS)} alone")
    rows: Sequence[Row] = choose_rows(STUDIES[args.study], args.rows)
    cfg = build_run_config(args.student_config, args.opts, args.output)
    seeds = list(dict.fromkeys([*args.seeds, *args.main_seeds]))
    teachers = _stage_1(args, seeds, TEACHER)
    own_args = copy.copy(args)
    own: dict[int, Run] = {}
    if args.study == CROSS:
        own_args.teacher_config = CROSS_SETS[args.set].own
        own_args.teacher_iterations = args.own_iterations
        own = _stage_1(own_args, seeds, OWN.name)

    def opts_of(row: Row, seed: int) -> list[Any]:
        start = ["MODEL.WEIGHTS", str(own[seed].weights)] if own else []
        if row is _SELF:
            return [*start, *teacher_opts(own_args, str(own[seed].weights)), *row.opts()]
        return [*start, *teacher_opts(args, str(teachers[seed].weights)), *row.opts()]

    # Rows of several studies that only repeat values of the config are one student.
    def folder_of(row: Row) -> str:
        return row.name.replace(" ", "_") if own or row.changes(cfg) else ALL

    students = [row for row in rows if not row.fixed]
    runs = student_runs(args, cfg, students, opts_of, folder_of=folder_of)
    for row, first in ((TEACHER, teachers), (OWN.name, own)):
        runs.update({(row, seed): run for seed, run in first.items()})
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
        TableLayout(base=OWN.name if own else TEACHER, stem=args.study),
        first=[*teachers.values(), *own.values()],
    )


def _stage_1(args: argparse.Namespace, seeds: Sequence[int], name: str) -> dict[int, Run]:
    folder = name.replace(" ", "_")
    return {
        seed: teacher_run(args, seed, name=f"{name}, seed {seed}", folder=f"{folder}/seed{seed}")
        for seed in seeds
    }
