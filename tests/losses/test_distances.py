"""Distance preservation against slow loops: squared distances, two reductions, zeros."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_search.losses import distance_preservation
from tests.losses.helpers import gradient_of, random, slow_squared

GOLDEN = 24.160105434411726
GOLDEN_GRADIENT_NORM = 9.654006789544844


def slow_mean(student, teacher):
    """As the authors' code: over the whole matrix, the diagonal included."""
    student, teacher, total = student.tolist(), teacher.tolist(), 0.0
    for i in range(len(student)):
        for j in range(len(student)):
            difference = slow_squared(teacher[i], teacher[j]) - slow_squared(student[i], student[j])
            total += difference**2
    return 0.5 * total / len(student) ** 2


def slow_sum(student, teacher):
    """As the paper: a sum over the pairs, each once."""
    student, teacher, total = student.tolist(), teacher.tolist(), 0.0
    for i in range(len(student)):
        for j in range(i + 1, len(student)):
            difference = slow_squared(teacher[i], teacher[j]) - slow_squared(student[i], student[j])
            total += difference**2
    return total


@settings(max_examples=40)
@given(
    num_rows=st.integers(1, 9),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 2**16),
)
def test_equals_slow_reference(num_rows, sizes, seed):
    student, teacher = (
        random(num_rows, sizes[0], seed=seed),
        random(num_rows, sizes[1], seed=seed + 1),
    )
    loss = distance_preservation(student, teacher)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(slow_mean(student, teacher), rel=1e-10)
    loss = distance_preservation(student, teacher, reduction="sum")
    assert loss.shape == ()
    assert loss.item() == pytest.approx(slow_sum(student, teacher), rel=1e-10)


def test_by_hand():
    # Squared distances 9 of the teacher and 4 of the student, in two of four entries.
    student = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    teacher = torch.tensor([[1.0], [4.0]])
    assert distance_preservation(student, teacher).item() == 0.5 * (2 * 25) / 4
    assert distance_preservation(student, teacher, reduction="sum").item() == 25.0


def test_ignores_whatever_keeps_the_distances():
    student = random(7, 4)
    rotation = torch.linalg.qr(random(4, 4, seed=1))[0]
    teacher = torch.cat([student @ rotation + 3, torch.ones(7, 2, dtype=torch.float64)], dim=1)
    assert distance_preservation(student, teacher).item() < 1e-24
    assert gradient_of(distance_preservation, student, teacher).abs().max() < 1e-12
    # ... and not a scale, which counts with its fourth power.
    loss = distance_preservation(student, random(7, 4, seed=2)).item()
    scaled = distance_preservation(student * 10, random(7, 4, seed=2) * 10).item()
    assert scaled == pytest.approx(loss * 1e4)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("teacher_size", [4, 6])
def test_gradcheck(teacher_size, reduction):
    student, teacher = random(5, 4).requires_grad_(), random(5, teacher_size, seed=1)
    assert torch.autograd.gradcheck(
        lambda s: distance_preservation(s, teacher, reduction), (student,)
    )


def test_gradient_by_hand():
    """Of the sum over i < j of (D2_T - D2_S)^2: - 4 sum_j (D2_T - D2_S) (x_i - x_j)."""
    student, teacher = random(5, 4), random(5, 3, seed=1)
    gradient = gradient_of(distance_preservation, student, teacher, "sum")
    for i in range(5):
        expected = torch.zeros(4, dtype=torch.float64)
        for j in range(5):
            difference = slow_squared(teacher[i], teacher[j]) - slow_squared(student[i], student[j])
            expected -= 4 * difference * (student[i] - student[j])
        torch.testing.assert_close(gradient[i], expected)


def test_identical_embeddings_have_a_finite_gradient():
    student, teacher = random(6, 3), random(6, 3, seed=1)
    student[3] = student[0]
    assert gradient_of(distance_preservation, student, teacher).isfinite().all()
    point = torch.ones(6, 3, dtype=torch.float64)
    assert torch.equal(gradient_of(distance_preservation, point, teacher), torch.zeros_like(point))
    assert gradient_of(distance_preservation, student, point).isfinite().all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("num_rows", [0, 1])
def test_less_than_a_pair_is_exactly_zero_on_the_graph(num_rows, reduction):
    layer = torch.nn.Linear(3, 4)
    student, teacher = layer(torch.ones(num_rows, 3)), torch.ones(num_rows, 6)
    loss = distance_preservation(student, teacher, reduction)
    assert loss.shape == () and loss.item() == 0.0
    loss.backward()
    assert torch.equal(layer.weight.grad, torch.zeros_like(layer.weight))


def test_far_from_the_origin_the_digits_are_kept():
    """Many rows close together far away: |a|^2 + |b|^2 - 2ab would have no digit left."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randint(-8, 9, (40, 4), generator=generator).float() for _ in range(2)
    )
    expected = distance_preservation(student, teacher)
    assert expected.item() == pytest.approx(slow_mean(student, teacher), rel=1e-5)
    assert torch.equal(distance_preservation(student + 2.0**16, teacher - 2.0**16), expected)


def test_golden_numbers():
    """Written down from this code at a fixed seed, after it agreed with the slow reference."""
    student, teacher = random(8, 4, seed=3), random(8, 5, seed=4)
    loss = distance_preservation(student, teacher).item()
    assert loss == pytest.approx(GOLDEN, rel=1e-9)
    norm = gradient_of(distance_preservation, student, teacher).norm().item()
    assert norm == pytest.approx(GOLDEN_GRADIENT_NORM, rel=1e-9)


def test_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="reduction 'none'"):
        distance_preservation(torch.zeros(2, 2), torch.zeros(2, 2), "none")
