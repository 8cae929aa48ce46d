"""RectangularROIPooler: the shape asked for, and the levels of Detectron2's own pooler."""

import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes

from kd_search.modeling.roi_heads.person_search import RectangularROIPooler

SCALES = (1 / 4, 1 / 8)
BOXES = [
    Boxes(torch.tensor([[4.0, 4, 30, 60], [0, 0, 60, 60]])),
    Boxes(torch.tensor([[8.0, 2, 400, 400]])),
]


def feature_maps():
    torch.manual_seed(0)
    return [torch.randn(2, 3, 16, 16), torch.randn(2, 3, 8, 8)]


def test_square_output_equals_detectron2s():
    arguments = {"scales": SCALES, "sampling_ratio": 2, "pooler_type": "ROIAlignV2"}
    ours = RectangularROIPooler(output_size=(5, 5), **arguments)
    theirs = ROIPooler(output_size=5, **arguments)
    maps = feature_maps()
    assert torch.equal(ours(maps, BOXES), theirs(maps, BOXES))


def test_height_and_width_may_differ_over_levels():
    pooler = RectangularROIPooler(
        output_size=(6, 3), scales=SCALES, sampling_ratio=2, pooler_type="ROIAlignV2"
    )
    assert pooler(feature_maps(), BOXES).shape == (3, 3, 6, 3)


def test_no_boxes():
    pooler = RectangularROIPooler(
        output_size=(6, 3), scales=SCALES, sampling_ratio=2, pooler_type="ROIAlignV2"
    )
    none = Boxes(torch.zeros(0, 4))
    assert pooler(feature_maps(), [none, none]).shape == (0, 3, 6, 3)
