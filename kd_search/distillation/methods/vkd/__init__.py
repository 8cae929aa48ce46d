"""Views knowledge distillation (Porrello et al., ECCV 2020)."""

from kd_search.distillation.methods.vkd import config
from kd_search.distillation.methods.vkd.terms import DistancePreservationTerm, ViewLogitsTerm

__all__ = [
    "DistancePreservationTerm",
    "ViewLogitsTerm",
    "config",
]
