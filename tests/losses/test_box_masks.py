"""Boxes painted into cells, against every cell and every box one by one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_search.losses import paint_boxes


def random_boxes(num_boxes, seed, reach=60.0):
    """Boxes that reach over the borders of a map of 5 x 6 cells of stride 8; some on cell edges."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(num_boxes, 4, generator=generator, dtype=torch.float64) * (reach + 20) - 10
    boxes = torch.cat(
        [
            torch.minimum(corners[:, :2], corners[:, 2:]),
            torch.maximum(corners[:, :2], corners[:, 2:]),
        ],
        dim=1,
    )
    boxes[::3] = (boxes[::3] / 8).round() * 8
    image_index = torch.randint(3, (num_boxes,), generator=generator)
    return boxes, image_index, torch.rand(num_boxes, generator=generator, dtype=torch.float64)


def slow_paint(boxes, image_index, weights, size, stride):
    num_images, height, width = size
    painted = torch.zeros(size, dtype=torch.float64)
    touched = torch.zeros(size, dtype=torch.bool)
    for n in range(num_images):
        for i in range(height):
            for j in range(width):
                for box, image, weight in zip(boxes.tolist(), image_index, weights.tolist()):
                    x1, y1, x2, y2 = box
                    shared_x = min(x2, (j + 1) * stride) - max(x1, j * stride)
                    shared_y = min(y2, (i + 1) * stride) - max(y1, i * stride)
                    if image == n and shared_x > 0 and shared_y > 0:
                        painted[n, i, j] = max(painted[n, i, j].item(), weight)
                        touched[n, i, j] = True
    return painted, touched


@settings(max_examples=40)
@given(num_boxes=st.integers(0, 8), seed=st.integers(0, 2**16))
def test_equals_slow_reference(num_boxes, seed):
    boxes, image_index, weights = random_boxes(num_boxes, seed)
    painted, touched = paint_boxes(boxes, image_index, weights, (3, 5, 6), 8)
    slow_painted, slow_touched = slow_paint(boxes, image_index, weights, (3, 5, 6), 8)
    assert torch.equal(painted, slow_painted)
    assert torch.equal(touched, slow_touched)


def test_a_painted_box_by_hand():
    boxes = torch.tensor([[8.0, 16.0, 24.0, 24.5]])
    painted, touched = paint_boxes(boxes, torch.tensor([1]), torch.tensor([0.5]), (2, 5, 4), 8)
    expected = torch.zeros(2, 5, 4)
    expected[1, 2:4, 1:3] = 0.5  # x in [8, 24): cells 1, 2; y in [16, 24.5): cells 2, 3
    assert torch.equal(painted, expected) and torch.equal(touched, expected > 0)


def test_the_largest_weight_holds_whatever_the_order():
    boxes = torch.tensor([[0.0, 0.0, 24.0, 8.0], [8.0, 0.0, 32.0, 8.0], [16.0, 0.0, 24.0, 8.0]])
    weights, image_index = torch.tensor([0.3, 0.9, 0.1]), torch.zeros(3, dtype=torch.int64)
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        painted, _ = paint_boxes(boxes[order], image_index, weights[order], (1, 1, 5), 8)
        assert torch.equal(painted, torch.tensor([[[0.3, 0.9, 0.9, 0.9, 0.0]]]))


def test_a_box_of_weight_0_is_no_background():
    painted, touched = paint_boxes(
        torch.tensor([[0.0, 0.0, 8.0, 8.0]]), torch.tensor([0]), torch.zeros(1), (1, 1, 2), 8
    )
    assert torch.equal(painted, torch.zeros(1, 1, 2))
    assert touched.tolist() == [[[True, False]]]


def test_boxes_that_touch_nothing():
    boxes = torch.tensor(
        [
            [-30.0, 4.0, 0.0, 12.0],  # left of the map
            [4.0, 40.0, 12.0, 60.0],  # below
            [9.0, 9.0, 9.0, 20.0],  # no width
            [20.0, 9.0, 12.0, 20.0],  # negative width
            [float("nan")] * 4,
        ]
    )
    _, touched = paint_boxes(boxes, torch.zeros(5, dtype=torch.int64), torch.ones(5), (1, 5, 6), 8)
    assert not touched.any()
    # A hundredth of a pixel has a cell.
    small = torch.tensor([[9.0, 9.0, 9.01, 9.01]])
    _, touched = paint_boxes(small, torch.zeros(1, dtype=torch.int64), torch.ones(1), (1, 5, 6), 8)
    assert touched.nonzero().tolist() == [[0, 1, 1]]


def test_no_box_and_no_image():
    nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    painted, touched = paint_boxes(*nothing, (2, 3, 4), 16)
    assert painted.shape == touched.shape == (2, 3, 4)
    assert not painted.any() and not touched.any() and touched.dtype == torch.bool
    assert paint_boxes(*nothing, (0, 3, 4), 16)[0].shape == (0, 3, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_type_of_the_weights_is_kept(dtype):
    boxes, image_index, weights = random_boxes(6, seed=1)
    painted, _ = paint_boxes(boxes.float(), image_index, weights.to(dtype), (3, 5, 6), 8)
    assert painted.dtype == dtype
    slow, _ = slow_paint(boxes.float(), image_index, weights.to(dtype), (3, 5, 6), 8)
    assert torch.equal(painted.double(), slow)


def test_no_graph():
    boxes, image_index, weights = random_boxes(4, seed=0)
    painted, _ = paint_boxes(
        boxes.requires_grad_(), image_index, weights.requires_grad_(), (3, 5, 6), 8
    )
    assert not painted.requires_grad


def test_wrong_arguments_are_refused():
    boxes, image_index, weights = random_boxes(4, seed=0)
    with pytest.raises(ValueError, match=r"boxes.* \(4, 4\), \(3,\), \(4,\)"):
        paint_boxes(boxes, image_index[:3], weights, (3, 5, 6), 8)
    with pytest.raises(ValueError, match=r"boxes.* \(4, 3\), \(4,\), \(4,\)"):
        paint_boxes(boxes[:, :3], image_index, weights, (3, 5, 6), 8)
