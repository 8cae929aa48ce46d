"""Feature maps that student and teacher can be compared at."""

from collections.abc import Sequence
from typing import NamedTuple

from kd_search.outputs import ModelSpec

_KEY = "DISTILLATION.GLOBAL_KNOWLEDGE.FEATURES"


class SharedLevels(NamedTuple):
    """Feature maps that student and teacher can be compared at, finest first."""

    names: list[str]
    strides: list[int]
    student_channels: list[int]
    teacher_channels: list[int]


def shared_levels(features: Sequence[str], student: ModelSpec, teacher: ModelSpec) -> SharedLevels:
    """The levels that terms with prototypes work on.

    Args:
        features: ``DISTILLATION.GLOBAL_KNOWLEDGE.FEATURES``; empty takes every map of the same name
            and stride in both networks.
        student, teacher: their specifications.

    Raises:
        ValueError: a network is no detector, there is no such map, or one named differs in stride.
    """
    for side, spec in (("student", student), ("teacher", teacher)):
        check_is_detector(side, spec)
        for name in features:
            if name not in spec.features:
                raise ValueError(
                    f"{_KEY}: the {side} has no {name!r}, it has [{', '.join(spec.features)}]"
                )
    common = {
        name: (shape, teacher.features[name])
        for name, shape in student.features.items()
        if name in (features or teacher.features)
    }
    unequal = [name for name, (ours, theirs) in common.items() if ours.stride != theirs.stride]
    if features and unequal:
        ours, theirs = common[unequal[0]]
        raise ValueError(
            f"{_KEY}: {unequal[0]} has stride {ours.stride} in the student and {theirs.stride} in "
            "the teacher: name maps of equal stride"
        )
    pairs = {name: pair for name, pair in common.items() if name not in unequal}
    if not pairs:
        raise ValueError(
            "global knowledge compares feature maps of the same name and stride: the student has "
            f"{_describe(student)}, the teacher {_describe(teacher)}: take a teacher with the "
            "student's kind of backbone"
        )
    names = sorted(pairs, key=lambda name: pairs[name][0].stride)
    return SharedLevels(
        names,
        [pairs[name][0].stride for name in names],
        [pairs[name][0].channels for name in names],
        [pairs[name][1].channels for name in names],
    )


def check_is_detector(side: str, spec: ModelSpec) -> None:
    """Raise ValueError where a network detects no classes, as a re-ID network."""
    if spec.num_classes == 0:
        raise ValueError(
            f"global knowledge needs regions of classes, and the {side} is no detector: drop its "
            "terms from DISTILLATION.TERMS"
        )


def _describe(spec: ModelSpec) -> str:
    shapes = (f"{name} of stride {shape.stride}" for name, shape in spec.features.items())
    return f"[{', '.join(shapes)}]"
