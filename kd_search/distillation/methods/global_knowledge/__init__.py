"""Global knowledge (Tang et al., ECCV 2022)."""

from kd_search.distillation.methods.global_knowledge import config
from kd_search.distillation.methods.global_knowledge.bank import PrototypeBank
from kd_search.distillation.methods.global_knowledge.generation import (
    PrototypeGeneration,
    PrototypeHook,
)
from kd_search.distillation.methods.global_knowledge.match import PrototypeMatch, match_of
from kd_search.distillation.methods.global_knowledge.terms import (
    GlobalKnowledgeTerm,
    WeightedFeatureTerm,
    WeightedSoftLabelTerm,
)

__all__ = [
    "GlobalKnowledgeTerm",
    "PrototypeBank",
    "PrototypeGeneration",
    "PrototypeHook",
    "PrototypeMatch",
    "WeightedFeatureTerm",
    "WeightedSoftLabelTerm",
    "config",
    "match_of",
]
