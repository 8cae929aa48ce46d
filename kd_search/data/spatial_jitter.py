"""Spatial-invariant augmentation: small random shifts of boxes.

Zhang et al., AAAI 2021, shift boxes in the image (ISA, in training of the external re-ID model) and
before region pooling (FSA, in training of the student), as far as the usual padding and random crop
of re-ID training would:

    r_h = min(2 h dp / H, alpha),    r_w = min(2 w dp / W, alpha)

with the box h x w, the re-ID input H x W and the padding dp in pixels of that input. On the feature
level the paper divides both by the stride; boxes here are in pixels of the network's input, and
region pooling divides by the stride. The paper has values of neither dp nor alpha; dp = 10 is the
usual padding.
"""

from typing import Optional

import torch


def jitter_range(
    boxes: torch.Tensor, input_size: tuple[int, int], padding: float, limit: torch.Tensor
) -> torch.Tensor:
    """Widths of the ranges of the shifts.

    Args:
        boxes: (B, 4) XYXY, pixels of an image.
        input_size: (H, W) of the re-ID network.
        padding: dp, pixels of that input.
        limit: alpha in pixels of the image, a scalar or (B, 2) for x and y.

    Returns:
        (B, 2): r_w and r_h, pixels of the image.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    height, width = input_size
    share = 2 * padding / sides.new_tensor([width, height])
    return torch.minimum(sides * share, torch.as_tensor(limit, dtype=sides.dtype).to(sides.device))


def jitter_boxes(
    boxes: torch.Tensor,
    image_size: tuple[int, int],
    *,
    input_size: tuple[int, int],
    padding: float,
    limit: torch.Tensor,
    generator: Optional[torch.Generator] = None,
) -> torch.Tensor:
    """Boxes of the same size, moved by up to half their range in each direction.

    A box does not move farther out of the image, where nothing can be cropped.

    Args:
        boxes: (B, 4) XYXY, pixels of an image.
        image_size: (height, width) of that image.
        input_size, padding, limit: as :func:`jitter_range`.
        generator: source of randomness, on the CPU.

    Returns:
        (B, 4) XYXY.
    """
    ranges = jitter_range(boxes, input_size, padding, limit)
    draws = torch.rand((len(boxes), 2), generator=generator).to(boxes)
    shift = (draws - 0.5) * ranges
    size = boxes.new_tensor([image_size[1], image_size[0]])
    lowest = -boxes[:, :2].clamp(min=0)
    highest = (size - boxes[:, 2:]).clamp(min=0)
    shift = torch.minimum(torch.maximum(shift, lowest), highest)
    return boxes + shift.repeat(1, 2)
