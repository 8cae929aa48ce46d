"""The teacher-bounded regression: the paper's rule box by box, and its exact zeros."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_search.losses import bounded_regression, teacher_l2
from tests.losses.helpers import slow_squared

GOLDEN_BOUNDED = 122.41410511801827
GOLDEN_BOUNDED_GRADIENT_NORM = 22.12818158982055
GOLDEN_L2 = 141.81674633227308


def deltas(num_boxes, seed=0, dtype=torch.float64):
    """Student, teacher and target."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(num_boxes, 4, generator=generator, dtype=torch.float64).to(dtype)
        for _ in range(3)
    ]


def slow_bounded(student, teacher, target, margin):
    losses = []
    for r_s, r_t, y in zip(student.tolist(), teacher.tolist(), target.tolist()):
        if slow_squared(r_s, y) + margin > slow_squared(r_t, y):
            losses.append(slow_squared(r_s, y))
        else:
            losses.append(0.0)
    return losses


def at_distance(squared):
    """(P, 4) deltas whose squared distance to zero is the given one, along one axis."""
    result = torch.zeros(len(squared), 4, dtype=torch.float64)
    result[:, 1] = torch.tensor(squared, dtype=torch.float64).sqrt()
    return result


@settings(max_examples=60)
@given(
    num_boxes=st.integers(0, 12),
    margin=st.sampled_from([0.0, 0.2, 1.0, 5.0]),
    seed=st.integers(0, 2**16),
)
def test_bounded_equals_slow_reference(num_boxes, margin, seed):
    student, teacher, target = deltas(num_boxes, seed)
    losses = bounded_regression(student, teacher, target, margin)
    assert losses.shape == (num_boxes,)
    slow = slow_bounded(student, teacher, target, margin)
    assert losses.tolist() == pytest.approx(slow, rel=1e-12)


@settings(max_examples=20)
@given(num_boxes=st.integers(0, 12), seed=st.integers(0, 2**16))
def test_l2_equals_slow_reference(num_boxes, seed):
    student, teacher, _ = deltas(num_boxes, seed)
    slow = [slow_squared(r_s, r_t) for r_s, r_t in zip(student.tolist(), teacher.tolist())]
    assert teacher_l2(student, teacher).tolist() == pytest.approx(slow, rel=1e-12)


def test_bound_on_both_sides():
    """Squared errors that binary numbers hold exactly, margin 1/4: the rule to the last bit."""
    student = at_distance([1.0, 1.0, 1.0, 4.0, 0.0, 0.0])
    teacher = torch.zeros(6, 4, dtype=torch.float64)
    # Teacher's squared errors: 1.5625, 1.25, 1, 1, 0.25, 0.
    teacher[0, 2] = 1.25
    teacher[1, :2] = torch.tensor([1.0, 0.5])
    teacher[2, 0] = 1.0
    teacher[3, 0] = 1.0
    teacher[4, 0] = 0.5
    target = torch.zeros(6, 4, dtype=torch.float64)
    losses = bounded_regression(student, teacher, target, margin=0.25)
    # Better by more than the margin; by just the margin; no better (pays); worse (pays);
    # perfect and better by just the margin; both perfect (nothing left to pay).
    assert losses.tolist() == [0.0, 0.0, 1.0, 4.0, 0.0, 0.0]


@pytest.mark.parametrize("margin", [0.0, 0.2, 3.0])
def test_zero_of_the_bound_is_exact_in_value_and_gradient(margin):
    student, teacher, target = deltas(200)
    student.requires_grad_()
    losses = bounded_regression(student, teacher, target, margin)
    losses.sum().backward()
    for i in range(200):
        error = slow_squared(student[i].tolist(), target[i].tolist())
        bound = slow_squared(teacher[i].tolist(), target[i].tolist())
        if error + margin > bound:
            assert losses[i].item() == pytest.approx(error, rel=1e-12) and losses[i] > 0
            expected = 2 * (student[i] - target[i]).detach()
            torch.testing.assert_close(student.grad[i], expected, rtol=1e-12, atol=0)
        else:
            assert losses[i].item() == 0.0
            assert torch.equal(student.grad[i], torch.zeros(4, dtype=torch.float64))
    paid = int((losses > 0).sum())
    assert 10 < paid < 190  # the sample holds both sides


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_student_equal_to_its_teacher_pays_nothing_without_margin(dtype):
    student, _, target = deltas(50, dtype=dtype)
    student.requires_grad_()
    losses = bounded_regression(student, student.detach().clone(), target, margin=0.0)
    assert torch.equal(losses, torch.zeros_like(losses))
    losses.sum().backward()
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_student_equal_to_its_teacher_pays_with_a_margin():
    student, _, target = deltas(50)
    losses = bounded_regression(student, student.clone(), target, margin=1e-6)
    torch.testing.assert_close(losses, teacher_l2(student, target))


def test_payment_goes_to_the_ground_truth_and_not_to_the_teacher():
    student, _, target = deltas(20)
    teacher = target.clone()  # a perfect teacher: everybody pays
    other = target + 1e-3 * torch.ones(20, 4, dtype=torch.float64)
    expected = teacher_l2(student, target)
    assert torch.equal(bounded_regression(student, teacher, target), expected)
    assert torch.equal(bounded_regression(student, other, target), expected)


def test_margin_lives_in_the_square_of_the_scale_of_the_deltas():
    student, teacher, target = deltas(100)
    scale = torch.tensor([10.0, 10.0, 10.0, 10.0], dtype=torch.float64)
    losses = bounded_regression(student, teacher, target, margin=0.5)
    scaled = bounded_regression(student * scale, teacher * scale, target * scale, margin=50.0)
    torch.testing.assert_close(scaled, losses * 100)
    same_margin = bounded_regression(student * scale, teacher * scale, target * scale, margin=0.5)
    assert not torch.equal(same_margin > 0, losses > 0)


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_bounded_gradcheck(margin):
    # Away from the bound, where the loss jumps; this sample keeps a distance from it.
    student, teacher, target = deltas(12, seed=8)
    gaps = [
        slow_squared(s, y) + margin - slow_squared(t, y)
        for s, t, y in zip(student.tolist(), teacher.tolist(), target.tolist())
    ]
    assert min(abs(gap) for gap in gaps) > 0.1
    assert min(gaps) < 0 < max(gaps)
    student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: bounded_regression(s, teacher, target, margin), (student,)
    )


def test_l2_gradcheck():
    student, teacher, _ = deltas(5)
    assert torch.autograd.gradcheck(lambda s: teacher_l2(s, teacher), (student.requires_grad_(),))


def test_golden_numbers():
    """Written down from this code at a fixed seed, after it agreed with the slow reference."""
    student, teacher, target = deltas(20, seed=3)
    student.requires_grad_()
    total = bounded_regression(student, teacher, target, margin=0.2).sum()
    total.backward()
    assert total.item() == pytest.approx(GOLDEN_BOUNDED, rel=1e-9)
    assert student.grad.norm().item() == pytest.approx(GOLDEN_BOUNDED_GRADIENT_NORM, rel=1e-9)
    assert teacher_l2(student, teacher).sum().item() == pytest.approx(GOLDEN_L2, rel=1e-9)


def test_only_the_student_gets_a_gradient():
    student, teacher, target = (tensor.requires_grad_() for tensor in deltas(9))
    (bounded_regression(student, teacher, target) + teacher_l2(student, teacher)).sum().backward()
    assert teacher.grad is None and target.grad is None
    assert student.grad.abs().sum() > 0
