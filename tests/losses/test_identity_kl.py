"""The divergence of identity probabilities, in both directions, against slow references."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import kl_div, log_softmax

from kd_search.losses import identity_kl, logits_squared_error, soft_cross_entropy
from tests.losses.helpers import gradient_of, random, slow_softmax

GOLDEN = {"student_teacher": 7.589210151005235, "teacher_student": 7.463461572623326}
GOLDEN_GRADIENT_NORM = {
    "student_teacher": 1.7407775705716175,
    "teacher_student": 1.8377467597402943,
}

both_directions = pytest.mark.parametrize("direction", ["student_teacher", "teacher_student"])


def logits(*shape, seed=0, dtype=torch.float64):
    return random(*shape, seed=seed, dtype=dtype, scale=2.0)


def slow_kl(student, teacher, temperature, direction):
    losses = []
    for student_row, teacher_row in zip(student.tolist(), teacher.tolist()):
        p, q = slow_softmax(student_row, temperature), slow_softmax(teacher_row, temperature)
        if direction == "teacher_student":
            p, q = q, p
        losses.append(temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q)))
    return losses


@settings(max_examples=60)
@given(
    num_rows=st.integers(0, 6),
    num_ids=st.integers(1, 8),
    temperature=st.sampled_from([0.5, 1.0, 10.0]),
    direction=st.sampled_from(["student_teacher", "teacher_student"]),
    seed=st.integers(0, 2**16),
)
def test_equals_slow_reference(num_rows, num_ids, temperature, direction, seed):
    student = logits(num_rows, num_ids, seed=seed)
    teacher = logits(num_rows, num_ids, seed=seed + 1)
    losses = identity_kl(student, teacher, temperature, direction)
    assert losses.shape == (num_rows,)
    slow = slow_kl(student, teacher, temperature, direction)
    assert losses.tolist() == pytest.approx(slow, rel=1e-10, abs=1e-12)


def test_directions_by_hand():
    # The teacher says 3/4 and 1/4, the student one half each.
    teacher = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    student = torch.zeros(1, 2, dtype=torch.float64)
    as_printed = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    as_usual = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert identity_kl(student, teacher).item() == pytest.approx(as_printed)
    assert identity_kl(student, teacher, direction="teacher_student").item() == pytest.approx(
        as_usual
    )
    assert abs(as_printed - as_usual) > 0.01


@pytest.mark.parametrize("temperature", [1.0, 10.0])
def test_mean_of_teacher_student_is_the_term_of_views_distillation(temperature):
    student, teacher = logits(7, 5), logits(7, 5, seed=1)
    expected = temperature**2 * kl_div(
        log_softmax(student / temperature, dim=1),
        log_softmax(teacher / temperature, dim=1).exp(),
        reduction="batchmean",
    )
    loss = identity_kl(student, teacher, temperature, "teacher_student").mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_teacher_student_has_the_gradient_of_the_soft_cross_entropy(temperature):
    """The two differ by the teacher's entropy alone."""
    student, teacher = logits(7, 5), logits(7, 5, seed=1)
    twin = student.clone().requires_grad_()
    soft_cross_entropy(twin, teacher, temperature=temperature).sum().backward()
    torch.testing.assert_close(
        gradient_of(identity_kl, student, teacher, temperature, "teacher_student"), twin.grad
    )


@both_directions
def test_size_at_a_high_temperature_is_kept_by_its_square(direction):
    """T^2 KL tends to half the variance of the difference of the logits."""
    student, teacher = logits(7, 5), logits(7, 5, seed=1)
    half_variance = (student - teacher).var(dim=1, correction=0) / 2
    losses = identity_kl(student, teacher, 1e4, direction)
    torch.testing.assert_close(losses, half_variance, rtol=1e-3, atol=0)


@both_directions
@pytest.mark.parametrize("temperature", [1.0, 10.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_equal_logits_cost_nothing(dtype, temperature, direction):
    student = logits(6, 5, dtype=dtype)
    losses = identity_kl(student, student.clone(), temperature, direction)
    assert torch.equal(losses, torch.zeros_like(losses))
    gradient = gradient_of(identity_kl, student, student, temperature, direction)
    assert gradient.abs().max() < 1e-5


@both_directions
def test_zero_only_at_equal_probabilities(direction):
    teacher = logits(6, 5)
    shift = logits(6, 1, seed=1)
    same = identity_kl(teacher + shift, teacher, 1.0, direction)
    torch.testing.assert_close(same, torch.zeros_like(same), rtol=0, atol=1e-14)
    other = teacher.clone()
    other[:, 2] += 1e-3
    assert (identity_kl(other, teacher, 1.0, direction) > 1e-12).all()


@both_directions
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradcheck(temperature, direction):
    student, teacher = logits(3, 4).requires_grad_(), logits(3, 4, seed=1)
    assert torch.autograd.gradcheck(
        lambda s: identity_kl(s, teacher, temperature, direction), (student,)
    )


def test_identity_that_the_teacher_does_not_know():
    student, teacher = logits(6, 5), logits(6, 5, seed=1)
    teacher[:, 3] = -math.inf
    losses = identity_kl(student, teacher, 2.0, "teacher_student")
    known = [0, 1, 2, 4]
    for row in range(6):
        p_student = slow_softmax(student[row].tolist(), 2.0)
        p_teacher = slow_softmax(teacher[row, known].tolist(), 2.0)
        expected = sum(p * math.log(p / p_student[c]) for p, c in zip(p_teacher, known))
        assert losses[row].item() == pytest.approx(4 * expected, rel=1e-10)
    gradient = gradient_of(identity_kl, student, teacher, 2.0, "teacher_student")
    assert gradient.isfinite().all() and (gradient[:, 3] > 0).all()
    # The student gives that identity some probability, so this way round nothing is finite.
    assert (identity_kl(student, teacher) == math.inf).all()


@both_directions
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits_stay_finite(dtype, direction):
    values = torch.tensor([-1e4, 0.0, 1e4])
    student, teacher = (
        grid.reshape(9, 1) for grid in torch.meshgrid(values, values, indexing="ij")
    )
    student, teacher = (torch.cat([x, -x], dim=1).to(dtype) for x in (student, teacher))
    losses = identity_kl(student, teacher, 1.0, direction)
    assert losses.isfinite().all() and (losses >= 0).all()
    assert losses.max() >= 1e4  # the sure and wrong student does pay
    assert gradient_of(identity_kl, student, teacher, 1.0, direction).isfinite().all()


@both_directions
def test_golden_numbers(direction):
    """Written down from this code at a fixed seed, after it agreed with the slow reference."""
    student, teacher = logits(5, 4, seed=3), logits(5, 4, seed=4)
    total = identity_kl(student, teacher, 2.0, direction).sum().item()
    assert total == pytest.approx(GOLDEN[direction], rel=1e-9)
    norm = gradient_of(identity_kl, student, teacher, 2.0, direction).norm().item()
    assert norm == pytest.approx(GOLDEN_GRADIENT_NORM[direction], rel=1e-9)


@both_directions
def test_one_identity_leaves_nothing_to_say(direction):
    student = logits(3, 1)
    losses = identity_kl(student, logits(3, 1, seed=1), 1.0, direction)
    assert torch.equal(losses, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(4,), (5, 4, 2)])
def test_rows_of_identities_are_wanted(shape):
    with pytest.raises(ValueError, match="student_logits"):
        identity_kl(torch.zeros(shape), torch.zeros(shape))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="temperature"):
        identity_kl(torch.zeros(5, 4), torch.zeros(5, 4), temperature)


def test_unknown_direction_is_refused():
    with pytest.raises(ValueError, match="direction 'forward'"):
        identity_kl(torch.zeros(5, 4), torch.zeros(5, 4), 1.0, "forward")


# Squared error of the logits


@settings(max_examples=30)
@given(num_rows=st.integers(0, 5), size=st.integers(1, 6), seed=st.integers(0, 2**16))
def test_squared_error_equals_slow_reference(num_rows, size, seed):
    student, teacher = logits(num_rows, size, seed=seed), logits(num_rows, size, seed=seed + 1)
    losses = logits_squared_error(student, teacher)
    expected = [
        sum((a - b) ** 2 for a, b in zip(*rows)) / size
        for rows in zip(student.tolist(), teacher.tolist())
    ]
    assert losses.shape == (num_rows,) and losses.tolist() == pytest.approx(expected, rel=1e-12)


def test_squared_error_has_a_linear_gradient_and_depends_on_a_constant():
    student, teacher = logits(3, 4), logits(3, 4, seed=1)
    gradient = gradient_of(logits_squared_error, student, teacher)
    torch.testing.assert_close(gradient, (student - teacher) / 2)
    shifted = logits_squared_error(student, student + 3)
    torch.testing.assert_close(shifted, torch.full((3,), 9.0, dtype=torch.float64))
