"""ModelOutputs: parts by name, extras, foreground regions, and that outputs are not changed."""

import dataclasses

import pytest
import torch
from detectron2.structures import Boxes, Instances

from kd_search.outputs import (
    AnchorOutputs,
    CropOutputs,
    Crops,
    IdentityOutputs,
    ModelOutputs,
    Part,
    RegionOutputs,
    RegionTargets,
    names_of,
)

K = 3


def crops():
    return Crops(
        boxes=[torch.ones(2, 4)],
        person_ids=torch.tensor([1, -1]),
        shifted=torch.tensor([False, True]),
        original_boxes=[torch.ones(2, 4)],
    )


def regions_of(classes_per_image):
    """Regions whose left edge is their number in the batch."""
    proposals, number = [], 0
    for classes in classes_per_image:
        left = number + torch.arange(len(classes)).float()
        number += len(classes)
        instances = Instances((99, 99))
        instances.proposal_boxes = Boxes(torch.stack([left, left * 0, left + 1, left], dim=1))
        proposals.append(instances)
    classes = torch.tensor([c for image in classes_per_image for c in image], dtype=torch.int64)
    return RegionOutputs(proposals, targets=RegionTargets(classes, torch.zeros(0, 4)))


def test_every_part_is_got_from_its_field():
    values = {part: object() for part in Part}
    outputs = ModelOutputs(
        features=values[Part.FEATURES],
        anchors=AnchorOutputs([], values[Part.ANCHOR_LOGITS], values[Part.ANCHOR_DELTAS]),
        regions=RegionOutputs(
            [],
            logits=values[Part.REGION_LOGITS],
            deltas=values[Part.REGION_DELTAS],
            foreground_logits=values[Part.FOREGROUND_LOGITS],
        ),
        identities=IdentityOutputs(
            embeddings=values[Part.EMBEDDINGS], logits=values[Part.IDENTITY_LOGITS]
        ),
        crops=CropOutputs(
            crops(), embeddings=values[Part.CROP_EMBEDDINGS], logits=values[Part.CROP_LOGITS]
        ),
    )
    for part, value in values.items():
        assert outputs.get(part) is value


@pytest.mark.parametrize("part", list(Part))
@pytest.mark.parametrize("with_parent", [True, False])
def test_a_missing_part_is_named(part, with_parent):
    """Whether the whole of e.g. the anchors is missing, or their logits alone."""
    outputs = ModelOutputs()
    if with_parent:
        outputs = ModelOutputs(
            anchors=AnchorOutputs([]),
            regions=RegionOutputs([]),
            identities=IdentityOutputs(),
            crops=CropOutputs(crops()),
        )
    with pytest.raises(ValueError, match=part.value.replace(".", r"\.")):
        outputs.get(part)


def test_an_extra_is_added_to_new_outputs():
    first = ModelOutputs(features={"p3": torch.ones(1)}, extras={"A": 1})
    second = first.with_extra("B", 2).with_extra("A", 3)
    assert second.extras == {"A": 3, "B": 2} and second.features is first.features
    assert first.extras == {"A": 1} and ModelOutputs().extras == {}


def test_outputs_cannot_be_assigned_to():
    for outputs, name in (
        (ModelOutputs(), "features"),
        (regions_of([[0]]), "logits"),
        (IdentityOutputs(), "embeddings"),
        (CropOutputs(crops()), "embeddings"),
        (AnchorOutputs([]), "deltas"),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError, match=name):
            setattr(outputs, name, None)


def test_foreground_regions_are_those_of_a_class():
    classes = [[0, K, 2, -1], [], [K, 1]]
    regions = regions_of(classes)
    assert regions.foreground(K).tolist() == [True, False, True, False, False, True]
    boxes = regions.foreground_boxes(K)
    assert [b.tensor[:, 0].tolist() for b in boxes] == [[0, 2], [], [5]]
    # Of fewer classes, the last ones are background.
    assert regions.foreground(2).tolist() == [True, False, False, False, False, True]


def test_crops_keep_what_is_of_the_original_images_where_it_is():
    own = crops()
    moved = own.to(torch.device("meta"))
    for tensor in (*moved.boxes, moved.person_ids, moved.shifted):
        assert tensor.device.type == "meta"
    assert moved.original_boxes is own.original_boxes
    assert moved.annotations is own.annotations
    assert own.person_ids.device.type == "cpu"


def test_names_of_parts_are_sorted():
    parts = frozenset({Part.REGION_LOGITS, Part.FEATURES, Part.ANCHOR_DELTAS})
    assert names_of(parts) == "anchors.deltas, features, regions.logits"
