"""Losses as pure functions of tensors, without configs, Detectron2 or global state.

Conventions of all losses, unless a docstring states otherwise:

* Inputs have any floating type. Results are float32 (float64 if an input is float64), under
  autocast too.
* Gradients go to the student's tensors only.
* A batch may be empty: the sum of its losses is exactly 0 and stays on the graph.
* A ``ValueError`` names the tensors whose shapes do not fit, or the argument that is out of range.
"""

from .bounded_regression import bounded_regression, teacher_l2
from .box_masks import paint_boxes
from .density import density_filter, local_density
from .global_knowledge import (
    agreement_weights,
    attenuation,
    global_knowledge_loss,
    weighted_binary_soft_labels,
    weighted_feature_loss,
    weighted_soft_labels,
)
from .hints import align_maps, hint_loss
from .identity_kl import identity_kl, logits_squared_error
from .oim import check_person_ids, oim_logits, oim_loss
from .prototypes import (
    PrototypePicks,
    joint_moments,
    joint_weights,
    match_prototypes,
    pursuit_weights,
    select_prototypes,
)
from .relations import (
    batch_hard_triplet,
    distance_preservation,
    pairwise_relation_loss,
    triplet_relation_loss,
)
from .soft_labels import soft_binary_cross_entropy, soft_cross_entropy

__all__ = [
    "PrototypePicks",
    "agreement_weights",
    "align_maps",
    "attenuation",
    "batch_hard_triplet",
    "bounded_regression",
    "check_person_ids",
    "density_filter",
    "distance_preservation",
    "global_knowledge_loss",
    "hint_loss",
    "identity_kl",
    "joint_moments",
    "joint_weights",
    "local_density",
    "logits_squared_error",
    "match_prototypes",
    "oim_logits",
    "oim_loss",
    "paint_boxes",
    "pairwise_relation_loss",
    "pursuit_weights",
    "select_prototypes",
    "soft_binary_cross_entropy",
    "soft_cross_entropy",
    "teacher_l2",
    "triplet_relation_loss",
    "weighted_binary_soft_labels",
    "weighted_feature_loss",
    "weighted_soft_labels",
]
