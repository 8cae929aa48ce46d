from kd_search.distillation.class_map import ClassMap
from kd_search.distillation.crops import CropSampler, cut_crops
from kd_search.distillation.distiller import Distiller
from kd_search.distillation.initialisation import init_from_teacher
from kd_search.distillation.reid_teacher import ReIDTeacher, build_reid_teacher
from kd_search.distillation.table_file import IDTableFile, TableMismatchError, file_sha256
from kd_search.distillation.teacher import Teacher, build_teacher
from kd_search.distillation.terms import (
    DISTILLATION_TERM_REGISTRY,
    AnchorClassTerm,
    AnchorRegressionTerm,
    DistancePreservationTerm,
    DistillationTerm,
    HintTerm,
    IdentityProbabilityTerm,
    IDTableTerm,
    PairRelationTerm,
    RegionClassTerm,
    RegionRegressionTerm,
    TripletRelationTerm,
    ViewLogitsTerm,
    build_terms,
)
from kd_search.distillation.translation import Translation

__all__ = [
    "DISTILLATION_TERM_REGISTRY",
    "AnchorClassTerm",
    "AnchorRegressionTerm",
    "ClassMap",
    "CropSampler",
    "DistancePreservationTerm",
    "DistillationTerm",
    "Distiller",
    "HintTerm",
    "IDTableFile",
    "IDTableTerm",
    "IdentityProbabilityTerm",
    "PairRelationTerm",
    "ReIDTeacher",
    "RegionClassTerm",
    "RegionRegressionTerm",
    "TableMismatchError",
    "Teacher",
    "Translation",
    "TripletRelationTerm",
    "ViewLogitsTerm",
    "build_reid_teacher",
    "build_teacher",
    "build_terms",
    "cut_crops",
    "file_sha256",
    "init_from_teacher",
]
