from kd_search.distillation.terms.base import DistillationTerm
from kd_search.distillation.terms.dkd_terms import (
    IdentityProbabilityTerm,
    PairRelationTerm,
    TripletRelationTerm,
)
from kd_search.distillation.terms.global_knowledge_terms import (
    GlobalKnowledgeTerm,
    WeightedFeatureTerm,
    WeightedSoftLabelTerm,
)
from kd_search.distillation.terms.hint_term import HintTerm
from kd_search.distillation.terms.id_table_term import IDTableTerm
from kd_search.distillation.terms.registry import DISTILLATION_TERM_REGISTRY, build_terms
from kd_search.distillation.terms.regression_terms import (
    AnchorRegressionTerm,
    RegionRegressionTerm,
)
from kd_search.distillation.terms.soft_label_terms import AnchorClassTerm, RegionClassTerm
from kd_search.distillation.terms.vkd_terms import DistancePreservationTerm, ViewLogitsTerm

__all__ = [
    "DISTILLATION_TERM_REGISTRY",
    "AnchorClassTerm",
    "AnchorRegressionTerm",
    "DistancePreservationTerm",
    "DistillationTerm",
    "GlobalKnowledgeTerm",
    "HintTerm",
    "IDTableTerm",
    "IdentityProbabilityTerm",
    "PairRelationTerm",
    "RegionClassTerm",
    "RegionRegressionTerm",
    "TripletRelationTerm",
    "ViewLogitsTerm",
    "WeightedFeatureTerm",
    "WeightedSoftLabelTerm",
    "build_terms",
]
