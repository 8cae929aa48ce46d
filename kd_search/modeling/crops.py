"""Crops of the people of an image, as inputs of a re-ID network."""

import torch
from torch.nn import functional as F  # noqa: N812


def cut_crops(
    image: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int], *, mirror: bool = False
) -> torch.Tensor:
    """Crop people from an image and resize them.

    Args:
        image: (3, H, W), 0..255.
        boxes: (B, 4) XYXY, pixels of the image; corners are rounded outwards and clipped at the
            border. A box outside of the image becomes the nearest pixel.
        size: (height, width) of a crop.
        mirror: mirror the crops.

    Returns:
        (B, 3, height, width) float32, with the image's order of channels.
    """
    height, width = image.shape[1:]
    corners = torch.cat([boxes[:, :2].floor(), boxes[:, 2:].ceil()], dim=1).int().tolist()
    parts = [image.new_zeros((0, 3, *size), dtype=torch.float32)]
    for x0, y0, x1, y1 in corners:
        x0, y0 = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
        x1, y1 = min(max(x1, x0 + 1), width), min(max(y1, y0 + 1), height)
        crop = image[None, :, y0:y1, x0:x1].float()
        parts.append(F.interpolate(crop, size, mode="bilinear", antialias=True))
    crops = torch.cat(parts)
    return crops.flip(3) if mirror else crops
