"""Rows of the ablation of DKD (Zhang et al., AAAI 2021) as config overrides.

The paper has such tables, but their numbers could not be recovered.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kd_search.experiments import TermsRow

_PROBABILITY = ("IdentityProbabilityTerm",)
_PAIR = ("PairRelationTerm",)
_TRIPLET = ("TripletRelationTerm",)

#: Which terms teach the student.
TERMS = {
    "none": (),
    "probability": _PROBABILITY,
    "+pair": (*_PROBABILITY, *_PAIR),
    "+triplet": (*_PROBABILITY, *_TRIPLET),
    "all": (*_PROBABILITY, *_PAIR, *_TRIPLET),
}
NONE = "none"


@dataclass(frozen=True)
class Augmentation:
    """Which boxes move: of the crops that the teacher is trained on, of the student's people."""

    name: str
    image_level: bool
    feature_level: bool


AUGMENTATIONS = {
    a.name: a
    for a in (
        Augmentation("no-SIA", False, False),
        Augmentation("ISA", True, False),
        Augmentation("ISA+FSA", True, True),
    )
}


@dataclass(frozen=True)
class DKDRow(TermsRow):
    """A student: which terms teach it, and what moves."""

    #: Key of :data:`TERMS`, whose terms the row has.
    taught: str = NONE
    #: Key of :data:`AUGMENTATIONS`; of no meaning to a student without a teacher.
    augmentation: str = "no-SIA"

    @property
    def folder(self) -> str:
        """Of its runs; the default of a varied key is the row of all terms."""
        if not self.terms:
            return NONE
        varied = f"/{self.name.replace(' ', '_')}" if self.overrides else ""
        return f"{self.augmentation}/{self.taught}{varied}"

    def opts(self) -> list:
        feature_level = AUGMENTATIONS[self.augmentation].feature_level
        return ["DISTILLATION.SIA.FEATURE_LEVEL", feature_level, *super().opts()]


def grid_rows(terms: Sequence[str], augmentations: Sequence[str]) -> list[DKDRow]:
    """Rows of the terms with every augmentation, in the order of :data:`TERMS`.

    A student without a teacher is the same under all of them: there is one such row.

    Raises:
        ValueError: an unknown name.
    """
    for option, names, known in (
        ("--rows", terms, TERMS),
        ("--sia", augmentations, AUGMENTATIONS),
    ):
        for name in names:
            if name not in known:
                raise ValueError(f"{option}: {name!r} is none of {', '.join(known)}")
    rows = []
    for name in [n for n in TERMS if not terms or n in terms]:
        if name == NONE:
            rows.append(DKDRow(NONE))
            continue
        for augmentation in chosen(augmentations):
            row_name = f"{name}, {augmentation}"
            rows.append(DKDRow(row_name, terms=TERMS[name], taught=name, augmentation=augmentation))
    return rows


def chosen(augmentations: Sequence[str]) -> list[str]:
    """Those that are named, in the order of :data:`AUGMENTATIONS`; all where none is."""
    return [name for name in AUGMENTATIONS if not augmentations or name in augmentations]


def sensitivity_rows(
    key: str, values: Sequence[str], default: str, augmentation: str
) -> list[DKDRow]:
    """The student of all terms with several values of one config key.

    Args:
        key: full config key.
        values: as on a command line.
        default: the one of them that the config has: this row is that of all terms.
        augmentation: key of :data:`AUGMENTATIONS`.
    """
    short = key.rsplit(".", 1)[-1]
    return [
        DKDRow(
            f"{short} {value}",
            {} if value == default else {key: value},
            terms=TERMS["all"],
            taught="all",
            augmentation=augmentation,
        )
        for value in values
    ]
