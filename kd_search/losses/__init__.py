"""Losses as pure functions of tensors: no config, no Detectron2, no global state."""

from .oim import check_person_ids, oim_logits, oim_loss

__all__ = ["check_person_ids", "oim_logits", "oim_loss"]
