"""Distillation of a teacher with more views of a person (VKD, Porrello et al., ECCV 2020)."""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable

from kd_search.config.ranges import check_choice
from kd_search.distillation.terms import DISTILLATION_TERM_REGISTRY, DistillationTerm
from kd_search.losses import distance_preservation, identity_kl, logits_squared_error
from kd_search.outputs import ModelOutputs, ModelSpec, Part


@DISTILLATION_TERM_REGISTRY.register()
class ViewLogitsTerm(DistillationTerm):
    """alpha L_KD, L_KD = T^2 mean_b KL(softmax(z_T / T) || softmax(z_S / T)).

    Or, an option of the authors' code, the mean of (z_T - z_S)^2 over sets and identities, without
    a temperature.
    """

    student_parts = teacher_parts = joint_parts = frozenset({Part.IDENTITY_LOGITS})

    @configurable
    def __init__(
        self, *, distance: str = "kl", temperature: float = 10.0, loss_weight: float = 0.1
    ):
        """
        Args:
            distance: "kl", or "mse".
            temperature: T, for "kl" only.
            loss_weight: alpha.

        Raises:
            ValueError: the distance is unknown.
        """
        super().__init__()
        check_choice("DISTILLATION.VKD.LOGITS_DISTANCE", distance, ("kl", "mse"))
        self.distance = distance
        self.temperature = temperature
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.DISTILLATION.VKD
        return {
            "distance": node.LOGITS_DISTANCE,
            "temperature": node.TEMPERATURE,
            "loss_weight": node.LOGITS_WEIGHT,
        }

    def setup(self, student: ModelSpec, teacher: ModelSpec) -> None:
        ours, theirs = student.identities.num_identities, teacher.identities.num_identities
        if not ours or ours != theirs:
            raise ValueError(
                f"ViewLogitsTerm: the teacher has {theirs} identities, the student {ours}: train "
                "both on the same set"
            )

    def forward(self, student: ModelOutputs, teacher: ModelOutputs) -> dict[str, torch.Tensor]:
        """``{"loss_view_logits": scalar}`` from ``identities.logits``."""
        logits = student.identities.logits, teacher.identities.logits
        if self.distance == "mse":
            loss = logits_squared_error(*logits)
        else:
            loss = identity_kl(*logits, temperature=self.temperature, direction="teacher_student")
        return {"loss_view_logits": self.loss_weight * loss.sum() / max(len(loss), 1)}


@DISTILLATION_TERM_REGISTRY.register()
class DistancePreservationTerm(DistillationTerm):
    """beta L_DP: match the teacher's squared distances between people; sizes may differ."""

    student_parts = teacher_parts = joint_parts = frozenset({Part.EMBEDDINGS})

    @configurable
    def __init__(self, *, loss_weight: float = 1e-4):
        """``loss_weight`` is beta."""
        super().__init__()
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"loss_weight": cfg.DISTILLATION.VKD.DISTANCE_WEIGHT}

    def forward(self, student: ModelOutputs, teacher: ModelOutputs) -> dict[str, torch.Tensor]:
        """``{"loss_distance_preservation": scalar}`` from ``identities.embeddings``."""
        loss = distance_preservation(student.identities.embeddings, teacher.identities.embeddings)
        return {"loss_distance_preservation": self.loss_weight * loss}
