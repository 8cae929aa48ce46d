"""The two relation terms against slow references, what they ignore, and where they are zero."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_search.losses import pairwise_relation_loss, triplet_relation_loss
from tests.losses.helpers import gradient_of, identities, random, slow_distance

GOLDEN_PAIRWISE = 0.20268287124507803
GOLDEN_PAIRWISE_GRADIENT_NORM = 0.038908216701821895
GOLDEN_TRIPLET = 16.15410662451487
GOLDEN_TRIPLET_GRADIENT_NORM = 3.6349715691767384


# Pair-wise


def slow_relations(embeddings):
    result = []
    for a in embeddings:
        row = [sum(x * y for x, y in zip(a, b)) for b in embeddings]
        norm = math.sqrt(sum(value * value for value in row))
        result.append([value / norm if norm else 0.0 for value in row])
    return result


def slow_pairwise(student, teacher):
    relations = slow_relations(student.tolist()), slow_relations(teacher.tolist())
    total = 0.0
    for student_row, teacher_row in zip(*relations):
        for s, t in zip(student_row, teacher_row):
            total += (s - t) ** 2
    return total / len(student) ** 2


@settings(max_examples=40)
@given(
    num_rows=st.integers(1, 9),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 2**16),
)
def test_pairwise_equals_slow_reference(num_rows, sizes, seed):
    student, teacher = (
        random(num_rows, sizes[0], seed=seed),
        random(num_rows, sizes[1], seed=seed + 1),
    )
    loss = pairwise_relation_loss(student, teacher)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(slow_pairwise(student, teacher), rel=1e-10, abs=1e-14)


def test_pairwise_by_hand():
    # S of the student: rows (1, 0), (0, 1). Of the teacher: all four inner products are 1, each
    # row has the norm sqrt 2. Differences 1 - 1/sqrt 2 (twice) and 1/sqrt 2 (twice).
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    teacher = torch.tensor([[1.0], [1.0]], dtype=torch.float64)
    expected = (2 * (1 - 0.5**0.5) ** 2 + 2 * 0.5) / 4
    assert pairwise_relation_loss(student, teacher).item() == pytest.approx(expected)


def test_rows_are_normalised_each_for_itself():
    """Orthogonal rows of different lengths: each row of S is one entry, 1 after normalisation.

    One norm for the whole matrix, or none, would leave the lengths in.
    """
    lengths = torch.tensor([1.0, 3.0, 0.01], dtype=torch.float64)
    assert pairwise_relation_loss(lengths.diag(), torch.eye(3).double()).item() < 1e-30
    # Not orthogonal: there the length of a row does count, through the columns of the others.
    student = random(3, 4)
    assert pairwise_relation_loss(student * lengths[:, None], student).item() > 1e-3


def test_pairwise_ignores_rotation_scale_and_size():
    student = random(7, 4)
    rotation = torch.linalg.qr(random(4, 4, seed=1))[0]
    teacher = torch.cat([student @ rotation * 12.5, torch.zeros(7, 3, dtype=torch.float64)], dim=1)
    assert pairwise_relation_loss(student, teacher).item() < 1e-28
    assert gradient_of(pairwise_relation_loss, student, teacher).abs().max() < 1e-14
    # ... and not a shift: inner products are taken from the origin.
    assert pairwise_relation_loss(student, student + 1).item() > 1e-3


@pytest.mark.parametrize("teacher_size", [4, 6])
def test_pairwise_gradcheck(teacher_size):
    student, teacher = random(5, 4).requires_grad_(), random(5, teacher_size, seed=1)
    assert torch.autograd.gradcheck(lambda s: pairwise_relation_loss(s, teacher), (student,))


def test_pairwise_row_of_zeros_has_no_relations():
    student, teacher = random(4, 3), random(4, 5, seed=1)
    student[2] = 0
    loss = pairwise_relation_loss(student, teacher)
    assert loss.item() == pytest.approx(slow_pairwise(student, teacher), rel=1e-10)
    gradient = gradient_of(pairwise_relation_loss, student, teacher)
    assert gradient.isfinite().all() and gradient.abs().max() < 10
    # A teacher's row of zeros, and nothing but zeros.
    zeros = torch.zeros(4, 3, dtype=torch.float64)
    assert gradient_of(pairwise_relation_loss, teacher, student).isfinite().all()
    assert pairwise_relation_loss(zeros, zeros).item() == 0.0
    assert gradient_of(pairwise_relation_loss, zeros, teacher).isfinite().all()


@pytest.mark.parametrize("num_rows", [0, 1])
def test_pairwise_of_less_than_a_pair_is_exactly_zero_on_the_graph(num_rows):
    layer = torch.nn.Linear(3, 4)
    loss = pairwise_relation_loss(layer(torch.ones(num_rows, 3)), torch.ones(num_rows, 6))
    assert loss.shape == () and loss.item() == 0.0
    loss.backward()
    assert torch.equal(layer.weight.grad, torch.zeros_like(layer.weight))


# Triplet-wise


def slow_triplet(student, teacher, person_ids, margin, literal=False):
    student, teacher, person_ids = student.tolist(), teacher.tolist(), person_ids.tolist()
    losses = []
    for i in range(len(student)):
        negatives = []
        for j in range(len(student)):
            if literal:
                is_negative = j != i
            elif person_ids[i] == -1:
                is_negative = person_ids[j] != -1
            else:
                is_negative = person_ids[j] != person_ids[i]
            if is_negative:
                negatives.append(slow_distance(student[i], teacher[j]))
        loss = 0.0
        if negatives:
            loss = max(0.0, margin + slow_distance(student[i], teacher[i]) - min(negatives))
        losses.append(loss)
    return losses


@settings(max_examples=60)
@given(
    num_rows=st.integers(0, 9),
    size=st.integers(1, 6),
    margin=st.sampled_from([0.0, 0.3, 2.0]),
    literal=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_triplet_equals_slow_reference(num_rows, size, margin, literal, seed):
    student, teacher = random(num_rows, size, seed=seed), random(num_rows, size, seed=seed + 1)
    person_ids = identities(num_rows, seed=seed)
    losses = triplet_relation_loss(student, teacher, person_ids, margin, literal)
    assert losses.shape == (num_rows,)
    slow = slow_triplet(student, teacher, person_ids, margin, literal)
    assert losses.tolist() == pytest.approx(slow, rel=1e-10, abs=1e-12)


def test_triplet_by_hand():
    # On a line: students at 0 and 10, their teachers at 1 and 6.
    student = torch.tensor([[0.0], [10.0]])
    teacher = torch.tensor([[1.0], [6.0]])
    # Row 0: 1 to itself, 6 to the other. Row 1: 4 to itself, 9 to the other.
    person_ids = torch.tensor([5, 8])
    assert triplet_relation_loss(student, teacher, person_ids, 7.0).tolist() == [2.0, 2.0]
    assert triplet_relation_loss(student, teacher, person_ids, 5.0).tolist() == [0.0, 0.0]
    assert triplet_relation_loss(student, teacher, person_ids, 5.5).tolist() == [0.5, 0.5]


#: Person 3 twice, person 7, two unlabelled. Which row is a negative of which, by default:
PEOPLE = torch.tensor([3, 3, 7, -1, -1])
NEGATIVES = [{2, 3, 4}, {2, 3, 4}, {0, 1, 3, 4}, {0, 1, 2}, {0, 1, 2}]


@pytest.mark.parametrize("literal", [False, True])
def test_who_is_whose_negative(literal):
    """Only the teacher's view of a negative can be the nearest one of a row, put there."""
    student = random(5, 4)
    for i in range(5):
        for j in range(5):
            # Far away all of them but j, which sits on student i.
            teacher = 1000 + 100 * torch.arange(5.0, dtype=torch.float64)[:, None].repeat(1, 4)
            teacher[j] = student[i]
            loss = triplet_relation_loss(student, teacher, PEOPLE, 0.0, literal)[i].item()
            if j != i if literal else j in NEGATIVES[i]:
                # At distance 0: what is left is the distance to its own teacher, far away.
                assert loss == pytest.approx(slow_distance(student[i], teacher[i])) and loss > 1900
            else:
                # The nearest negative is about as far away as its own teacher.
                assert loss < 1000


def test_another_box_of_the_person_is_pushed_only_by_the_literal_form():
    """The teacher sees two boxes of one person alike, the student as its teacher does."""
    teacher = torch.tensor([[0.0, 0.0], [0.1, 0.0], [5.0, 0.0], [5.0, 5.0]], dtype=torch.float64)
    person_ids = torch.tensor([1, 1, 2, 3])
    losses = triplet_relation_loss(teacher, teacher, person_ids, 0.3)
    assert losses.tolist() == [0.0, 0.0, 0.0, 0.0]
    losses = triplet_relation_loss(teacher, teacher, person_ids, 0.3, literal=True)
    assert losses.tolist() == pytest.approx([0.2, 0.2, 0.0, 0.0])


def test_literal_form_does_not_look_at_the_identities():
    student, teacher = random(6, 3), random(6, 3, seed=1)
    losses = [
        triplet_relation_loss(student, teacher, person_ids, 1.0, literal=True)
        for person_ids in (torch.zeros(6).long(), torch.arange(6), torch.full((6,), -1))
    ]
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])
    assert losses[0].sum() > 0
    # Everybody somebody else: the default form is the literal one.
    assert torch.equal(triplet_relation_loss(student, teacher, torch.arange(6), 1.0), losses[0])


def test_every_negative_identity_is_unlabelled():
    student, teacher = random(5, 3), random(5, 3, seed=1)
    expected = triplet_relation_loss(student, teacher, torch.tensor([-1, -1, 2, 2, 5]), 1.0)
    losses = triplet_relation_loss(student, teacher, torch.tensor([-1, -2, 2, 2, 5]), 1.0)
    assert torch.equal(losses, expected)


@pytest.mark.parametrize("person_ids", [[4, 4, 4], [-1, -1, -1]], ids=["one person", "unlabelled"])
def test_rows_without_a_negative_are_exactly_zero(person_ids):
    student, teacher = random(3, 4).requires_grad_(), random(3, 4, seed=1)
    losses = triplet_relation_loss(student, teacher, torch.tensor(person_ids), 2.0)
    assert torch.equal(losses, torch.zeros(3, dtype=torch.float64))
    losses.sum().backward()
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_triplet_at_the_teacher_is_the_margin_less_the_nearest_negative():
    """The formula has no zero at student = teacher but where all negatives are m away."""
    teacher, person_ids = random(8, 3), identities(8)
    losses = triplet_relation_loss(teacher.clone(), teacher, person_ids, 1.5)
    expected = slow_triplet(teacher, teacher, person_ids, 1.5)
    assert losses.tolist() == pytest.approx(expected)
    assert 0 < int((losses > 0).sum()) < 8
    losses = triplet_relation_loss(teacher.clone(), teacher, person_ids, 0.0)
    assert torch.equal(losses, torch.zeros(8, dtype=torch.float64))


@pytest.mark.parametrize("literal", [False, True])
def test_gradient_at_the_teacher_and_at_a_negative_is_finite(literal):
    teacher, person_ids = random(6, 3), torch.tensor([0, 0, 1, 1, -1, 2])
    gradient = gradient_of(triplet_relation_loss, teacher, teacher, person_ids, 9.0, literal)
    assert gradient.isfinite().all()
    # At the teacher only the push away from the nearest negative is left: unit vectors.
    torch.testing.assert_close(gradient.norm(dim=1), torch.ones(6, dtype=torch.float64))
    # All in one point: every norm is 0, and so is every gradient.
    point = torch.ones(6, 3, dtype=torch.float64)
    gradient = gradient_of(triplet_relation_loss, point, point, person_ids, 9.0, literal)
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("margin", [0.3, 5.0])
def test_triplet_gradcheck(margin, literal):
    # Away from the kinks: the hinge, and the change of the nearest negative.
    student, teacher, person_ids = random(7, 4, seed=3), random(7, 4, seed=4), identities(7, seed=2)
    losses = torch.tensor(slow_triplet(student, teacher, person_ids, margin, literal))
    assert losses.max() > 0.1 and not ((losses > 0) & (losses < 0.01)).any()
    student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: triplet_relation_loss(s, teacher, person_ids, margin, literal), (student,)
    )


@pytest.mark.parametrize("num_rows", [0, 1])
@pytest.mark.parametrize("literal", [False, True])
def test_triplet_of_less_than_a_pair_is_exactly_zero_on_the_graph(num_rows, literal):
    layer = torch.nn.Linear(3, 4)
    student, person_ids = layer(torch.ones(num_rows, 3)), torch.arange(num_rows)
    losses = triplet_relation_loss(student, torch.zeros(num_rows, 4), person_ids, 2.0, literal)
    assert torch.equal(losses, torch.zeros(num_rows))
    losses.sum().backward()
    assert torch.equal(layer.weight.grad, torch.zeros_like(layer.weight))


# Both


def triplet(student, teacher):
    """The triplet-wise term with identities of its own, for the tests of both."""
    return triplet_relation_loss(student, teacher, identities(len(student), seed=2), 1.0)


BOTH = [pairwise_relation_loss, triplet]


def test_golden_numbers():
    """Written down from this code at a fixed seed, after it agreed with the slow references."""
    student, teacher = random(8, 4, seed=3), random(8, 4, seed=4)
    loss = pairwise_relation_loss(student, teacher).item()
    assert loss == pytest.approx(GOLDEN_PAIRWISE, rel=1e-9)
    norm = gradient_of(pairwise_relation_loss, student, teacher).norm().item()
    assert norm == pytest.approx(GOLDEN_PAIRWISE_GRADIENT_NORM, rel=1e-9)
    assert triplet(student, teacher).sum().item() == pytest.approx(GOLDEN_TRIPLET, rel=1e-9)
    norm = gradient_of(triplet, student, teacher).norm().item()
    assert norm == pytest.approx(GOLDEN_TRIPLET_GRADIENT_NORM, rel=1e-9)


@pytest.mark.parametrize("loss", BOTH)
def test_order_of_the_batch_does_not_matter(loss):
    student, teacher = random(8, 5), random(8, 5, seed=1)
    order = torch.tensor([3, 1, 7, 0, 5, 2, 6, 4])
    if loss is triplet:
        person_ids = identities(8, seed=2)
        losses = triplet_relation_loss(student[order], teacher[order], person_ids[order], 1.0)
        torch.testing.assert_close(losses, triplet(student, teacher)[order])
    else:
        torch.testing.assert_close(loss(student[order], teacher[order]), loss(student, teacher))


@pytest.mark.parametrize(
    "person_ids", [torch.zeros(5).long(), torch.zeros(6), torch.zeros(6, 1).long()]
)
@pytest.mark.parametrize("literal", [False, True])
def test_identities_that_do_not_fit_are_refused(person_ids, literal):
    student = torch.zeros(6, 4)
    with pytest.raises(ValueError, match="person_ids.* 6 "):
        triplet_relation_loss(student, student, person_ids, 1.0, literal)


@pytest.mark.parametrize("margin", [-0.1, math.nan])
def test_negative_margin_is_refused(margin):
    with pytest.raises(ValueError, match="margin"):
        triplet_relation_loss(torch.zeros(2, 2), torch.zeros(2, 2), torch.arange(2), margin)
