"""Losses as pure functions of tensors: no config, no Detectron2, no global state."""

from .bounded_regression import bounded_regression, teacher_l2
from .hints import align_maps, hint_loss
from .oim import check_person_ids, oim_logits, oim_loss
from .soft_labels import soft_binary_cross_entropy, soft_cross_entropy

__all__ = [
    "align_maps",
    "bounded_regression",
    "check_person_ids",
    "hint_loss",
    "oim_logits",
    "oim_loss",
    "soft_binary_cross_entropy",
    "soft_cross_entropy",
    "teacher_l2",
]
