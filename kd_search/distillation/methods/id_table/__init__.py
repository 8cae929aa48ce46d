"""Distillation by ID table (Munjal et al., BMVC 2019)."""
