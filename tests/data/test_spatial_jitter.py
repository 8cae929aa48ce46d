"""Boxes that move by no more than the paper's ranges."""

import torch

from kd_search.data.spatial_jitter import jitter_boxes, jitter_range


def test_ranges_against_the_formula():
    boxes = torch.tensor([[0.0, 0.0, 40.0, 100.0], [0.0, 0.0, 400.0, 1000.0]])
    found = jitter_range(boxes, (256, 128), 10.0, torch.tensor(20.0))
    for row, (w, h) in zip(found.tolist(), ((40, 100), (400, 1000))):
        assert row == [min(2 * w * 10 / 128, 20), min(2 * h * 10 / 256, 20)]


def test_boxes_keep_their_size_and_stay_within_half_their_range():
    boxes = torch.tensor([[100.0, 50.0, 140.0, 150.0]]).repeat(500, 1)
    torch.manual_seed(0)
    moved = jitter_boxes(
        boxes, (300, 400), input_size=(256, 128), padding=10.0, limit=torch.tensor(20.0)
    )
    shift = moved - boxes
    # Coordinates of some hundred pixels are rounded to 1e-5.
    assert torch.allclose(shift[:, :2], shift[:, 2:], atol=1e-4)
    ranges = torch.tensor([2 * 40 * 10 / 128, 2 * 100 * 10 / 256])
    assert (shift[:, :2].abs() <= ranges / 2).all()
    # All of the range is used, on both sides.
    assert (shift[:, :2].max(dim=0).values > 0.45 * ranges).all()
    assert (shift[:, :2].min(dim=0).values < -0.45 * ranges).all()


def test_boxes_stay_in_the_image_if_they_were_in_it():
    boxes = torch.tensor([[0.0, 0.0, 40.0, 100.0], [-5.0, 10.0, 45.0, 60.0]]).repeat(200, 1)
    moved = jitter_boxes(
        boxes, (100, 60), input_size=(256, 128), padding=10.0, limit=torch.tensor(20.0)
    )
    inside = moved[::2]
    assert inside[:, 1].eq(0).all() and inside[:, 0].min() >= 0 and inside[:, 2].max() <= 60
    # Sticking out is not made worse.
    assert moved[1::2, 0].min() >= -5


def test_the_generator_decides():
    boxes = torch.tensor([[100.0, 50.0, 140.0, 150.0]])
    arguments = {"input_size": (256, 128), "padding": 10.0, "limit": torch.tensor(20.0)}
    a, b = (
        jitter_boxes(boxes, (300, 400), generator=torch.Generator().manual_seed(1), **arguments)
        for _ in range(2)
    )
    assert torch.equal(a, b) and not torch.equal(a, boxes)
