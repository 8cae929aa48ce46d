"""Losses as pure functions of tensors: no config, no Detectron2, no global state."""

from .bounded_regression import bounded_regression, teacher_l2
from .hints import align_maps, hint_loss
from .identity_kl import identity_kl
from .oim import check_person_ids, oim_logits, oim_loss
from .relations import pairwise_relation_loss, triplet_relation_loss
from .soft_labels import soft_binary_cross_entropy, soft_cross_entropy
from .triplet import batch_hard_triplet
from .views import distance_preservation

__all__ = [
    "align_maps",
    "batch_hard_triplet",
    "bounded_regression",
    "check_person_ids",
    "distance_preservation",
    "hint_loss",
    "identity_kl",
    "oim_logits",
    "oim_loss",
    "pairwise_relation_loss",
    "soft_binary_cross_entropy",
    "soft_cross_entropy",
    "teacher_l2",
    "triplet_relation_loss",
]
