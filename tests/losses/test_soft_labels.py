"""Soft labels against slow references, gradients by hand, and where their minimum lies."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_search.losses import soft_binary_cross_entropy, soft_cross_entropy
from tests.losses.helpers import gradient_of, random, slow_sigmoid, slow_softmax

GOLDEN_SOFTMAX = 36.12499317378315
GOLDEN_SOFTMAX_GRADIENT_NORM = 2.207481614459154
GOLDEN_BINARY = 6.385472795137778
GOLDEN_BINARY_GRADIENT_NORM = 1.6783170625402186


def logits(*shape, seed=0, dtype=torch.float64, scale=2.0):
    return random(*shape, seed=seed, dtype=dtype, scale=scale)


def paper_weights(num_classes, dtype=torch.float64):
    """1 for every object, 1.5 for the background, which is last in Detectron2."""
    weights = torch.ones(num_classes, dtype=dtype)
    weights[-1] = 1.5
    return weights


def slow_soft_cross_entropy(student, teacher, weights, temperature):
    losses = []
    for student_row, teacher_row in zip(student.tolist(), teacher.tolist()):
        p_student = slow_softmax(student_row, temperature)
        p_teacher = slow_softmax(teacher_row, temperature)
        loss = 0.0
        for c in range(len(p_student)):
            loss -= weights[c] * p_teacher[c] * math.log(p_student[c])
        losses.append(loss * temperature**2)
    return losses


def slow_soft_binary(s, t, object_weight, background_weight, temperature, gamma):
    p_s, p_t = slow_sigmoid(s / temperature), slow_sigmoid(t / temperature)
    loss = -object_weight * p_t * math.log(p_s) - background_weight * (1 - p_t) * math.log(1 - p_s)
    return loss * temperature**2 * (abs(p_t - p_s) ** gamma if gamma else 1.0)


# Softmax heads


@settings(max_examples=40)
@given(
    num_rows=st.integers(0, 6),
    num_classes=st.integers(1, 7),
    temperature=st.sampled_from([0.5, 1.0, 4.0]),
    weighted=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_softmax_equals_slow_reference(num_rows, num_classes, temperature, weighted, seed):
    student = logits(num_rows, num_classes, seed=seed)
    teacher = logits(num_rows, num_classes, seed=seed + 1)
    weights = logits(num_classes, seed=seed + 2).abs() if weighted else None
    losses = soft_cross_entropy(student, teacher, weights, temperature)
    assert losses.shape == (num_rows,)
    slow = slow_soft_cross_entropy(
        student, teacher, weights.tolist() if weighted else [1.0] * num_classes, temperature
    )
    assert losses.tolist() == pytest.approx(slow, rel=1e-10, abs=1e-12)


def test_softmax_by_hand():
    # The teacher says 3/4 object, 1/4 background; the student says one half each.
    teacher = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    student = torch.zeros(1, 2, dtype=torch.float64)
    weights = torch.tensor([1.0, 1.5], dtype=torch.float64)
    expected = (1.0 * 0.75 + 1.5 * 0.25) * math.log(2)
    assert soft_cross_entropy(student, teacher, weights).item() == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_softmax_gradcheck(temperature):
    student, teacher = logits(3, 4).requires_grad_(), logits(3, 4, seed=1)
    weights = paper_weights(4)
    assert torch.autograd.gradcheck(
        lambda s: soft_cross_entropy(s, teacher, weights, temperature), (student,)
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0, 10.0])
@pytest.mark.parametrize("weights", [None, torch.full((5,), 1.5, dtype=torch.float64)])
def test_softmax_with_equal_weights_is_stationary_at_the_teacher(weights, temperature):
    teacher = logits(6, 5)
    gradient = gradient_of(soft_cross_entropy, teacher, teacher, weights, temperature)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-14)


def test_softmax_with_unequal_weights_is_not_stationary_at_the_teacher():
    """At P_s = P_t the gradient is P_c (sum_k w_k P_k - w_c): towards the heavier class."""
    teacher = logits(6, 5)
    weights = paper_weights(5)
    gradient = gradient_of(soft_cross_entropy, teacher, teacher, weights)
    expected = torch.zeros_like(teacher)
    for i, row in enumerate(teacher.tolist()):
        p = slow_softmax(row)
        mean_weight = sum(w * q for w, q in zip(weights.tolist(), p))
        for c in range(5):
            expected[i, c] = p[c] * (mean_weight - weights[c].item())
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)
    assert (gradient[:, -1] < -1e-3).all()  # descent raises the background
    assert (gradient[:, :-1] > 0).all()


def test_weighted_softmax_is_stationary_at_the_weighted_teacher():
    teacher = logits(6, 5)
    weights = paper_weights(5)
    gradient = gradient_of(soft_cross_entropy, teacher + weights.log(), teacher, weights)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-14)


def test_softmax_temperature_keeps_the_size_of_the_gradient():
    # For small logits T^2 makes it (z_s - z_t - mean) / C, whatever T is (Hinton et al., 2015).
    student, teacher = logits(4, 3, scale=1e-4), logits(4, 3, seed=1, scale=1e-4)
    expected = student - teacher
    expected = (expected - expected.mean(dim=1, keepdim=True)) / 3
    for temperature in (1.0, 2.0, 8.0):
        gradient = gradient_of(soft_cross_entropy, student, teacher, temperature=temperature)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-7)


def test_softmax_class_that_the_teacher_lacks():
    """A logit of -inf is a probability of 0: the row is as if the others were all."""
    student, teacher = logits(4, 5), logits(4, 5, seed=1)
    teacher[:, 2] = -math.inf
    rest = [0, 1, 3, 4]
    weights = paper_weights(5)
    losses = soft_cross_entropy(student, teacher, weights)
    for i in range(4):
        p_student = slow_softmax(student[i].tolist())
        p_teacher = slow_softmax(teacher[i, rest].tolist())
        slow = -sum(weights[c] * q * math.log(p_student[c]) for c, q in zip(rest, p_teacher))
        assert losses[i].item() == pytest.approx(slow.item(), rel=1e-10)
    gradient = gradient_of(soft_cross_entropy, student, teacher, weights)
    assert gradient.isfinite().all()
    assert (gradient[:, 2] > 0).all()  # descent lowers what the teacher excludes


# One logit a class


@settings(max_examples=40)
@given(
    shape=st.lists(st.integers(0, 4), min_size=0, max_size=3),
    object_weight=st.sampled_from([0.0, 1.0, 2.5]),
    background_weight=st.sampled_from([0.0, 1.0, 1.5]),
    temperature=st.sampled_from([0.5, 1.0, 4.0]),
    gamma=st.sampled_from([0.0, 1.0, 1.5, 2.0]),
    seed=st.integers(0, 2**16),
)
def test_binary_equals_slow_reference(
    shape, object_weight, background_weight, temperature, gamma, seed
):
    student, teacher = logits(*shape, seed=seed), logits(*shape, seed=seed + 1)
    options = (object_weight, background_weight, temperature, gamma)
    losses = soft_binary_cross_entropy(student, teacher, *options)
    assert losses.shape == student.shape
    slow = [
        slow_soft_binary(s, t, *options)
        for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist())
    ]
    assert losses.flatten().tolist() == pytest.approx(slow, rel=1e-9, abs=1e-12)


def test_binary_default_weights_are_those_of_the_paper():
    # Teacher 3/4 object, student one half: 1 on the object's term, 1.5 on the background's.
    loss = soft_binary_cross_entropy(
        torch.zeros(1, dtype=torch.float64), torch.tensor([math.log(3.0)], dtype=torch.float64)
    )
    assert loss.item() == pytest.approx((1.0 * 0.75 + 1.5 * 0.25) * math.log(2))


def test_binary_is_the_softmax_over_object_and_background():
    student, teacher = logits(7), logits(7, seed=1)
    as_softmax = soft_cross_entropy(
        torch.stack([student, torch.zeros(7)], dim=1),
        torch.stack([teacher, torch.zeros(7)], dim=1),
        paper_weights(2),
    )
    torch.testing.assert_close(soft_binary_cross_entropy(student, teacher), as_softmax)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.5, 2.0])
def test_binary_gradcheck(gamma, temperature):
    student, teacher = logits(3, 4).requires_grad_(), logits(3, 4, seed=1)
    assert torch.autograd.gradcheck(
        lambda s: soft_binary_cross_entropy(s, teacher, temperature=temperature, focal_gamma=gamma),
        (student,),
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("weight", [1.0, 1.5])
def test_binary_with_equal_weights_is_stationary_at_the_teacher(weight, temperature):
    teacher = logits(12)
    gradient = gradient_of(soft_binary_cross_entropy, teacher, teacher, weight, weight, temperature)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-14)


def test_binary_with_unequal_weights_is_not_stationary_at_the_teacher():
    """At p_s = p_t the gradient is p (1 - p) (w_b - w_o): towards the background."""
    teacher = logits(12)
    gradient = gradient_of(soft_binary_cross_entropy, teacher, teacher)
    for value, t in zip(gradient.tolist(), teacher.tolist()):
        p = slow_sigmoid(t)
        assert value == pytest.approx(p * (1 - p) * (1.5 - 1.0), rel=1e-10)
        assert value > 1e-4


def test_weighted_binary_is_stationary_at_the_weighted_teacher():
    teacher = logits(12)
    shifted = teacher + math.log(1.0 / 1.5)
    gradient = gradient_of(soft_binary_cross_entropy, shifted, teacher)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-14)


@pytest.mark.parametrize("gamma", [1.0, 1.5, 2.0])
def test_focal_factor_moves_the_minimum_to_the_teacher_whatever_the_weights(gamma):
    teacher = logits(12)
    losses = soft_binary_cross_entropy(teacher, teacher, focal_gamma=gamma)
    assert torch.equal(losses, torch.zeros(12, dtype=torch.float64))
    gradient = gradient_of(soft_binary_cross_entropy, teacher, teacher, focal_gamma=gamma)
    assert torch.equal(gradient, torch.zeros(12, dtype=torch.float64))
    for offset in (-1e-3, 1e-3):
        away = soft_binary_cross_entropy(teacher + offset, teacher, focal_gamma=gamma)
        assert (away > 0).all()


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_binary_class_that_the_teacher_lacks(gamma):
    student = logits(6)
    teacher = torch.full((6,), -math.inf, dtype=torch.float64)
    losses = soft_binary_cross_entropy(student, teacher, focal_gamma=gamma)
    for loss, s in zip(losses.tolist(), student.tolist()):
        p_s = slow_sigmoid(s)
        assert loss == pytest.approx(-1.5 * math.log(1 - p_s) * p_s**gamma, rel=1e-10)
    gradient = gradient_of(soft_binary_cross_entropy, student, teacher, focal_gamma=gamma)
    assert gradient.isfinite().all()
    assert (gradient > 0).all()


def test_binary_keeps_the_digits_of_a_sure_student():
    # 1 - sigmoid(20) has no correct digit in float32; its logarithm is -20 to nine digits.
    student, teacher = torch.tensor([20.0, -20.0]), torch.tensor([-30.0, 30.0])
    losses = soft_binary_cross_entropy(student, teacher, 1.0, 1.0)
    assert losses.tolist() == pytest.approx([20.0, 20.0], rel=1e-6)


# Both


BOTH = [soft_cross_entropy, soft_binary_cross_entropy]


def test_golden_numbers():
    """Written down from this code at a fixed seed, after it agreed with the slow references."""
    student, teacher = logits(5, 4, seed=3), logits(5, 4, seed=4)
    options = (student, teacher, paper_weights(4), 2.0)
    assert soft_cross_entropy(*options).sum().item() == pytest.approx(GOLDEN_SOFTMAX, rel=1e-9)
    norm = gradient_of(soft_cross_entropy, *options).norm().item()
    assert norm == pytest.approx(GOLDEN_SOFTMAX_GRADIENT_NORM, rel=1e-9)

    options = (student, teacher, 1.0, 1.5, 2.0, 2.0)
    total = soft_binary_cross_entropy(*options).sum().item()
    assert total == pytest.approx(GOLDEN_BINARY, rel=1e-9)
    norm = gradient_of(soft_binary_cross_entropy, *options).norm().item()
    assert norm == pytest.approx(GOLDEN_BINARY_GRADIENT_NORM, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", BOTH + [partial(soft_binary_cross_entropy, focal_gamma=2.0)])
def test_extreme_logits_stay_finite(loss, dtype):
    values = torch.tensor([-1e4, 0.0, 1e4])
    student, teacher = (
        grid.reshape(9, 1) for grid in torch.meshgrid(values, values, indexing="ij")
    )
    student = torch.cat([student, -student], dim=1).to(dtype).requires_grad_()
    teacher = torch.cat([teacher, -teacher], dim=1).to(dtype)
    losses = loss(student, teacher)
    assert losses.isfinite().all() and (losses >= 0).all()
    assert losses.max() >= 1e4  # the sure and wrong student does pay
    losses.sum().backward()
    assert student.grad.isfinite().all()


def test_no_row_with_weights():
    losses = soft_cross_entropy(torch.zeros(0, 4), torch.zeros(0, 4), paper_weights(4))
    assert losses.shape == (0,) and losses.sum().item() == 0.0


@pytest.mark.parametrize("shape", [(4,), (5, 4, 2)])
def test_softmax_wants_rows_of_classes(shape):
    with pytest.raises(ValueError, match="student_logits"):
        soft_cross_entropy(torch.zeros(shape), torch.zeros(shape))


@pytest.mark.parametrize("weights", [torch.ones(3), torch.ones(1), torch.tensor(1.0)])
def test_wrong_number_of_weights_is_refused(weights):
    with pytest.raises(ValueError, match="class_weights.* 4 "):
        soft_cross_entropy(torch.zeros(5, 4), torch.zeros(5, 4), weights)


@pytest.mark.parametrize("loss", BOTH)
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_must_be_positive(loss, temperature):
    with pytest.raises(ValueError, match="temperature"):
        loss(torch.zeros(5, 4), torch.zeros(5, 4), temperature=temperature)


@pytest.mark.parametrize("gamma", [-1.0, 0.5, math.nan])
def test_focal_gamma_with_an_infinite_gradient_is_refused(gamma):
    with pytest.raises(ValueError, match="focal_gamma"):
        soft_binary_cross_entropy(torch.zeros(5), torch.zeros(5), focal_gamma=gamma)
