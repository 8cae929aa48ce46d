"""Hints: imitation of feature maps through adaptation layers (Chen et al., NIPS 2017)."""

from collections.abc import Sequence
from typing import Any, Union

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import nn

from kd_search.config.ranges import check_choice
from kd_search.distillation.terms import DISTILLATION_TERM_REGISTRY, DistillationTerm, module_name
from kd_search.losses import align_maps, hint_loss
from kd_search.outputs import ModelOutputs, ModelSpec, Part


@DISTILLATION_TERM_REGISTRY.register()
class HintTerm(DistillationTerm):
    """gamma || A(F_student) - F_teacher ||, the mean over elements and pairs of maps.

    A is a 1x1 convolution per pair, trained with the student; also for equal channels, which the
    paper found better. Maps of different strides are compared at the teacher's; the paper pads
    instead.
    """

    student_parts = teacher_parts = frozenset({Part.FEATURES})

    @configurable
    def __init__(
        self,
        *,
        features: Sequence[Union[str, tuple[str, str]]] = (),
        adaptation: bool = True,
        norm: str = "l2",
        loss_weight: float = 0.5,
    ):
        """
        Args:
            features: names that both networks have, or pairs (student, teacher); empty: all names
                that both have.
            adaptation: False compares the maps without A.
            norm: "l2" or "l1".
            loss_weight: gamma.

        Raises:
            ValueError: the norm is unknown, or an entry of ``features`` is no name or pair.
        """
        super().__init__()
        check_choice("DISTILLATION.HINT.NORM", norm, ("l2", "l1"))
        self.pairs = [_as_pair(entry) for entry in features]
        self.adaptation = adaptation
        self.norm = norm
        self.loss_weight = loss_weight
        self.adapters = nn.ModuleDict()
        self.strides: dict[tuple[str, str], tuple[int, int]] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.DISTILLATION.HINT
        return {
            "features": tuple(node.FEATURES),
            "adaptation": node.ADAPTATION,
            "norm": node.NORM,
            "loss_weight": node.LOSS_WEIGHT,
        }

    def setup(self, student: ModelSpec, teacher: ModelSpec) -> None:
        if not self.pairs:
            self.pairs = [(name, name) for name in student.features if name in teacher.features]
        if not self.pairs:
            raise ValueError(
                "HintTerm: student and teacher have no feature of the same name: set "
                f"DISTILLATION.HINT.FEATURES to pairs of {_names(student)} and {_names(teacher)}"
            )
        for pair in self.pairs:
            ours = _shape("student", student, pair[0])
            theirs = _shape("teacher", teacher, pair[1])
            self.strides[pair] = (ours.stride, theirs.stride)
            if self.adaptation:
                adapter = nn.Conv2d(ours.channels, theirs.channels, kernel_size=1)
                self.adapters[module_name(*pair)] = adapter
            elif ours.channels != theirs.channels:
                raise ValueError(
                    f"HintTerm: {pair[0]} of the student has {ours.channels} channels, {pair[1]} "
                    f"of the teacher {theirs.channels}: set DISTILLATION.HINT.ADAPTATION to True"
                )

    def forward(self, student: ModelOutputs, teacher: ModelOutputs) -> dict[str, torch.Tensor]:
        """``{"loss_hint": scalar}`` from ``features``."""
        losses = []
        for pair in self.pairs:
            ours, theirs = student.features[pair[0]], teacher.features[pair[1]]
            if self.adaptation:
                ours = self.adapters[module_name(*pair)](ours)
            own_stride, teacher_stride = self.strides[pair]
            losses.append(
                hint_loss(*align_maps(ours, own_stride, theirs, teacher_stride), self.norm)
            )
        return {"loss_hint": self.loss_weight * torch.stack(losses).mean()}


def _as_pair(entry: Union[str, Sequence[str]]) -> tuple[str, str]:
    if isinstance(entry, str):
        return entry, entry
    if len(entry) != 2 or not all(isinstance(name, str) for name in entry):
        raise ValueError(
            f"DISTILLATION.HINT.FEATURES: {entry!r} must be a name or [student, teacher]"
        )
    return entry[0], entry[1]


def _names(spec: ModelSpec) -> str:
    return f"[{', '.join(spec.features)}]"


def _shape(side: str, spec: ModelSpec, name: str) -> ShapeSpec:
    if name not in spec.features:
        raise ValueError(
            f"DISTILLATION.HINT.FEATURES: the {side} has no {name!r}, it has {_names(spec)}"
        )
    return spec.features[name]
