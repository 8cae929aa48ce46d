"""Distillation of an external re-ID network (DKD, Zhang et al., AAAI 2021)."""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import nn
from torch.nn import functional as F

from kd_search.distillation.terms import DISTILLATION_TERM_REGISTRY, DistillationTerm
from kd_search.losses import identity_kl, pairwise_relation_loss, triplet_relation_loss
from kd_search.outputs import ModelOutputs, ModelSpec, Part


@DISTILLATION_TERM_REGISTRY.register()
class IdentityProbabilityTerm(DistillationTerm):
    """L_p = (1/B) sum_i KL(p_i^H || p_i^M), the probability-aware term, over labelled people.

    With shifted boxes (FSA) B counts the unshifted ones, so that each of the paper's two sums has
    weight one.
    """

    student_parts = teacher_parts = joint_parts = frozenset({Part.CROP_LOGITS})
    companions = ("ReIDTeacher",)

    @configurable
    def __init__(
        self,
        *,
        direction: str = "student_teacher",
        temperature: float = 1.0,
        loss_weight: float = 1.0,
    ):
        """
        Args:
            direction: as :func:`kd_search.losses.identity_kl`.
            temperature: of student and teacher.
            loss_weight: lambda beta_p.
        """
        super().__init__()
        self.direction = direction
        self.temperature = temperature
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.DISTILLATION.DKD
        return {
            "direction": node.KL_DIRECTION,
            "temperature": node.TEMPERATURE,
            "loss_weight": node.PROBABILITY_WEIGHT,
        }

    def setup(self, student: ModelSpec, teacher: ModelSpec) -> None:
        ours, theirs = student.crops.num_identities, teacher.crops.num_identities
        if ours != theirs:
            raise ValueError(
                f"IdentityProbabilityTerm: the re-ID teacher has {theirs} identities, the student "
                f"{ours}: train the teacher on the crops of the student's training set"
            )

    def forward(self, student: ModelOutputs, teacher: ModelOutputs) -> dict[str, torch.Tensor]:
        """``{"loss_probability": scalar}`` from ``crops.logits``."""
        crops = student.crops.crops
        labelled = crops.person_ids >= 0
        count = (labelled & ~crops.shifted).sum().clamp(min=1)
        loss = identity_kl(
            student.crops.logits[labelled],
            teacher.crops.logits[labelled],
            temperature=self.temperature,
            direction=self.direction,
        )
        return {"loss_probability": self.loss_weight * loss.sum() / count}


@DISTILLATION_TERM_REGISTRY.register()
class PairRelationTerm(DistillationTerm):
    """L_pr = (1/B^2) ||S^H - S^M||^2 of row-normalised similarity matrices; sizes may differ.

    Embeddings are normalised to length one, which the paper does not state: the student's have this
    length, so that it cannot match other lengths of the teacher's.
    """

    student_parts = teacher_parts = joint_parts = frozenset({Part.CROP_EMBEDDINGS})
    companions = ("ReIDTeacher",)

    @configurable
    def __init__(self, *, normalize: bool = True, loss_weight: float = 1.0):
        """
        Args:
            normalize: False takes the embeddings of both networks without normalisation.
            loss_weight: lambda beta_pr.
        """
        super().__init__()
        self.normalize = normalize
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.DISTILLATION.DKD
        return {"normalize": node.NORMALIZE_PAIRS, "loss_weight": node.PAIR_WEIGHT}

    def forward(self, student: ModelOutputs, teacher: ModelOutputs) -> dict[str, torch.Tensor]:
        """``{"loss_pair_relation": scalar}`` from ``crops.embeddings``."""
        ours, theirs = student.crops.embeddings, teacher.crops.embeddings
        if self.normalize:
            ours, theirs = (F.normalize(x.float(), dim=1) for x in (ours, theirs))
        loss = pairwise_relation_loss(ours, theirs)
        return {"loss_pair_relation": self.loss_weight * loss}


@DISTILLATION_TERM_REGISTRY.register()
class TripletRelationTerm(DistillationTerm):
    """L_tr: a student's embedding is nearer to the teacher's of the same crop than to any other.

    Embeddings are normalised to length one, which the paper does not state: the margin then has the
    same meaning for every teacher.
    """

    student_parts = teacher_parts = joint_parts = frozenset({Part.CROP_EMBEDDINGS})
    companions = ("ReIDTeacher",)

    @configurable
    def __init__(
        self,
        *,
        margin: float = 0.3,
        literal: bool = False,
        projection: bool = False,
        loss_weight: float = 1.0,
    ):
        """
        Args:
            margin: m.
            literal: boxes of the same person are negatives as well, as printed in the paper.
            projection: learn a linear map from the student's embeddings to the teacher's.
            loss_weight: lambda beta_tr.
        """
        super().__init__()
        self.margin = margin
        self.literal = literal
        self.projects = projection
        self.loss_weight = loss_weight
        self.projection: nn.Module = nn.Identity()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.DISTILLATION.DKD
        return {
            "margin": node.MARGIN,
            "literal": node.LITERAL_TRIPLETS,
            "projection": node.PROJECTION,
            "loss_weight": node.TRIPLET_WEIGHT,
        }

    def setup(self, student: ModelSpec, teacher: ModelSpec) -> None:
        ours, theirs = student.crops.embedding_dim, teacher.crops.embedding_dim
        if self.projects:
            self.projection = nn.Linear(ours, theirs, bias=False)
        elif ours != theirs:
            raise ValueError(
                f"TripletRelationTerm compares embeddings of one size: the student has {ours}, the "
                f"re-ID teacher {theirs}: set DISTILLATION.DKD.PROJECTION to True"
            )

    def forward(self, student: ModelOutputs, teacher: ModelOutputs) -> dict[str, torch.Tensor]:
        """``{"loss_triplet_relation": scalar}``, the mean over crops, from ``crops.embeddings``."""
        loss = triplet_relation_loss(
            F.normalize(self.projection(student.crops.embeddings).float(), dim=1),
            F.normalize(teacher.crops.embeddings.float(), dim=1),
            student.crops.crops.person_ids,
            margin=self.margin,
            literal=self.literal,
        )
        return {"loss_triplet_relation": self.loss_weight * loss.sum() / max(len(loss), 1)}
