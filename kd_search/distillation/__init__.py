from kd_search.distillation.alignment import Translation
from kd_search.distillation.class_map import ClassMap
from kd_search.distillation.distiller import Distiller
from kd_search.distillation.initialisation import init_from_teacher
from kd_search.distillation.methods.detector.hints import HintTerm
from kd_search.distillation.methods.detector.regression import (
    AnchorRegressionTerm,
    RegionRegressionTerm,
)
from kd_search.distillation.methods.detector.soft_labels import (
    AnchorClassTerm,
    RegionClassTerm,
)
from kd_search.distillation.methods.dkd.crops import (
    CropSampler,
    cut_crops,
)
from kd_search.distillation.methods.dkd.reid_teacher import (
    ReIDTeacher,
    build_reid_teacher,
)
from kd_search.distillation.methods.dkd.terms import (
    IdentityProbabilityTerm,
    PairRelationTerm,
    TripletRelationTerm,
)
from kd_search.distillation.methods.global_knowledge.bank import (
    PrototypeBank,
    build_prototype_bank,
)
from kd_search.distillation.methods.global_knowledge.levels import (
    SharedLevels,
    shared_levels,
)
from kd_search.distillation.methods.global_knowledge.region_features import (
    assign_levels,
    pool_regions,
    regions_of,
)
from kd_search.distillation.methods.global_knowledge.terms import (
    GlobalKnowledgeTerm,
    WeightedFeatureTerm,
    WeightedSoftLabelTerm,
)
from kd_search.distillation.methods.id_table.file import (
    IDTableFile,
    TableMismatchError,
    file_sha256,
)
from kd_search.distillation.methods.id_table.term import IDTableTerm
from kd_search.distillation.methods.vkd.terms import (
    DistancePreservationTerm,
    ViewLogitsTerm,
)
from kd_search.distillation.teacher import Teacher, build_teacher
from kd_search.distillation.terms import (
    DISTILLATION_TERM_REGISTRY,
    DistillationTerm,
    build_terms,
)

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
