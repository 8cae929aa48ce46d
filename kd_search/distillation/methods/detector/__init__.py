"""Detector distillation (Chen et al., NIPS 2017)."""
