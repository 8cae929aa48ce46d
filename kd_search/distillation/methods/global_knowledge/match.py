"""Regions of a batch with the prototypes of their class, and how far two networks agree on them."""

from dataclasses import dataclass, field
from typing import Optional

import torch

from kd_search.outputs import ModelOutputs

#: Name of the companion, and key of ``ModelOutputs.extras``.
PROTOTYPE_BANK = "PrototypeBank"


@dataclass(frozen=True)
class PrototypeMatch:
    """Regions of a batch, their weights r, and the prototypes that they are compared with.

    R regions, image after image; lists have an entry for every level. The lists of features and
    prototypes are empty where no term compares with prototypes.
    """

    #: (R, 4), pixels of the network's input, XYXY.
    boxes: torch.Tensor
    #: (R,) int64, the image of each region.
    image_index: torch.Tensor
    #: (R,) int64, in 0..K-1.
    classes: torch.Tensor
    #: (R,) int64, position in ``names``: the level that a region belongs to by its size.
    levels: torch.Tensor
    #: Feature maps that both networks have, finest first, and pixels of the input to a cell.
    names: list[str]
    strides: list[int]
    #: (R,) r in 0..1, without gradient; ones where regions are not weighted.
    weights: list[torch.Tensor]
    #: (R, D_s) features of the regions, with gradient, and (R, D_t), without.
    student: list[torch.Tensor] = field(default_factory=list)
    teacher: list[torch.Tensor] = field(default_factory=list)
    #: (P_l, D_s) and (P_l, D_t), those of all classes; P_l may be 0.
    prototypes_student: list[torch.Tensor] = field(default_factory=list)
    prototypes_teacher: list[torch.Tensor] = field(default_factory=list)
    #: (P,) r of the positive anchors at the level of their own boxes, image after image; where a
    #: term of a one-stage student requires it.
    anchor_weights: Optional[torch.Tensor] = None
    #: Factor of fading losses: 1 at the start of training.
    attenuation: float = 1.0

    def assigned_weights(self) -> torch.Tensor:
        """(R,) r of every region at the level that it belongs to."""
        return torch.stack(self.weights).gather(0, self.levels[None])[0]


def match_of(student: ModelOutputs) -> PrototypeMatch:
    """The match that the bank added to a student's outputs."""
    match: PrototypeMatch = student.extras[PROTOTYPE_BANK]
    return match
