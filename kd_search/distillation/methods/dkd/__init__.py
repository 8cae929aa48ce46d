"""Diverse knowledge distillation (Zhang et al., AAAI 2021)."""

from kd_search.distillation.methods.dkd import config
from kd_search.distillation.methods.dkd.crops import CropSampler
from kd_search.distillation.methods.dkd.reid_teacher import ReIDTeacher
from kd_search.distillation.methods.dkd.terms import (
    IdentityProbabilityTerm,
    PairRelationTerm,
    TripletRelationTerm,
)

__all__ = [
    "CropSampler",
    "IdentityProbabilityTerm",
    "PairRelationTerm",
    "ReIDTeacher",
    "TripletRelationTerm",
    "config",
]
