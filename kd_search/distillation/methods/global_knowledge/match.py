"""Regions of a batch, their features, and their match with the prototypes of their class."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

import torch
from torchvision.ops import roi_align

from kd_search.outputs import ModelOutputs, ModelSpec

#: Name of the companion, and key of ``ModelOutputs.extras``.
PROTOTYPE_BANK = "PrototypeBank"

_KEY = "DISTILLATION.GLOBAL_KNOWLEDGE.FEATURES"
#: Pixels. With a sample for every cell, a box without an area would have no sample.
_LEAST_EXTENT = 0.01


@dataclass(frozen=True)
class PrototypeMatch:
    """Regions of a batch, their weights r, and the prototypes that they are compared with.

    R regions, image after image; lists have an entry for every level. The lists of features and
    prototypes are empty if no term compares with prototypes.
    """

    #: (R, 4), pixels of the network's input, XYXY.
    boxes: torch.Tensor
    #: (R,) int64, the image of each region.
    image_index: torch.Tensor
    #: (R,) int64, in 0..K-1.
    classes: torch.Tensor
    #: (R,) int64, index into ``names``: the level that matches the size of a region.
    levels: torch.Tensor
    #: Feature maps that both networks have, finest first, and their strides, pixels of the input.
    names: list[str]
    strides: list[int]
    #: (R,) r in 0..1, without gradient; ones if regions are not weighted.
    weights: list[torch.Tensor]
    #: (R, D_s) features of the regions, with gradient, and (R, D_t), without.
    student: list[torch.Tensor] = field(default_factory=list)
    teacher: list[torch.Tensor] = field(default_factory=list)
    #: (P_l, D_s) and (P_l, D_t), of all classes; P_l may be 0.
    prototypes_student: list[torch.Tensor] = field(default_factory=list)
    prototypes_teacher: list[torch.Tensor] = field(default_factory=list)
    #: (P,) r of the positive anchors at the level of their boxes, image after image; if a term of a
    #: one-stage student requires it.
    anchor_weights: Optional[torch.Tensor] = None
    #: Factor of losses that fade out: 1 at the start of training.
    attenuation: float = 1.0

    def assigned_weights(self) -> torch.Tensor:
        """(R,) r of every region at its level."""
        return torch.stack(self.weights).gather(0, self.levels[None])[0]


def match_of(student: ModelOutputs) -> PrototypeMatch:
    """The match that the bank added to a student's outputs."""
    match: PrototypeMatch = student.extras[PROTOTYPE_BANK]
    return match


class SharedLevels(NamedTuple):
    """Feature maps at which student and teacher can be compared, finest first."""

    names: list[str]
    strides: list[int]
    student_channels: list[int]
    teacher_channels: list[int]


def shared_levels(features: Sequence[str], student: ModelSpec, teacher: ModelSpec) -> SharedLevels:
    """The levels of terms with prototypes.

    Args:
        features: ``DISTILLATION.GLOBAL_KNOWLEDGE.FEATURES``; empty: every map of the same name and
            stride in both networks.
        student, teacher: specifications of the networks.

    Raises:
        ValueError: a network is no detector, there is no such map, or a given map differs in
            stride.
    """
    for side, spec in (("student", student), ("teacher", teacher)):
        if spec.num_classes == 0:
            raise ValueError(
                f"global knowledge requires regions of classes, and the {side} is no detector: "
                "remove its terms from DISTILLATION.TERMS"
            )
        for name in features:
            if name not in spec.features:
                raise ValueError(
                    f"{_KEY}: the {side} has no {name!r}, it has [{', '.join(spec.features)}]"
                )
    common = {
        name: (shape, teacher.features[name])
        for name, shape in student.features.items()
        if name in (features or teacher.features)
    }
    unequal = [name for name, (ours, theirs) in common.items() if ours.stride != theirs.stride]
    if features and unequal:
        ours, theirs = common[unequal[0]]
        raise ValueError(
            f"{_KEY}: {unequal[0]} has stride {ours.stride} in the student and {theirs.stride} in "
            "the teacher: name maps of equal stride"
        )
    names = [name for name in common if name not in unequal]
    if not names:
        raise ValueError(
            "global knowledge compares feature maps of the same name and stride: the student has "
            f"{_describe(student)}, the teacher {_describe(teacher)}: use a teacher with the "
            "student's kind of backbone"
        )
    names.sort(key=lambda name: common[name][0].stride)
    return SharedLevels(
        names,
        [common[name][0].stride for name in names],
        [common[name][0].channels for name in names],
        [common[name][1].channels for name in names],
    )


def _describe(spec: ModelSpec) -> str:
    shapes = (f"{name} of stride {shape.stride}" for name, shape in spec.features.items())
    return f"[{', '.join(shapes)}]"


class Regions(NamedTuple):
    """R regions of a batch, image after image."""

    #: (R, 4), pixels of the network's input, XYXY.
    boxes: torch.Tensor
    #: (R,) int64.
    image_index: torch.Tensor
    #: (R,) int64, in 0..K-1.
    classes: torch.Tensor
    #: (R,) int64, -1 where unlabelled; ``None`` without identities.
    person_ids: Optional[torch.Tensor]


def regions_of(outputs: ModelOutputs, num_classes: int) -> Regions:
    """A student's foreground proposals, in the order of the foreground rows of ``regions.logits``;
    of a network without proposals, the annotated boxes.

    Args:
        outputs: of a student, with ``regions`` or ``annotated``.
        num_classes: K.

    Raises:
        ValueError: the outputs have neither.
    """
    if outputs.regions is not None:
        boxes = [p.proposal_boxes.tensor for p in outputs.regions.proposals]
        classes = outputs.regions.targets.classes
        # Identities are of the foreground only.
        person_ids = None if outputs.identities is None else outputs.identities.person_ids
    elif outputs.annotated is not None:
        boxes = [x.gt_boxes.tensor for x in outputs.annotated]
        classes = torch.cat([x.gt_classes for x in outputs.annotated])
        person_ids = None
    else:
        raise ValueError(
            "the student outputs neither regions nor annotated boxes: its forward_train() must "
            "fill ModelOutputs.annotated"
        )
    sizes = torch.tensor([len(b) for b in boxes], device=classes.device)
    image_index = torch.repeat_interleave(sizes)
    foreground = (classes >= 0) & (classes < num_classes)
    if outputs.regions is None and all(x.has("gt_person_ids") for x in outputs.annotated):
        person_ids = torch.cat([x.gt_person_ids for x in outputs.annotated])[foreground]
    joined = torch.cat(boxes).detach()
    return Regions(joined[foreground], image_index[foreground], classes[foreground], person_ids)


def assign_levels(boxes: torch.Tensor, num_levels: int, finest_scale: float = 56.0) -> torch.Tensor:
    """The level of every box: ``floor(log2(sqrt(area) / finest_scale))``, 0 is the finest.

    The rule of the released code of Tang et al. (ECCV 2022), there with 56 pixels.

    Args:
        boxes: (R, 4) XYXY, pixels of the network's input. R may be 0.
        num_levels: smaller boxes belong to the first level, larger ones to the last.
        finest_scale: pixels; boxes of less than twice this size belong to the finest level.

    Returns:
        (R,) int64 in 0..num_levels-1.
    """
    extent = (boxes[:, 2:] - boxes[:, :2]).detach().double().clamp(min=0)
    # The logarithm is -infinity for a box without an area.
    level = (extent.prod(dim=1) / finest_scale**2).log2().div(2).floor()
    return level.clamp(0, num_levels - 1).long()


def pool_regions(
    maps: Sequence[torch.Tensor],
    strides: Sequence[int],
    boxes: torch.Tensor,
    image_index: torch.Tensor,
    samples: int = 7,
) -> list[torch.Tensor]:
    """Mean features of regions at every level, computed in float32.

    Every region is pooled from every map, as in the released code of Tang et al. (ECCV 2022), which
    crops whole cells. Here points of a regular grid are interpolated (RoIAlign with one cell of
    output), so that a region smaller than a cell has features as well.

    Args:
        maps: per level (N, D, H, W), any floating type.
        strides: per level, pixels of the network's input.
        boxes: (R, 4) XYXY, pixels of the network's input. R may be 0.
        image_index: (R,) int64, in [0, N).
        samples: a region is the mean of samples x samples points; 0 takes a point for every cell
            that it covers.

    Returns:
        per level (R, D) float32, with the maps' gradient.
    """
    boxes = boxes.detach().float()
    corners = torch.maximum(boxes[:, 2:], boxes[:, :2] + _LEAST_EXTENT)
    rows = torch.cat([image_index[:, None].float(), boxes[:, :2], corners], dim=1)
    pooled = []
    for level, stride in zip(maps, strides):
        with torch.autocast(level.device.type, enabled=False):
            features = roi_align(
                level.float(),
                rows.to(level.device),
                output_size=1,
                spatial_scale=1.0 / stride,
                sampling_ratio=samples,
                aligned=True,
            )
        pooled.append(features.flatten(1))
    return pooled
