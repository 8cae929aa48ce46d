"""Distillation terms that the teacher of a project can teach."""

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode

from kd_search.distillation.companions import build_companions, companions_of
from kd_search.distillation.terms import DISTILLATION_TERM_REGISTRY, build_terms
from kd_search.modeling import build_distillable
from kd_search.outputs import names_of

ID_TABLE_TERM = "IDTableTerm"
#: All terms of Chen et al. (NIPS 2017).
DETECTOR_TERMS = (
    "RegionClassTerm",
    "AnchorClassTerm",
    "RegionRegressionTerm",
    "AnchorRegressionTerm",
    "HintTerm",
)
_REID_TEACHER = "ReIDTeacher"


def method_keys(
    terms: Sequence[str], table: str, teacher_config: str, teacher_weights: str
) -> list[Any]:
    """KEY VALUE overrides of the distilled student for these terms.

    With the term of the ID table the student has no table of its own; otherwise it has its OIM
    loss.

    Args:
        terms: names of registered terms.
        table: file of the ID table.
        teacher_config, teacher_weights: of the teacher.
    """
    by_table = ID_TABLE_TERM in terms
    keys: list[Any] = ["DISTILLATION.TERMS", list(terms), "MODEL.OIM.ENABLED", not by_table]
    if by_table:
        keys += ["DISTILLATION.ID_TABLE.PATH", table]
    if set(terms) != {ID_TABLE_TERM}:
        keys += ["DISTILLATION.TEACHER.CONFIG_FILE", teacher_config]
        keys += ["DISTILLATION.TEACHER.WEIGHTS", teacher_weights]
    return keys


def check_terms_fit(cfg: CfgNode, teacher_cfg: CfgNode) -> None:
    """Check, before anything is trained, that the teacher can teach the terms of a student.

    Args:
        cfg: of the distilled student.
        teacher_cfg: of the teacher.

    Raises:
        ValueError: a term is unknown, needs another network, or does not fit these two.
    """
    known = sorted(name for name, _ in DISTILLATION_TERM_REGISTRY)
    names = list(cfg.DISTILLATION.TERMS)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        problem = f"{unknown[0]} is none of" if unknown else "name one or more of"
        raise ValueError(f"--terms: {problem} {', '.join(known)}")
    student, teacher = (_spec(c) for c in (cfg, teacher_cfg))
    if ID_TABLE_TERM in names:
        ours, theirs = student.identities.embedding_dim, teacher.identities.embedding_dim
        if ours != theirs:
            raise ValueError(
                f"--terms: {ID_TABLE_TERM} needs embeddings of one size, MODEL.REID_HEAD."
                f"EMBEDDING_DIM of the student is {ours}, of the teacher {theirs}"
            )
    # The table, which this term reads, has not been made.
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DISTILLATION.TERMS = [name for name in names if name != ID_TABLE_TERM]
    terms: Any = build_terms(cfg)
    for name, term in terms.items():
        if _REID_TEACHER in term.companions and not cfg.DISTILLATION.REID_TEACHER.CONFIG_FILE:
            raise ValueError(
                f"--terms: {name} needs a re-ID network besides the teacher: train one as in "
                "projects/DKD, and set DISTILLATION.REID_TEACHER.CONFIG_FILE and WEIGHTS"
            )
    try:
        companions = build_companions(cfg, companions_of(terms), student, teacher)
        for name, companion in companions.items():
            teacher = companion.extend_spec(teacher)
            companion.setup([term for term in terms.values() if name in term.companions])
        for name, term in terms.items():
            for role, spec, parts in (
                ("student", student, term.student_parts),
                ("teacher", teacher, term.teacher_parts),
            ):
                missing = frozenset(parts) - spec.parts
                if missing:
                    raise ValueError(f"{name} needs {names_of(missing)} of the {role}")
            term.setup(student, teacher)
    except ValueError as error:
        raise ValueError(f"--terms: {error}") from None


def _spec(cfg: CfgNode) -> Any:
    own = cfg.clone()
    own.defrost()
    own.MODEL.DEVICE = "cpu"
    if own.MODEL.META_ARCHITECTURE == "Distiller":
        own.MODEL.META_ARCHITECTURE = own.DISTILLATION.STUDENT_META_ARCH
    network: Any = build_distillable(own, "MODEL.META_ARCHITECTURE")
    return network.spec()
