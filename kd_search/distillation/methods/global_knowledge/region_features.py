"""Regions of a batch, the levels that they belong to, and their features."""

from collections.abc import Sequence
from typing import NamedTuple, Optional

import torch
from torchvision.ops import roi_align

from kd_search.outputs import ModelOutputs

#: Pixels. Where every cell is sampled, a box without an area would have no sample.
_LEAST_EXTENT = 0.01


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
    """The regions that a student learns from: its foreground proposals, in the order of the
    foreground rows of ``regions.logits``; of a network without proposals, the annotated boxes.

    Args:
        outputs: of a student, with ``regions`` or ``annotated``.
        num_classes: K.

    Raises:
        ValueError: it has neither.
    """
    if outputs.regions is not None:
        boxes = [p.proposal_boxes.tensor for p in outputs.regions.proposals]
        classes = outputs.regions.targets.classes
        # Identities are of the foreground alone.
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
    boxes = torch.cat(boxes).detach()
    return Regions(boxes[foreground], image_index[foreground], classes[foreground], person_ids)


def assign_levels(boxes: torch.Tensor, num_levels: int, finest_scale: float = 56.0) -> torch.Tensor:
    """The level that every box belongs to: ``floor(log2(sqrt(area) / finest_scale))``, 0 finest.

    The rule of the released code of Tang et al. (ECCV 2022), there with 56 pixels.

    Args:
        boxes: (R, 4) XYXY, pixels of the network's input. R may be 0.
        num_levels: smaller boxes go to the first, larger ones to the last of them.
        finest_scale: pixels; boxes of less than twice that size belong to the finest level.

    Returns:
        (R,) int64 in 0..num_levels-1.
    """
    extent = (boxes[:, 2:] - boxes[:, :2]).detach().double().clamp(min=0)
    # A box without an area goes by -infinity.
    level = (extent.prod(dim=1) / finest_scale**2).log2().div(2).floor()
    return level.clamp(0, num_levels - 1).long()


def pool_regions(
    maps: Sequence[torch.Tensor],
    strides: Sequence[int],
    boxes: torch.Tensor,
    image_index: torch.Tensor,
    samples: int = 7,
) -> list[torch.Tensor]:
    """Mean features of regions at every level, computed in float32 whatever the maps are.

    Every region is pooled from every map, as in the released code of Tang et al. (ECCV 2022), which
    cuts whole cells out; here points of a regular grid are interpolated (RoIAlign with one cell of
    output), so that a region smaller than a cell has features, too.

    Args:
        maps: per level (N, D, H, W), any floating type.
        strides: pixels of the network's input to a cell, per level.
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
