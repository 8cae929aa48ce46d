"""Views knowledge distillation (Porrello et al., ECCV 2020)."""

from kd_search.distillation.methods.vkd import config  # registers the keys
from kd_search.distillation.methods.vkd.terms import DistancePreservationTerm, ViewLogitsTerm
