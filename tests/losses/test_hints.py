"""Hints: maps of two strides land on the same cells, and the distance between them."""

import math

import pytest
import torch
from torch.nn.functional import avg_pool2d, pad

from kd_search.losses import align_maps, hint_loss
from tests.losses.helpers import random

GOLDEN_L2 = 1.5074570535774199
GOLDEN_L1 = 0.9853020511372875
GOLDEN_ALIGNED = 15.84362553843989

#: (student stride, teacher stride)
STRIDES = [(16, 8), (8, 16), (16, 16), (32, 8), (8, 32), (16, 4)]


def rendered(image, stride, divisibility, channels):
    """A network's view of an image: padded right and below, one cell the mean of its pixels."""
    height, width = image.shape
    image = pad(image, (0, -width % divisibility, 0, -height % divisibility))
    cells = avg_pool2d(image[None, None], stride)
    return cells.repeat(1, channels, 1, 1)


def bump(height, width, x, y, radius=14.0):
    """An image with one smooth bump around the pixel coordinates (x, y)."""
    rows = torch.arange(height, dtype=torch.float64)[:, None] + 0.5
    columns = torch.arange(width, dtype=torch.float64)[None, :] + 0.5
    return torch.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * radius**2))


def peak_cell(cells):
    index = int(cells.flatten().argmax())
    return index // cells.shape[1], index % cells.shape[1]


def centre_of_mass(cells, stride):
    """(x, y) in pixels."""
    total = cells.sum()
    rows = (torch.arange(cells.shape[0], dtype=torch.float64) + 0.5) * stride
    columns = (torch.arange(cells.shape[1], dtype=torch.float64) + 0.5) * stride
    return ((cells.sum(0) * columns).sum() / total).item(), (
        (cells.sum(1) * rows).sum() / total
    ).item()


@pytest.mark.parametrize("marker", [(92.0, 71.0), (181.0, 133.0), (245.0, 60.0)])
@pytest.mark.parametrize("divisibilities", [(32, 32), (32, 64), (64, 32), (16, 128)])
@pytest.mark.parametrize("strides", [(16, 8), (8, 16), (16, 16)])
def test_painted_marker_lands_on_the_same_cell(strides, divisibilities, marker):
    """An image of 230 x 333 pixels, padded differently for the two networks."""
    x, y = marker
    image = bump(230, 333, x, y)
    student_map = rendered(image, strides[0], divisibilities[0], channels=3)
    teacher_map = rendered(image, strides[1], divisibilities[1], channels=5)
    student, teacher = align_maps(student_map, strides[0], teacher_map, strides[1])

    assert student.shape[:2] == (1, 3) and teacher.shape[:2] == (1, 5)
    assert student.shape[2:] == teacher.shape[2:]
    # Nothing but padding is cropped.
    assert student.shape[2] * strides[1] >= 230 and student.shape[3] * strides[1] >= 333
    cell = int(y // strides[1]), int(x // strides[1])
    for cells in (*student[0], *teacher[0]):
        assert peak_cell(cells) == cell
        assert centre_of_mass(cells, strides[1]) == pytest.approx(marker, abs=0.25)


@pytest.mark.parametrize("strides", STRIDES)
def test_a_ramp_stays_the_same_ramp(strides):
    """Maps that hold the pixel coordinate of their cells' centres agree exactly off the border."""
    maps = []
    for stride, (height, width) in zip(strides, [(256, 320), (288, 256)]):
        x = (torch.arange(width // stride, dtype=torch.float64) + 0.5) * stride
        y = (torch.arange(height // stride, dtype=torch.float64) + 0.5) * stride
        y, x = torch.meshgrid(y, x, indexing="ij")
        maps.append(torch.stack([x, y])[None])
    student, teacher = align_maps(maps[0], strides[0], maps[1], strides[1])
    assert student.shape == teacher.shape == (1, 2, 256 // strides[1], 256 // strides[1])
    border = max(1, math.ceil(strides[0] / strides[1] / 2))
    inside = (..., slice(border, -border), slice(border, -border))
    torch.testing.assert_close(student[inside], teacher[inside], rtol=0, atol=1e-9)


def slow_resampled(cells, scale):
    """Bilinear resampling by a factor from the origin, in loops: a triangle around each centre.

    Where the map shrinks the triangle is as wide as an output cell needs, and its weights are
    normalised over the cells that exist; where it grows, cells behind the border repeat it.
    """
    height, width = len(cells), len(cells[0])
    reach = max(1.0, 1 / scale)

    def weights(out, size):
        centre = (out + 0.5) / scale
        found = {}
        for i in range(-2, size + 2):
            weight = max(0.0, 1 - abs(i + 0.5 - centre) / reach)
            if scale > 1:
                i = min(max(i, 0), size - 1)
            if weight > 0 and 0 <= i < size:
                found[i] = found.get(i, 0.0) + weight
        total = sum(found.values())
        return {i: weight / total for i, weight in found.items()}

    return [
        [
            sum(
                vertical * horizontal * cells[i][j]
                for i, vertical in weights(y, height).items()
                for j, horizontal in weights(x, width).items()
            )
            for x in range(math.floor(width * scale))
        ]
        for y in range(math.floor(height * scale))
    ]


@pytest.mark.parametrize("size", [(9, 7), (7, 9), (13, 11), (5, 4)])
@pytest.mark.parametrize("strides", STRIDES)
def test_resampling_equals_slow_reference(strides, size):
    # No multiples of 2 or 4: the scaled size is no integer where the map shrinks. Some shrink to
    # one row or one column.
    student_map = random(1, 2, *size)
    teacher_map = random(1, 1, 50, 50, seed=1)
    student, _ = align_maps(student_map, strides[0], teacher_map, strides[1])
    slow = [slow_resampled(channel.tolist(), strides[0] / strides[1]) for channel in student_map[0]]
    torch.testing.assert_close(student[0], torch.tensor(slow, dtype=torch.float64)[..., :50, :50])


@pytest.mark.parametrize("student_stride", [8, 16, 32])
def test_a_constant_map_stays_constant_up_to_its_border(student_stride):
    student, _ = align_maps(
        torch.full((1, 1, 9, 7), 2.5), student_stride, torch.zeros(1, 1, 6, 6), 16
    )
    torch.testing.assert_close(student, torch.full_like(student, 2.5))


def test_equal_strides_are_only_cropped():
    student_map, teacher_map = random(2, 3, 10, 12), random(2, 5, 12, 9, seed=1)
    student, teacher = align_maps(student_map, 16, teacher_map, 16)
    assert torch.equal(student, student_map[..., :10, :9])
    assert torch.equal(teacher, teacher_map[..., :10, :9])


@pytest.mark.parametrize("strides", [(16, 8), (8, 16), (16, 16)])
def test_align_gradcheck(strides):
    student_map = random(1, 2, 5, 4).requires_grad_()
    teacher_map = random(1, 1, 7, 6, seed=1)
    assert torch.autograd.gradcheck(
        lambda s: align_maps(s, strides[0], teacher_map, strides[1])[0], (student_map,)
    )


@pytest.mark.parametrize("strides", [(16, 8), (8, 16), (16, 16)])
def test_align_no_image(strides):
    student_map = torch.zeros(0, 2, 8, 8, requires_grad=True)
    student, teacher = align_maps(student_map, strides[0], torch.zeros(0, 2, 4, 4), strides[1])
    assert student.shape == teacher.shape == (0, 2, 4, 4)
    loss = hint_loss(student, teacher)
    loss.backward()
    assert loss.item() == 0.0 and student_map.grad.shape == (0, 2, 8, 8)


@pytest.mark.parametrize("strides", [(16, 8), (8, 16), (16, 16)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_aligned_in_float32(dtype, strides):
    student_map, teacher_map = (
        random(1, 2, 8, 8, dtype=dtype),
        random(1, 2, 8, 8, dtype=dtype),
    )
    aligned = align_maps(student_map, strides[0], teacher_map, strides[1])
    expected = align_maps(student_map.float(), strides[0], teacher_map.float(), strides[1])
    for cells, reference in zip(aligned, expected):
        assert cells.dtype == torch.float32
        assert torch.equal(cells, reference)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = align_maps(student_map, strides[0], teacher_map, strides[1])
    assert torch.equal(under_autocast[0], expected[0])


def test_maps_of_different_batches_are_refused():
    with pytest.raises(ValueError, match=r"student \(2, 3, 8, 8\), teacher \(1, 3"):
        align_maps(torch.zeros(2, 3, 8, 8), 16, torch.zeros(1, 3, 8, 8), 16)
    with pytest.raises(ValueError, match=r"student \(3, 8, 8\)"):
        align_maps(torch.zeros(3, 8, 8), 16, torch.zeros(3, 8, 8), 16)


def test_map_smaller_than_one_cell_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 8\).* 8 .* 32"):
        align_maps(torch.zeros(1, 1, 3, 8), 8, torch.zeros(1, 1, 2, 2), 32)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_loss_equals_slow_reference(norm):
    student, teacher = random(2, 3, 4, 5), random(2, 3, 4, 5, seed=1)
    total, count = 0.0, 0
    for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist()):
        total += abs(s - t) if norm == "l1" else (s - t) ** 2
        count += 1
    assert count == 120
    assert hint_loss(student, teacher, norm).item() == pytest.approx(total / count, rel=1e-12)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_loss_gradcheck(norm):
    student, teacher = random(1, 2, 3, 4).requires_grad_(), random(1, 2, 3, 4, seed=1)
    assert torch.autograd.gradcheck(lambda s: hint_loss(s, teacher, norm), (student,))


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("strides", [(16, 16), (8, 8)])
def test_equal_maps_cost_nothing(strides, norm):
    student_map = random(2, 3, 6, 5).requires_grad_()
    student, teacher = align_maps(student_map, strides[0], student_map.detach(), strides[1])
    loss = hint_loss(student, teacher, norm)
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(student_map.grad, torch.zeros_like(student_map))


def test_golden_numbers():
    """Written down from this code at a fixed seed, after it agreed with the slow references."""
    student_map, teacher_map = random(2, 3, 6, 5, seed=3), random(2, 3, 10, 12, seed=4)
    student, teacher = align_maps(student_map, 16, teacher_map, 8)
    assert hint_loss(student, teacher).item() == pytest.approx(GOLDEN_L2, rel=1e-9)
    assert hint_loss(student, teacher, "l1").item() == pytest.approx(GOLDEN_L1, rel=1e-9)
    assert student.norm().item() == pytest.approx(GOLDEN_ALIGNED, rel=1e-9)


def test_teacher_gets_no_gradient():
    student_map = random(1, 3, 6, 5).requires_grad_()
    teacher_map = random(1, 3, 12, 10, seed=1).requires_grad_()
    student, teacher = align_maps(student_map, 16, teacher_map, 8)
    assert not teacher.requires_grad
    hint_loss(student, teacher_map[..., :12, :10]).backward()
    assert teacher_map.grad is None
    assert student_map.grad.abs().sum() > 0


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)])
def test_no_element_gives_exactly_zero_on_the_graph(shape, norm):
    weight = torch.ones(3, 1, 1, requires_grad=True)
    loss = hint_loss(weight * torch.zeros(shape), torch.zeros(shape), norm)
    assert loss.shape == () and loss.item() == 0.0
    loss.backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="norm 'L2'"):
        hint_loss(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), "L2")
