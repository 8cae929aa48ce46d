"""The teacher's words in the student's terms."""

import torch

from kd_search.distillation import Translation
from kd_search.outputs import (
    Knowledge,
    Layout,
)


def layout(**changes):
    values = {
        "features": {},
        "num_classes": 2,
        "anchor_delta_weights": (1.0, 1.0, 1.0, 1.0),
        "region_delta_weights": (10.0, 10.0, 5.0, 5.0),
    }
    return Layout(**{**values, **changes})


def test_channels_are_reversed_only_where_the_formats_differ():
    batch = [{"image": torch.arange(12).reshape(3, 2, 2), "id": 1}]
    same = Translation(layout(), layout()).inputs(batch)
    assert same is batch
    turned = Translation(layout(), layout(image_format="RGB")).inputs(batch)
    assert torch.equal(turned[0]["image"][0], batch[0]["image"][2]) and turned[0]["id"] == 1
    assert torch.equal(batch[0]["image"].flatten(), torch.arange(12))


def test_deltas_come_in_the_students_scale():
    translation = Translation(
        layout(anchor_delta_weights=(2.0, 2.0, 1.0, 1.0)),
        layout(region_delta_weights=(5.0, 5.0, 5.0, 10.0)),
    )
    known = translation.knowledge(
        Knowledge(
            anchor_deltas=[torch.ones(1, 3, 4)],
            region_logits=torch.zeros(2, 3),
            region_deltas=torch.ones(2, 8),
        )
    )
    assert known.anchor_deltas[0][0, 0].tolist() == [2, 2, 1, 1]
    assert known.region_deltas[1].tolist() == [2, 2, 1, 0.5] * 2


def test_class_map_reaches_dense_anchors_and_regions_but_not_objectness():
    logits = [torch.tensor([[[1.0, 2.0, 3.0]]])]
    pairs = [[2, 0], [0, 1]]
    dense = Translation(layout(), layout(num_classes=3, dense_classes=True), pairs)
    assert dense.knowledge(Knowledge(anchor_logits=logits)).anchor_logits[0].tolist() == [[[3, 1]]]
    rpn = Translation(layout(), layout(num_classes=3), pairs)
    objectness = [torch.zeros(1, 5)]
    assert rpn.knowledge(Knowledge(anchor_logits=objectness)).anchor_logits is objectness
    regions = rpn.knowledge(Knowledge(region_logits=torch.zeros(4, 4)))
    assert regions.region_logits.shape == (4, 3)
    logits = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    both = rpn.knowledge(Knowledge(region_logits=logits, foreground_logits=logits[1:]))
    assert torch.equal(both.foreground_logits, both.region_logits[1:])
