"""Rows of the ablations of VKD (Porrello et al., ECCV 2020) as config overrides."""

from collections.abc import Sequence

from kd_search.experiments import TEACHER, Row

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
_TEACHER = Row(TEACHER)
ALL = Row("all", {_TERMS: [_LOGITS, _DISTANCES]})

#: Sets of rows. The students of a seed learn from that seed's teacher and start as it.
STUDIES: dict[str, tuple[Row, ...]] = {
    # Which losses: L_CE and L_TR are the student's own ("task"), L_KD and L_DP the terms.
    "terms": (
        _TEACHER,
        Row("task", {_TERMS: []}),
        Row("task+KD", {_TERMS: [_LOGITS]}),
        Row("task+DP", {_TERMS: [_DISTANCES]}),
        Row("KD+DP", {_TERMS: [_LOGITS, _DISTANCES], _CROSS_ENTROPY: 0.0, _TRIPLET: 0.0}),
        Row("CE+KD+DP", {_TERMS: [_LOGITS, _DISTANCES], _TRIPLET: 0.0}),
        Row("TR+KD+DP", {_TERMS: [_LOGITS, _DISTANCES], _CROSS_ENTROPY: 0.0}),
        ALL,
    ),
    # How many of the teacher's views the student sees; "all" has the config's number.
    "views": (
        _TEACHER,
        Row("M=1", {_VIEWS: 1}),
        Row("M=2", {_VIEWS: 2}),
        Row("M=4", {_VIEWS: 4}),
        Row("M=8", {_VIEWS: 8}),
    ),
    # Where the teacher's views come from: viewpoint, or time alone; no camera known; nothing known.
    "sources": (
        _TEACHER,
        Row("cameras", {_SOURCE: "cameras"}),
        Row("tracklets", {_SOURCE: "tracklets"}),
        Row("frames", {_SOURCE: "frames"}),
        Row("one tracklet", {_SOURCE: "tracklet"}),
    ),
    # How the student's logits are held against the teacher's.
    "logits": (
        _TEACHER,
        Row("kl", {_DISTANCE: "kl"}),
        Row("mse", {_DISTANCE: "mse"}),
    ),
    # What the student has not from its teacher; neck and classifier start anew but in the first.
    "starts": (
        _TEACHER,
        Row("nothing anew", {_START: ["backbone", "neck", "classifier"]}),
        Row("res5 anew", {_START: [*_UP_TO_RES3, "backbone.res4"]}),
        Row("res4 and res5 anew", {_START: _UP_TO_RES3}),
    ),
}


def student_opts(
    row: Row, teacher_config: str, teacher_weights: str, teacher_opts: Sequence[str]
) -> list:
    """KEY VALUE overrides that turn a student's config into a row.

    Args:
        row: one of a student's.
        teacher_config: config file of the teacher.
        teacher_weights: its weights.
        teacher_opts: what it was trained with beyond its file; it must be built so.
    """
    return [
        *("DISTILLATION.TEACHER.CONFIG_FILE", teacher_config),
        *("DISTILLATION.TEACHER.WEIGHTS", teacher_weights),
        *row.opts(),
        *("DISTILLATION.TEACHER.OPTS", list(teacher_opts)),
    ]
