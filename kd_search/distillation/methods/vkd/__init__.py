"""Views knowledge distillation (Porrello et al., ECCV 2020)."""
