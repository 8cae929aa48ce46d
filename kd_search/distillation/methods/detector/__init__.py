"""Detector distillation (Chen et al., NIPS 2017)."""

from kd_search.distillation.methods.detector import config
from kd_search.distillation.methods.detector.hints import HintTerm
from kd_search.distillation.methods.detector.regression import (
    AnchorRegressionTerm,
    RegionRegressionTerm,
)
from kd_search.distillation.methods.detector.soft_labels import AnchorClassTerm, RegionClassTerm

__all__ = [
    "AnchorClassTerm",
    "AnchorRegressionTerm",
    "HintTerm",
    "RegionClassTerm",
    "RegionRegressionTerm",
    "config",
]
