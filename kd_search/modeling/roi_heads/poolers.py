"""Region pooling to a height and a width of their own."""

import torch
from detectron2.layers import nonzero_tuple
from detectron2.modeling.poolers import (
    ROIPooler,
    assign_boxes_to_levels,
    convert_boxes_to_pooler_format,
)
from detectron2.structures import Boxes


class RectangularROIPooler(ROIPooler):
    """Detectron2's ROIPooler for outputs that are not square.

    Over several levels Detectron2 takes the height for the width too; people are tall, and a
    re-ID head wants more rows than columns.
    """

    def forward(self, x: list[torch.Tensor], box_lists: list[Boxes]) -> torch.Tensor:
        """
        Args:
            x: feature maps (N, C, H_l, W_l), one per level.
            box_lists: N sets of boxes, absolute pixels of the network input, XYXY.

        Returns:
            (R, C, height, width) for all boxes, image after image.
        """
        boxes = convert_boxes_to_pooler_format(box_lists)
        if len(self.level_poolers) == 1:
            return self.level_poolers[0](x[0], boxes)
        levels = assign_boxes_to_levels(
            box_lists,
            self.min_level,
            self.max_level,
            self.canonical_box_size,
            self.canonical_level,
        )
        output = x[0].new_zeros((boxes.shape[0], x[0].shape[1], *self.output_size))
        for level, pooler in enumerate(self.level_poolers):
            inside = nonzero_tuple(levels == level)[0]
            output.index_put_((inside,), pooler(x[level], boxes[inside]))
        return output
