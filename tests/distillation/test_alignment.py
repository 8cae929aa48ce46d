"""A teacher's outputs in the channels, classes and delta scales of its student."""

import pytest
import torch

from kd_search.distillation import TeacherOutputAligner
from kd_search.outputs import (
    AnchorOutputs,
    AnchorSpec,
    ModelOutputs,
    ModelSpec,
    RegionOutputs,
    RegionSpec,
)


def spec(anchors=(1.0,) * 4, regions=(10.0, 10.0, 5.0, 5.0), dense_classes=False, **changes):
    """Specification with these delta weights."""
    return ModelSpec(
        **{"features": {}, "num_classes": 2, **changes},
        anchors=AnchorSpec([], [], 0.0, anchors, dense_classes),
        regions=RegionSpec(regions),
    )


def test_channels_are_reversed_only_where_the_formats_differ():
    batch = [{"image": torch.arange(12).reshape(3, 2, 2), "id": 1}]
    same = TeacherOutputAligner(spec(), spec()).inputs(batch)
    assert same is batch
    turned = TeacherOutputAligner(spec(), spec(image_format="RGB")).inputs(batch)
    assert torch.equal(turned[0]["image"][0], batch[0]["image"][2]) and turned[0]["id"] == 1
    assert torch.equal(batch[0]["image"].flatten(), torch.arange(12))


def test_deltas_are_in_the_scale_of_the_student():
    aligner = TeacherOutputAligner(
        spec(anchors=(2.0, 2.0, 1.0, 1.0)), spec(regions=(5.0, 5.0, 5.0, 10.0))
    )
    given = ModelOutputs(
        anchors=AnchorOutputs([], deltas=[torch.ones(1, 3, 4)]),
        regions=RegionOutputs([], logits=torch.zeros(2, 3), deltas=torch.ones(2, 8)),
    )
    aligned = aligner.align(given)
    assert aligned.anchors.deltas[0][0, 0].tolist() == [2, 2, 1, 1]
    assert aligned.regions.deltas[1].tolist() == [2, 2, 1, 0.5] * 2
    # The outputs of the teacher are not changed.
    assert given.regions.deltas.eq(1).all() and given.anchors.deltas[0].eq(1).all()


def test_class_map_is_applied_to_dense_anchors_and_regions_but_not_to_objectness():
    pairs = [[2, 0], [0, 1]]
    dense = TeacherOutputAligner(spec(), spec(num_classes=3, dense_classes=True), pairs)
    logits = AnchorOutputs([], logits=[torch.tensor([[[1.0, 2.0, 3.0]]])])
    assert dense.align(ModelOutputs(anchors=logits)).anchors.logits[0].tolist() == [[[3, 1]]]
    rpn = TeacherOutputAligner(spec(), spec(num_classes=3), pairs)
    objectness = AnchorOutputs([], logits=[torch.zeros(1, 5)])
    assert rpn.align(ModelOutputs(anchors=objectness)).anchors.logits is objectness.logits
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    given = RegionOutputs([], logits=logits, foreground_logits=logits[1:])
    regions = rpn.align(ModelOutputs(regions=given)).regions
    assert regions.logits.shape == (4, 3)
    assert torch.equal(regions.foreground_logits, regions.logits[1:])


def test_deltas_without_logits_are_scaled_and_refused_where_classes_differ():
    specs = [ModelSpec({}, 2, regions=RegionSpec((weight,) * 4)) for weight in (10.0, 5.0)]
    outputs = ModelOutputs(regions=RegionOutputs([], deltas=torch.ones(1, 8)))
    aligned = TeacherOutputAligner(*specs).align(outputs)
    assert torch.equal(aligned.regions.deltas, torch.full((1, 8), 2.0))
    with pytest.raises(ValueError, match=r"DISTILLATION\.TEACHER\.CLASS_MAP"):
        TeacherOutputAligner(*specs, [[0, 1], [1, 0]]).align(outputs)
