"""A teacher that sees more views of a person (Porrello et al., ECCV 2020)."""

import torch
from detectron2.config import configurable

from kd_search.distillation.terms import DISTILLATION_TERM_REGISTRY, DistillationTerm
from kd_search.losses import distance_preservation, identity_kl, logits_squared_error
from kd_search.outputs import (
    Knowledge,
    Layout,
)

LOGITS_DISTANCES = ("kl", "mse")


@DISTILLATION_TERM_REGISTRY.register()
class ViewLogitsTerm(DistillationTerm):
    """alpha L_KD, L_KD = T^2 mean_b KL(softmax(z_T / T) || softmax(z_S / T)).

    Or, which the authors' code offers beside the paper, the mean of (z_T - z_S)^2 over sets and
    identities, without a temperature.
    """

    teacher_fields = frozenset({"identity_logits"})
    joint_fields = frozenset({"identity_logits"})

    @configurable
    def __init__(
        self, *, distance: str = "kl", temperature: float = 10.0, loss_weight: float = 0.1
    ):
        """
        Args:
            distance: "kl", or "mse".
            temperature: T, of "kl" alone.
            loss_weight: alpha.

        Raises:
            ValueError: an unknown distance.
        """
        super().__init__()
        if distance not in LOGITS_DISTANCES:
            raise ValueError(
                f"DISTILLATION.VKD.LOGITS_DISTANCE {distance!r} must be one of {LOGITS_DISTANCES}"
            )
        self.distance = distance
        self.temperature = temperature
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg):
        node = cfg.DISTILLATION.VKD
        return {
            "distance": node.LOGITS_DISTANCE,
            "temperature": node.TEMPERATURE,
            "loss_weight": node.LOGITS_WEIGHT,
        }

    def connect(self, student: Layout, teacher: Layout) -> None:
        if not student.num_identities or student.num_identities != teacher.num_identities:
            raise ValueError(
                f"ViewLogitsTerm: the teacher tells {teacher.num_identities} identities apart, the "
                f"student {student.num_identities}: train both on the same set"
            )

    def forward(self, student: Knowledge, teacher: Knowledge) -> dict[str, torch.Tensor]:
        """``{"loss_view_logits": scalar}`` from ``identity_logits``."""
        logits = student.identity_logits, teacher.identity_logits
        if self.distance == "mse":
            loss = logits_squared_error(*logits)
        else:
            loss = identity_kl(*logits, temperature=self.temperature, direction="teacher_student")
        return {"loss_view_logits": self.loss_weight * loss.sum() / max(len(loss), 1)}


@DISTILLATION_TERM_REGISTRY.register()
class DistancePreservationTerm(DistillationTerm):
    """beta L_DP: squared distances between people as the teacher has them; sizes may differ."""

    teacher_fields = frozenset({"embeddings"})
    joint_fields = frozenset({"embeddings"})

    @configurable
    def __init__(self, *, loss_weight: float = 1e-4):
        """
        Args:
            loss_weight: beta.
        """
        super().__init__()
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg):
        return {"loss_weight": cfg.DISTILLATION.VKD.DISTANCE_WEIGHT}

    def forward(self, student: Knowledge, teacher: Knowledge) -> dict[str, torch.Tensor]:
        """``{"loss_distance_preservation": scalar}`` from ``embeddings``."""
        loss = distance_preservation(student.embeddings, teacher.embeddings)
        return {"loss_distance_preservation": self.loss_weight * loss}
