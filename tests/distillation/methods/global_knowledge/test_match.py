"""Features and levels of regions, against loops over sampled points."""

import math

import pytest
import torch
from detectron2.structures import Boxes, Instances

from kd_search.distillation.methods.global_knowledge.match import (
    assign_levels,
    pool_regions,
    regions_of,
)
from kd_search.outputs import IdentityOutputs, ModelOutputs, RegionOutputs, RegionTargets

#: In a 128 x 96 picture: inside, over the border, thinner than a cell, all of it.
BOXES = torch.tensor(
    [
        [10.0, 20.0, 75.5, 80.25],
        [100.0, 60.0, 150.0, 110.0],
        [40.0, 30.0, 43.0, 90.0],
        [0.0, 0.0, 128.0, 96.0],
    ]
)
IMAGES = torch.tensor([0, 0, 1, 1])
STRIDES = [16, 32]


def maps(dtype=torch.float32, channels=(3, 5)):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, d, 96 // s, 128 // s, generator=generator).to(dtype)
        for d, s in zip(channels, STRIDES)
    ]


def slow_bilinear(grid, y, x):
    """(D,) value of a map (D, H, W) between its cells' centres, 0 more than a cell outside."""
    height, width = grid.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return grid.new_zeros(len(grid))
    y, x = (min(max(v, 0.0), n - 1.0) for v, n in ((y, height), (x, width)))
    i, j = int(y), int(x)
    k, m = min(i + 1, height - 1), min(j + 1, width - 1)
    dy, dx = y - i, x - j
    top = (1 - dx) * grid[:, i, j] + dx * grid[:, i, m]
    return (1 - dy) * top + dy * ((1 - dx) * grid[:, k, j] + dx * grid[:, k, m])


def slow_pool(grid, stride, box, samples):
    x0, y0, x1, y1 = (v / stride - 0.5 for v in box.double().tolist())
    rows, columns = samples or math.ceil(y1 - y0), samples or math.ceil(x1 - x0)
    points = [
        slow_bilinear(
            grid.double(), y0 + (y1 - y0) * (i + 0.5) / rows, x0 + (x1 - x0) * (j + 0.5) / columns
        )
        for i in range(rows)
        for j in range(columns)
    ]
    return sum(points) / len(points)


@pytest.mark.parametrize("samples", [7, 2, 0])
def test_features_are_means_of_points_at_every_level(samples):
    pooled = pool_regions(maps(), STRIDES, BOXES, IMAGES, samples)
    assert [level.shape for level in pooled] == [(4, 3), (4, 5)]
    for found, grid, stride in zip(pooled, maps(), STRIDES):
        for r in range(4):
            expected = slow_pool(grid[IMAGES[r]], stride, BOXES[r], samples)
            torch.testing.assert_close(found[r].double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("samples", [7, 0])
@pytest.mark.parametrize("extent", [0.0, 1e-3, 0.5, 3.0])
def test_a_region_smaller_than_a_cell_has_the_features_around_it(samples, extent):
    centre = torch.tensor([40.0, 56.0])
    box = torch.cat([centre - extent / 2, centre + extent / 2])[None]
    (found,) = pool_regions(maps()[:1], STRIDES[:1], box, torch.tensor([1]), samples)
    # The centre of cell (3, 2) of stride 16, where a map is its cell's value.
    expected = maps()[0][1, :, 3, 2]
    torch.testing.assert_close(found[0], expected, rtol=0, atol=0.15 if extent > 1 else 0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_pooled_in_float32(dtype):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pool_regions(maps(dtype), STRIDES, BOXES, IMAGES)
    expected = pool_regions([m.float() for m in maps(dtype)], STRIDES, BOXES, IMAGES)
    for ours, theirs in zip(found, expected):
        assert ours.dtype == torch.float32 and torch.equal(ours, theirs)


@pytest.mark.parametrize("count", [4, 0])
def test_gradients_reach_the_maps_and_no_region_keeps_the_graph(count):
    levels = [m.requires_grad_() for m in maps()]
    pooled = pool_regions(levels, STRIDES, BOXES[:count], IMAGES[:count])
    assert [len(level) for level in pooled] == [count] * 2
    sum(level.square().sum() for level in pooled).backward()
    for level in levels:
        assert torch.isfinite(level.grad).all() and bool(level.grad.any()) == bool(count)


def test_levels_go_by_size():
    sides = torch.tensor([0.0, 1.0, 55.9, 56.0, 111.9, 112.0, 223.9, 224.0, 448.0, 1e4])
    boxes = torch.stack([sides * 0 + 7, sides * 0 + 9, sides / 2 + 7, sides * 2 + 9], dim=1)
    assert assign_levels(boxes, 4).tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 3, 3]
    assert assign_levels(boxes, 1).tolist() == [0] * 10
    assert assign_levels(boxes, 4, finest_scale=28.0).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert assign_levels(boxes[:0], 4).dtype == torch.int64


def proposals(*boxes):
    instances = Instances((96, 128))
    instances.proposal_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    return instances


def annotated(boxes, classes, ids=None):
    instances = Instances((96, 128))
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    if ids is not None:
        instances.gt_person_ids = torch.tensor(ids, dtype=torch.int64)
    return instances


def test_regions_are_the_foreground_proposals_in_order():
    boxes = torch.arange(20.0).view(5, 4)
    given = [proposals(*boxes[:2].tolist()), proposals(), proposals(*boxes[2:].tolist())]
    targets = RegionTargets(torch.tensor([2, 1, 0, -1, 1]), torch.zeros(3, 4))
    outputs = ModelOutputs(
        regions=RegionOutputs(given, targets=targets),
        identities=IdentityOutputs(person_ids=torch.tensor([4, -1, 3])),
        # Annotated boxes are not used where there are proposals.
        annotated=[annotated([], [])] * 3,
    )
    regions = regions_of(outputs, num_classes=2)
    assert torch.equal(regions.boxes, boxes[[1, 2, 4]])
    assert regions.image_index.tolist() == [0, 2, 2]
    assert regions.classes.tolist() == [1, 0, 1]
    assert regions.person_ids.tolist() == [4, -1, 3]


def test_without_proposals_regions_are_what_is_annotated():
    boxes = torch.arange(12.0).view(3, 4)
    parts = [annotated([], [], []), annotated(boxes.tolist(), [1, 5, 0], [3, 4, -1])]
    regions = regions_of(ModelOutputs(annotated=parts), num_classes=2)
    assert torch.equal(regions.boxes, boxes[[0, 2]])
    assert regions.image_index.tolist() == [1, 1] and regions.person_ids.tolist() == [3, -1]
    parts[0].remove("gt_person_ids")
    assert regions_of(ModelOutputs(annotated=parts), num_classes=2).person_ids is None


def test_a_network_without_boxes_is_refused():
    with pytest.raises(ValueError, match="ModelOutputs.annotated"):
        regions_of(ModelOutputs(), num_classes=2)
