"""Batch-hard triplets: the hardest ones by loops, who takes part, and finite gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_search.losses import batch_hard_triplet
from tests.losses.helpers import gradient_of, identities, random, slow_distance

GOLDEN_SOFT = 15.162482005787599
GOLDEN_SOFT_GRADIENT_NORM = 6.053620206853663
GOLDEN_MARGIN = 15.104439599727286
GOLDEN_MARGIN_GRADIENT_NORM = 7.310612159591539

MARGINS = [None, 0.0, 0.3, 2.0]


def triplet_loss(embeddings, person_ids, margin=None):
    return batch_hard_triplet(embeddings, person_ids, margin)[0]


def people(num_rows, seed=0):
    return identities(num_rows, seed, num_people=3)


def slow_batch_hard(embeddings, person_ids, margin):
    """(losses, whether there is a triplet), row after row."""
    embeddings, person_ids = embeddings.tolist(), person_ids.tolist()
    losses, has_triplet = [], []
    for a, person in enumerate(person_ids):
        positives, negatives = [], []
        for b, other in enumerate(person_ids):
            if person == -1 or other == -1 or a == b:
                continue
            distance = slow_distance(embeddings[a], embeddings[b])
            (positives if other == person else negatives).append(distance)
        if positives and negatives:
            gap = max(positives) - min(negatives)
            losses.append(math.log1p(math.exp(gap)) if margin is None else max(0.0, gap + margin))
            has_triplet.append(True)
        else:
            losses.append(0.0)
            has_triplet.append(False)
    return losses, has_triplet


@settings(max_examples=80)
@given(
    num_rows=st.integers(0, 12),
    size=st.integers(1, 5),
    margin=st.sampled_from(MARGINS),
    seed=st.integers(0, 2**16),
)
def test_equals_slow_reference(num_rows, size, margin, seed):
    embeddings, person_ids = random(num_rows, size, seed=seed), people(num_rows, seed=seed)
    losses, has_triplet = batch_hard_triplet(embeddings, person_ids, margin)
    assert losses.shape == has_triplet.shape == (num_rows,)
    assert has_triplet.dtype == torch.bool
    slow_losses, slow_has_triplet = slow_batch_hard(embeddings, person_ids, margin)
    assert losses.tolist() == pytest.approx(slow_losses, rel=1e-10, abs=1e-12)
    assert has_triplet.tolist() == slow_has_triplet


def test_by_hand():
    # On a line: person 0 at 0, 1 and 4, person 1 at 6 and 10, an unlabelled one in between.
    embeddings = torch.tensor([[0.0], [1.0], [4.0], [6.0], [10.0], [5.0]], dtype=torch.float64)
    person_ids = torch.tensor([0, 0, 0, 1, 1, -1])
    # Farthest of one's own, nearest other: 4 - 6, 3 - 5, 4 - 2, 4 - 2, 4 - 6.
    gaps = [-2.0, -2.0, 2.0, 2.0, -2.0]
    losses, has_triplet = batch_hard_triplet(embeddings, person_ids)
    assert has_triplet.tolist() == [True] * 5 + [False]
    assert losses.tolist() == pytest.approx([math.log(1 + math.exp(gap)) for gap in gaps] + [0.0])
    losses, _ = batch_hard_triplet(embeddings, person_ids, margin=1.0)
    assert losses.tolist() == [0.0, 0.0, 3.0, 3.0, 0.0, 0.0]
    losses, _ = batch_hard_triplet(embeddings, person_ids, margin=2.5)
    assert losses.tolist() == [0.5, 0.5, 4.5, 4.5, 0.5, 0.0]


@pytest.mark.parametrize("margin", MARGINS)
def test_unlabelled_rows_take_no_part(margin):
    embeddings, person_ids = random(8, 3), torch.tensor([0, 0, 1, 1, 0, 2, 2, 1])
    # In the midst of the others, twice the same: the hardest of everything if they took part.
    crowd = torch.cat([embeddings, embeddings + 1e-3, 50 + embeddings[:2]])
    crowd_ids = torch.cat([person_ids, torch.full((10,), -1)])
    losses, has_triplet = batch_hard_triplet(crowd, crowd_ids, margin)
    alone, _ = batch_hard_triplet(embeddings, person_ids, margin)
    torch.testing.assert_close(losses[:8], alone)
    assert alone.sum() > 0
    assert has_triplet.tolist() == [True] * 8 + [False] * 10
    assert torch.equal(losses[8:], torch.zeros(10, dtype=torch.float64))
    gradient = gradient_of(triplet_loss, crowd, crowd_ids, margin)
    assert torch.equal(gradient[8:], torch.zeros_like(gradient[8:]))
    # Any negative id, not only -1, and no two of them make a person.
    crowd_ids[8:] = -2 - torch.arange(10)
    assert torch.equal(batch_hard_triplet(crowd, crowd_ids, margin)[0], losses)


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize(
    "person_ids",
    [[0, 1, 2, 3], [5, 5, 5, 5], [-1, -1, -1, -1], [2, -1, -1, 4], [2, 2, -1, -1]],
    ids=["no positive", "no negative", "unlabelled", "two alone", "one person, others unlabelled"],
)
def test_without_a_triplet_exactly_zero_on_the_graph(person_ids, margin):
    embeddings = random(4, 3).requires_grad_()
    losses, has_triplet = batch_hard_triplet(embeddings, torch.tensor(person_ids), margin)
    assert torch.equal(losses, torch.zeros(4, dtype=torch.float64))
    assert not has_triplet.any()
    loss = losses.sum() / has_triplet.sum().clamp(min=1)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))


def test_a_row_alone_among_others_is_their_negative_but_no_anchor():
    embeddings = torch.tensor([[0.0], [1.0], [3.0]])
    losses, has_triplet = batch_hard_triplet(embeddings, torch.tensor([4, 4, 9]), margin=3.0)
    assert has_triplet.tolist() == [True, True, False]
    assert losses.tolist() == [1.0, 2.0, 0.0]


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("num_rows", [0, 1])
def test_no_pair_at_all(num_rows, margin):
    layer = torch.nn.Linear(3, 4)
    embeddings = layer(torch.ones(num_rows, 3))
    losses, has_triplet = batch_hard_triplet(embeddings, torch.arange(num_rows), margin)
    assert torch.equal(losses, torch.zeros(num_rows)) and has_triplet.tolist() == [False] * num_rows
    (losses.sum() / has_triplet.sum().clamp(min=1)).backward()
    assert torch.equal(layer.weight.grad, torch.zeros_like(layer.weight))


@pytest.mark.parametrize("margin", [None, 0.3, 5.0])
def test_gradcheck(margin):
    # Away from the kinks: the hinge, and the change of the hardest rows.
    embeddings, person_ids = random(9, 4, seed=3), people(9, seed=1)
    losses, has_triplet = slow_batch_hard(embeddings, person_ids, margin)
    assert sum(has_triplet) >= 5 and not any(0 < loss < 0.01 for loss in losses)
    embeddings.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: batch_hard_triplet(x, person_ids, margin)[0], (embeddings,)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("margin", MARGINS)
def test_identical_embeddings_have_a_finite_gradient(margin, dtype):
    person_ids = torch.tensor([0, 0, 1, 1, 2, 2])
    # All in one point: nothing says where to go.
    point = torch.ones(6, 3, dtype=dtype)
    losses, has_triplet = batch_hard_triplet(point, person_ids, margin)
    expected = math.log(2) if margin is None else margin
    assert losses.tolist() == pytest.approx([expected] * 6) and has_triplet.all()
    gradient = gradient_of(triplet_loss, point, person_ids, margin)
    assert torch.equal(gradient, torch.zeros_like(gradient))
    # Some in one point, across people: the others still pull.
    embeddings = random(6, 3, dtype=dtype)
    embeddings[2] = embeddings[0]
    gradient = gradient_of(triplet_loss, embeddings, person_ids, margin)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_soft_margin_is_exact_and_stable_for_any_gap():
    for gap in (-1000.0, -40.0, -1.0, 0.0, 19.0, 21.0, 25.0, 1000.0):
        # Rows 0 and 1 of one person, row 2 another; the gap of row 0.
        embeddings = torch.tensor([[0.0], [1.0 + max(gap, 0.0)], [-1.0 + min(gap, 0.0)]])
        embeddings = embeddings.double().requires_grad_()
        losses, _ = batch_hard_triplet(embeddings, torch.tensor([0, 0, 1]))
        expected = max(gap, 0.0) + math.log1p(math.exp(-abs(gap)))
        assert losses[0].item() == pytest.approx(expected, rel=1e-14)
        losses.sum().backward()
        assert embeddings.grad.isfinite().all()


def test_real_triplet_without_a_loss_still_counts():
    """Why the second result is needed: a hinge of 0 is not an excluded row."""
    embeddings = torch.tensor([[0.0], [1.0], [50.0], [51.0]])
    losses, has_triplet = batch_hard_triplet(embeddings, torch.tensor([0, 0, 1, 1]), margin=0.3)
    assert losses.tolist() == [0.0] * 4 and has_triplet.all()


def test_far_from_the_origin_the_digits_are_kept():
    """Many rows close together far away: |a|^2 + |b|^2 - 2ab would have no digit left."""
    near = torch.randint(-8, 9, (40, 4), generator=torch.Generator().manual_seed(0)).float()
    person_ids = torch.arange(40) // 4
    expected, _ = batch_hard_triplet(near, person_ids, margin=1.0)
    losses, _ = batch_hard_triplet(near + 2.0**16, person_ids, margin=1.0)
    assert torch.equal(losses, expected)


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_hinge_without_margin_scales_with_the_embeddings(scale):
    """No constant of the code shows, neither beside near rows nor beside far ones."""
    embeddings, person_ids = random(12, 4), torch.arange(12) // 3
    expected, _ = batch_hard_triplet(embeddings, person_ids, margin=0.0)
    losses, _ = batch_hard_triplet(embeddings * scale, person_ids, margin=0.0)
    torch.testing.assert_close(losses / scale, expected)
    assert expected.sum() > 0
    # Rows without a positive or a negative stay exactly 0.
    for others in (torch.arange(12), torch.zeros(12).long()):
        losses, _ = batch_hard_triplet(embeddings * scale, others, margin=scale)
        assert torch.equal(losses, torch.zeros(12, dtype=torch.float64))


def test_golden_numbers():
    """Written down from this code at a fixed seed, after it agreed with the slow reference."""
    embeddings, person_ids = random(12, 4, seed=5), people(12, seed=6)
    total = batch_hard_triplet(embeddings, person_ids)[0].sum().item()
    assert total == pytest.approx(GOLDEN_SOFT, rel=1e-9)
    norm = gradient_of(triplet_loss, embeddings, person_ids).norm().item()
    assert norm == pytest.approx(GOLDEN_SOFT_GRADIENT_NORM, rel=1e-9)
    total = batch_hard_triplet(embeddings, person_ids, 0.3)[0].sum().item()
    assert total == pytest.approx(GOLDEN_MARGIN, rel=1e-9)
    norm = gradient_of(triplet_loss, embeddings, person_ids, 0.3).norm().item()
    assert norm == pytest.approx(GOLDEN_MARGIN_GRADIENT_NORM, rel=1e-9)


def test_identities_of_any_integer_type_and_size():
    embeddings, person_ids = random(12, 4), people(12)
    expected = batch_hard_triplet(embeddings, person_ids)[0]
    for dtype in (torch.int8, torch.int32):
        assert torch.equal(batch_hard_triplet(embeddings, person_ids.to(dtype))[0], expected)
    large = person_ids.where(person_ids < 0, person_ids * 2**40)
    assert torch.equal(batch_hard_triplet(embeddings, large)[0], expected)


def test_nan_is_not_hidden():
    embeddings = random(6, 3)
    embeddings[3, 1] = math.nan
    losses, _ = batch_hard_triplet(embeddings, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert losses.isnan().all()  # a negative of all, or a positive


@pytest.mark.parametrize(
    "person_ids", [torch.zeros(5).long(), torch.zeros(6), torch.zeros(6, 1).long()]
)
def test_identities_that_do_not_fit_are_refused(person_ids):
    with pytest.raises(ValueError, match="person_ids.* 6 "):
        batch_hard_triplet(torch.zeros(6, 4), person_ids)


@pytest.mark.parametrize("shape", [(6,), (6, 4, 1)])
def test_embeddings_must_be_rows(shape):
    with pytest.raises(ValueError, match="embeddings"):
        batch_hard_triplet(torch.zeros(shape), torch.zeros(6).long())


@pytest.mark.parametrize("margin", [-0.1, math.nan])
def test_negative_margin_is_refused(margin):
    with pytest.raises(ValueError, match="margin"):
        batch_hard_triplet(torch.zeros(6, 4), torch.zeros(6).long(), margin)
