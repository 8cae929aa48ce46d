"""Diverse knowledge distillation (Zhang et al., AAAI 2021)."""
