"""The OIM loss against a slow float64 reference, its published gradient, and golden numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from kd_search.losses import oim_logits, oim_loss

TEMPERATURE = 0.1
GOLDEN_LOSS = 5.028960560433194
GOLDEN_GRADIENT_NORM = 4.916925571782056


def example(num_rows, num_ids, queue_size, dim, seed=0, dtype=torch.float64):
    """Unit embeddings, rows and queue; every third embedding is unlabelled."""
    generator = torch.Generator().manual_seed(seed)
    embeddings, rows, queue = (
        normalize(torch.randn(n, dim, generator=generator, dtype=torch.float64), dim=1).to(dtype)
        for n in (num_rows, num_ids, queue_size)
    )
    person_ids = torch.randint(num_ids, (num_rows,), generator=generator)
    person_ids[2::3] = -1
    return embeddings, person_ids, rows, queue


def slow_probabilities(x, rows, queue, temperature):
    """Equations 1 and 2 of the paper for one embedding, in Python floats."""
    entries = rows.tolist() + queue.tolist()
    scores = [
        math.exp(sum(a * b for a, b in zip(entry, x.tolist())) / temperature) for entry in entries
    ]
    return [score / sum(scores) for score in scores]


def slow_loss(embeddings, person_ids, rows, queue, temperature):
    losses = [
        -math.log(slow_probabilities(x, rows, queue, temperature)[t])
        for x, t in zip(embeddings, person_ids.tolist())
        if t >= 0
    ]
    return sum(losses) / len(losses) if losses else 0.0


def loss_of(embeddings, person_ids, rows, queue, temperature=TEMPERATURE):
    return oim_loss(oim_logits(embeddings, rows, queue, temperature), person_ids, len(rows))


@settings(max_examples=40)
@given(
    num_rows=st.integers(0, 7),
    num_ids=st.integers(1, 6),
    queue_size=st.integers(0, 5),
    dim=st.integers(1, 9),
    temperature=st.sampled_from([0.1, 1 / 30, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_loss_equals_slow_reference(num_rows, num_ids, queue_size, dim, temperature, seed):
    embeddings, person_ids, rows, queue = example(num_rows, num_ids, queue_size, dim, seed)
    loss = loss_of(embeddings, person_ids, rows, queue, temperature)
    expected = slow_loss(embeddings, person_ids, rows, queue, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-10)


def test_float32_agrees_with_slow_reference():
    embeddings, person_ids, rows, queue = example(12, 9, 5, 32, dtype=torch.float32)
    loss = loss_of(embeddings, person_ids, rows, queue)
    assert loss.dtype == torch.float32
    expected = slow_loss(embeddings, person_ids, rows, queue, TEMPERATURE)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_gradcheck():
    embeddings, person_ids, rows, queue = example(5, 4, 3, 6)
    embeddings.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss_of(x, person_ids, rows, queue), (embeddings,))


def test_gradient_is_the_formula_of_the_paper():
    embeddings, person_ids, rows, queue = example(7, 5, 4, 8)
    embeddings.requires_grad_()
    loss_of(embeddings, person_ids, rows, queue).backward()

    expected = torch.zeros_like(embeddings)
    num_labelled = int((person_ids >= 0).sum())
    for i, t in enumerate(person_ids.tolist()):
        if t < 0:
            continue
        p = slow_probabilities(embeddings[i].detach(), rows, queue, TEMPERATURE)
        ascent = (1 - p[t]) * rows[t]
        ascent = ascent - sum(p[j] * rows[j] for j in range(len(rows)) if j != t)
        ascent = ascent - sum(p[len(rows) + k] * queue[k] for k in range(len(queue)))
        expected[i] = -ascent / TEMPERATURE / num_labelled
    torch.testing.assert_close(embeddings.grad, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("queue_size", [0, 4])
def test_a_table_that_moves_before_the_backward_pass_changes_no_gradient(queue_size):
    embeddings, person_ids, rows, queue = example(6, 5, queue_size, 8)
    gradients = []
    for moves in (False, True):
        x = embeddings.clone().requires_grad_()
        loss = loss_of(x, person_ids, rows, queue)
        if moves:
            rows.neg_()
            queue.zero_()
        loss.backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients) and gradients[0].any()


def test_unlabelled_rows_get_no_gradient():
    embeddings, person_ids, rows, queue = example(6, 5, 4, 8)
    embeddings.requires_grad_()
    loss_of(embeddings, person_ids, rows, queue).backward()
    has_gradient = embeddings.grad.abs().sum(dim=1) > 0
    assert torch.equal(has_gradient, person_ids >= 0)


def test_golden_numbers():
    """Written down from this code at a fixed seed, after it agreed with the slow reference."""
    embeddings, person_ids, rows, queue = example(8, 6, 4, 16, seed=3)
    embeddings.requires_grad_()
    loss = loss_of(embeddings, person_ids, rows, queue)
    loss.backward()
    assert loss.item() == pytest.approx(GOLDEN_LOSS, rel=1e-9)
    assert embeddings.grad.norm().item() == pytest.approx(GOLDEN_GRADIENT_NORM, rel=1e-9)


def test_hand_computed_loss():
    # Two unit axes, one queue entry: scores 1/tau, 0, -1/tau for x on the first axis.
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    queue = torch.tensor([[-1.0, 0.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    loss = loss_of(x, torch.tensor([1]), rows, queue, temperature=0.5)
    assert loss.item() == pytest.approx(math.log(math.exp(2) + 1 + math.exp(-2)), rel=1e-12)


def test_zero_rows_of_the_table_are_neutral_negatives():
    x = torch.tensor([[1.0, 0.0]])
    rows, queue = torch.zeros(3, 2), torch.zeros(5, 2)
    assert torch.equal(oim_logits(x, rows, queue, TEMPERATURE), torch.zeros(1, 8))
    loss = loss_of(x, torch.tensor([2]), rows, queue)
    assert loss.item() == pytest.approx(math.log(8), rel=1e-6)


@pytest.mark.parametrize("num_rows", [0, 1, 4])
def test_no_labelled_row_gives_exactly_zero_on_the_graph(num_rows):
    embeddings, _, rows, queue = example(num_rows, 3, 2, 4, dtype=torch.float32)
    embeddings.requires_grad_()
    loss = loss_of(embeddings, torch.full((num_rows,), -1), rows, queue)
    assert loss.shape == () and loss.item() == 0.0
    loss.backward()
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_embeddings_are_scored_in_float32(dtype):
    embeddings, person_ids, rows, queue = example(6, 5, 3, 16, dtype=torch.float32)
    half = embeddings.to(dtype)
    logits = oim_logits(half, rows, queue, TEMPERATURE)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, oim_logits(half.float(), rows, queue, TEMPERATURE))


@pytest.mark.parametrize("wrong", [4, 5, 100, -2])
def test_id_out_of_range_is_refused(wrong):
    # 4 and 5 would be columns of the queue: trained against it in silence if not refused.
    with pytest.raises(ValueError, match=f"person id {wrong} .* 3;") as caught:
        oim_loss(torch.zeros(2, 6), torch.tensor([0, wrong]), num_ids=4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ids", [torch.zeros(3, dtype=torch.int64), torch.zeros(2)])
def test_ids_of_wrong_shape_or_type_are_refused(ids):
    with pytest.raises(ValueError, match="person_ids.* 2 "):
        oim_loss(torch.zeros(2, 6), ids, num_ids=4)


def test_logits_with_too_few_columns_are_refused():
    with pytest.raises(ValueError, match="logits.*num_ids 4"):
        oim_loss(torch.zeros(2, 3), torch.tensor([0, 1]), num_ids=4)


def test_no_id_is_special_but_minus_one():
    # The magic labels of the ports (5554, 5555) are ordinary identities here.
    logits = torch.randn(2, 6000, dtype=torch.float64)
    loss = oim_loss(logits, torch.tensor([5554, 5555]), num_ids=5800)
    log_p = logits.log_softmax(dim=1)
    assert loss.item() == pytest.approx(-(log_p[0, 5554] + log_p[1, 5555]).item() / 2, rel=1e-12)
