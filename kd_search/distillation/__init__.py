from kd_search.distillation.class_map import ClassMap
from kd_search.distillation.crops import CropSampler, cut_crops
from kd_search.distillation.distiller import Distiller
from kd_search.distillation.initialisation import init_from_teacher
from kd_search.distillation.prototypes import PrototypeBank, build_prototype_bank
from kd_search.distillation.region_features import assign_levels, pool_regions, regions_of
from kd_search.distillation.reid_teacher import ReIDTeacher, build_reid_teacher
from kd_search.distillation.shared_levels import SharedLevels, shared_levels
from kd_search.distillation.table_file import IDTableFile, TableMismatchError, file_sha256
from kd_search.distillation.teacher import Teacher, build_teacher
from kd_search.distillation.terms import (
    DISTILLATION_TERM_REGISTRY,
    AnchorClassTerm,
    AnchorRegressionTerm,
    DistancePreservationTerm,
    DistillationTerm,
    GlobalKnowledgeTerm,
    HintTerm,
    IdentityProbabilityTerm,
    IDTableTerm,
    PairRelationTerm,
    RegionClassTerm,
    RegionRegressionTerm,
    TripletRelationTerm,
    ViewLogitsTerm,
    WeightedFeatureTerm,
    WeightedSoftLabelTerm,
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
    "GlobalKnowledgeTerm",
    "HintTerm",
    "IDTableFile",
    "IDTableTerm",
    "IdentityProbabilityTerm",
    "PairRelationTerm",
    "PrototypeBank",
    "ReIDTeacher",
    "RegionClassTerm",
    "RegionRegressionTerm",
    "SharedLevels",
    "TableMismatchError",
    "Teacher",
    "Translation",
    "TripletRelationTerm",
    "ViewLogitsTerm",
    "WeightedFeatureTerm",
    "WeightedSoftLabelTerm",
    "assign_levels",
    "build_prototype_bank",
    "build_reid_teacher",
    "build_teacher",
    "build_terms",
    "cut_crops",
    "file_sha256",
    "init_from_teacher",
    "pool_regions",
    "regions_of",
    "shared_levels",
]
