from kd_search.distillation.class_map import ClassMap
from kd_search.distillation.distiller import Distiller
from kd_search.distillation.initialisation import init_from_teacher
from kd_search.distillation.table_file import IDTableFile, TableMismatchError, file_sha256
from kd_search.distillation.teacher import Teacher, build_teacher
from kd_search.distillation.terms import (
    DISTILLATION_TERM_REGISTRY,
    AnchorClassTerm,
    AnchorRegressionTerm,
    DistillationTerm,
    HintTerm,
    IDTableTerm,
    RegionClassTerm,
    RegionRegressionTerm,
    build_terms,
)
from kd_search.distillation.translation import Translation

__all__ = [
    "DISTILLATION_TERM_REGISTRY",
    "AnchorClassTerm",
    "AnchorRegressionTerm",
    "ClassMap",
    "DistillationTerm",
    "Distiller",
    "HintTerm",
    "IDTableFile",
    "IDTableTerm",
    "RegionClassTerm",
    "RegionRegressionTerm",
    "TableMismatchError",
    "Teacher",
    "Translation",
    "build_teacher",
    "build_terms",
    "file_sha256",
    "init_from_teacher",
]
