"""Masks of boxes on the cells of a feature map."""

import torch
from torch import Tensor


@torch.no_grad()
def paint_boxes(
    boxes: Tensor, image_index: Tensor, weights: Tensor, size: tuple[int, int, int], stride: int
) -> tuple[Tensor, Tensor]:
    """Fill the cells that boxes touch with the boxes' weights.

    Cell (i, j) covers the pixels [j stride, (j + 1) stride) x [i stride, (i + 1) stride) of the
    network input. A box touches a cell if they share some area, so that a box of any size has a
    cell; parts outside of the map are cut off, and a box without an area touches nothing. (The
    released code of Tang et al., ECCV 2022, truncates both ends.) Where boxes overlap the cell has
    the largest weight, whatever their order. (In the released code, that of the last box.)

    Time and memory are proportional to the number of touched cells.

    Args:
        boxes: (R, 4) XYXY in pixels of the network input. R may be 0.
        image_index: (R,) int64, the image of each box, in [0, N).
        weights: (R,) from 0 to 1; or more, but not negative.
        size: (N, H, W) of the map.
        stride: pixels of the input to one cell.

    Returns:
        (N, H, W) weights in the type of ``weights``, 0 in cells of no box, and (N, H, W) bool,
        whether a box touches the cell.
    """
    if not boxes.shape == (len(boxes), 4) or not len(boxes) == len(image_index) == len(weights):
        raise ValueError(
            "boxes must be (R, 4), image_index and weights (R,), got "
            f"{tuple(boxes.shape)}, {tuple(image_index.shape)}, {tuple(weights.shape)}"
        )
    num_images, height, width = size
    painted = weights.new_zeros(num_images * height * width)
    touched = torch.zeros_like(painted, dtype=torch.bool)

    boxes = boxes.detach().double() / stride
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    limits = boxes.new_tensor([width, height])
    first = boxes[:, :2].floor().clamp(min=0).long()
    last = torch.minimum(boxes[:, 2:].ceil(), limits).long()
    extent = (last - first).clamp(min=0) * has_area[:, None]
    num_cells = extent.prod(dim=1)

    # One entry for every cell of every box.
    box = torch.repeat_interleave(num_cells)
    place = torch.arange(len(box), device=box.device) - (num_cells.cumsum(0) - num_cells)[box]
    row = first[box, 1] + place // extent[box, 0]
    column = first[box, 0] + place % extent[box, 0]
    cell = (image_index[box] * height + row) * width + column
    painted.scatter_reduce_(0, cell, weights.detach()[box], reduce="amax")
    touched[cell] = True
    return painted.view(size), touched.view(size)
