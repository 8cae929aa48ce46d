"""Distillation methods, one package each."""
