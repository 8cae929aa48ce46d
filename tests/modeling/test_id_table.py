"""The identity table: its update against the sequential definition, and its steps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from kd_search.losses import oim_logits, oim_loss
from kd_search.modeling import id_table
from kd_search.modeling.id_table import IDTable, pairwise_row_norms, row_norms


def sequential_update(rows, queue, ptr, embeddings, person_ids, momentum, frozen=False):
    """The definition, one embedding after the other; returns the new table, queue and pointer."""
    rows, queue = rows.clone(), queue.clone()
    for x, t in zip(embeddings, person_ids.tolist()):
        if not torch.isfinite(x).all():
            continue
        if t >= 0 and not frozen:
            rows[t] = momentum * rows[t] + (1 - momentum) * x
            rows[t] /= rows[t].norm().clamp(min=1e-12)
        elif t < 0 and len(queue):
            queue[ptr] = x
            ptr = (ptr + 1) % len(queue)
    return rows, queue, ptr


def unit(num_rows, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(num_rows, dim, generator=generator), dim=1)


def make_table(num_ids=5, queue_size=4, dim=3, seed=7, **kwargs):
    table = IDTable(num_ids=num_ids, queue_size=queue_size, embedding_dim=dim, **kwargs)
    table.load_rows(unit(num_ids, dim, seed), unit(queue_size, dim, seed + 1))
    return table


def assert_state(table, rows, queue, ptr):
    assert torch.equal(table.rows, rows)
    assert torch.equal(table.queue, queue)
    assert int(table.queue_ptr) == ptr


# ---- the update ---------------------------------------------------------------------------------


@settings(max_examples=150)
@given(
    num_ids=st.integers(1, 8),
    queue_size=st.integers(0, 6),
    dim=st.integers(1, 40),
    momentum=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0]),
    frozen=st.booleans(),
    batches=st.lists(st.integers(0, 30), min_size=1, max_size=4),
    seed=st.integers(0, 2**16),
)
def test_update_is_bit_equal_to_the_sequential_definition(
    num_ids, queue_size, dim, momentum, frozen, batches, seed
):
    table = make_table(num_ids, queue_size, dim, seed, momentum=momentum, frozen=frozen)
    state = (table.rows.clone(), table.queue.clone(), int(table.queue_ptr))
    generator = torch.Generator().manual_seed(seed)
    for step, count in enumerate(batches):
        embeddings = unit(count, dim, seed + step)
        embeddings[torch.rand(count, generator=generator) < 0.1] = 0
        embeddings[torch.rand(count, generator=generator) < 0.1] = float("nan")
        person_ids = torch.randint(-1, num_ids, (count,), generator=generator)
        person_ids[torch.rand(count, generator=generator) < 0.2] = -1
        table.stage(embeddings, person_ids)
        table.commit()
        state = sequential_update(*state, embeddings, person_ids, momentum, frozen)
        assert_state(table, *state)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("num_rows, num_batch_ids", [(64, 64), (320, 10)])
def test_update_is_bit_equal_at_the_paper_sizes(num_rows, num_batch_ids, threads):
    torch.set_num_threads(threads)
    table = make_table(5532, 5000, 256, momentum=0.5)
    state = (table.rows.clone(), table.queue.clone(), int(table.queue_ptr))
    person_ids = torch.randperm(5532)[:num_batch_ids].repeat(num_rows // num_batch_ids)
    embeddings = unit(num_rows, 256)
    table.stage(embeddings, person_ids)
    table.commit()
    assert_state(table, *sequential_update(*state, embeddings, person_ids, 0.5))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("norms", [row_norms, pairwise_row_norms])
def test_norm_of_a_row_has_the_same_bits_in_every_batch(norms, threads):
    torch.set_num_threads(threads)
    for dim in [*range(1, 258), 512, 2048]:
        vectors = torch.randn(13, dim, generator=torch.Generator().manual_seed(dim))
        together = norms(vectors)
        alone = torch.cat([norms(vector[None]) for vector in vectors])
        assert together.shape == (13, 1)
        assert torch.equal(together, alone), dim
        assert torch.equal(norms(vectors[3:8]), together[3:8]), dim


@pytest.mark.parametrize("norms", [row_norms, pairwise_row_norms])
def test_norms_equal_float64_reference(norms):
    for dim in (1, 2, 3, 7, 64, 255, 256):
        vectors = torch.randn(6, dim)
        expected = vectors.double().square().sum(dim=1, keepdim=True).sqrt().float()
        torch.testing.assert_close(norms(vectors), expected, rtol=5e-7, atol=0)


def test_norm_equals_that_of_a_single_vector():
    # The definition normalises one vector at a time: torch must reduce (D,) as it does (n, D).
    for dim in range(1, 258):
        vectors = torch.randn(4, dim, generator=torch.Generator().manual_seed(dim))
        assert torch.equal(row_norms(vectors)[:, 0], torch.stack([v.norm() for v in vectors])), dim


def test_off_the_cpu_path_is_sequential_too(monkeypatch):
    """The norms used on a GPU, here on the CPU: batched as one by one."""
    monkeypatch.setattr(id_table, "row_norms", pairwise_row_norms)
    embeddings, person_ids = unit(40, 37), torch.arange(40) % 3
    together, one_by_one = make_table(dim=37), make_table(dim=37)
    together.stage(embeddings, person_ids)
    together.commit()
    for i in range(40):
        one_by_one.stage(embeddings[i : i + 1], person_ids[i : i + 1])
        one_by_one.commit()
    assert torch.equal(together.rows, one_by_one.rows)


def test_rows_stay_unit_vectors():
    table = make_table(6, 0, 32, momentum=0.9)
    for step in range(20):
        table.stage(unit(15, 32, step), torch.arange(15) % 6)
        table.commit()
    torch.testing.assert_close(table.rows.norm(dim=1), torch.ones(6))


def test_first_sight_of_an_identity_stores_its_direction():
    table = IDTable(num_ids=3, queue_size=2, embedding_dim=4, momentum=0.5)
    x = unit(1, 4)
    table.stage(x, torch.tensor([1]))
    table.commit()
    torch.testing.assert_close(table.rows[1:2], x)
    assert not table.rows[[0, 2]].any()


def test_zero_embedding_on_a_zero_row_stays_zero():
    table = IDTable(num_ids=2, queue_size=2, embedding_dim=4)
    table.stage(torch.zeros(3, 4), torch.tensor([0, 0, -1]))
    table.commit()
    assert not table.rows.any() and not table.queue.any()
    assert int(table.queue_ptr) == 1


def test_more_unlabelled_than_slots_wraps_as_fifo():
    table = make_table(queue_size=4)
    table.stage(unit(3, 3, 20), torch.full((3,), -1))
    table.commit()
    embeddings = unit(11, 3, 21)
    table.stage(embeddings, torch.full((11,), -1))
    table.commit()
    # Pointer 3, eleven writes: the last four (7, 8, 9, 10) went to slots 2, 3, 0, 1.
    assert torch.equal(table.queue, embeddings[[9, 10, 7, 8]])
    assert int(table.queue_ptr) == (3 + 11) % 4


def test_queue_of_size_zero_takes_unlabelled_rows():
    table = make_table(queue_size=0)
    rows = table.rows.clone()
    loss = table(unit(2, 3).requires_grad_(), torch.tensor([-1, 2]))
    table.discard()
    table.stage(unit(2, 3), torch.tensor([-1, -1]))
    table.commit()
    assert loss.isfinite() and table.logits(unit(2, 3)).shape == (2, 5)
    assert_state(table, rows, torch.zeros(0, 3), 0)


def test_non_finite_rows_are_dropped_and_counted():
    table, clean = make_table(dim=6), make_table(dim=6)
    embeddings = unit(8, 6)
    person_ids = torch.tensor([0, 1, 0, -1, 2, -1, 0, 1])
    bad = torch.tensor([1, 2, 5])
    poisoned = embeddings.clone()
    poisoned[bad, torch.tensor([0, 3, 5])] = torch.tensor(
        [float("nan"), float("inf"), -float("inf")]
    )
    keep = [i for i in range(8) if i not in bad.tolist()]
    table.stage(poisoned, person_ids)
    table.commit()
    clean.stage(embeddings[keep], person_ids[keep])
    clean.commit()
    assert_state(table, clean.rows, clean.queue, int(clean.queue_ptr))
    assert table.num_non_finite == 3 and clean.num_non_finite == 0


def test_large_finite_values_are_not_taken_for_non_finite():
    table = IDTable(num_ids=1, queue_size=1, embedding_dim=3)
    table.stage(torch.full((1, 3), 3e38), torch.tensor([-1]))
    table.commit()
    assert torch.equal(table.queue, torch.full((1, 3), 3e38))
    assert table.num_non_finite == 0


@pytest.mark.parametrize("count", [0, 1, 9])
def test_frozen_rows_never_move_but_the_queue_does(count):
    table = make_table(frozen=True)
    rows, embeddings = table.rows.clone(), unit(count + 1, 3)
    table.stage(embeddings, torch.tensor([2] * count + [-1]))
    table.commit()
    assert torch.equal(table.rows, rows)
    assert torch.equal(table.queue[0], embeddings[-1]) and int(table.queue_ptr) == 1


def test_slow_average_moves_less_than_the_paper_momentum():
    moved = {}
    for momentum in (0.5, 0.99):
        table = make_table(dim=16, momentum=momentum)
        before = table.rows.clone()
        table.stage(unit(5, 16), torch.arange(5))
        table.commit()
        moved[momentum] = (table.rows - before).norm(dim=1)
    assert (moved[0.99] > 0).all() and (moved[0.99] < 0.1 * moved[0.5]).all()


# ---- forward, stage, commit, discard ------------------------------------------------------------


def test_forward_is_the_oim_loss_of_the_table():
    table = make_table(dim=8, temperature=0.2)
    embeddings, person_ids = unit(4, 8), torch.tensor([0, -1, 4, 2])
    expected = oim_loss(oim_logits(embeddings, table.rows, table.queue, 0.2), person_ids, 5)
    assert torch.equal(table(embeddings, person_ids), expected)


def test_training_stages_and_commit_applies():
    table = make_table()
    before = table.fingerprint()
    table(unit(2, 3).requires_grad_(), torch.tensor([0, -1]))
    assert table.has_staged and table.fingerprint() == before
    table.commit()
    assert not table.has_staged and table.fingerprint() != before


def test_discard_forgets_the_step():
    table = make_table()
    before = table.fingerprint()
    table(unit(2, 3).requires_grad_(), torch.tensor([0, -1]))
    table.discard()
    assert not table.has_staged
    table.commit()
    assert table.fingerprint() == before


def test_next_forward_commits_first():
    table, explicit = make_table(), make_table()
    first, second = unit(3, 3, 1), unit(3, 3, 2)
    person_ids = torch.tensor([0, 0, -1])
    for t in (table, explicit):
        t(first, person_ids)
    explicit.commit()
    assert torch.equal(table(second, person_ids), explicit(second, person_ids))
    assert table.fingerprint() == explicit.fingerprint()


def test_rows_are_staged_in_the_order_of_the_forwards():
    table, joint = make_table(), make_table()
    embeddings, person_ids = unit(6, 3), torch.tensor([0, -1, 0, 0, -1, 1])
    for part in (slice(0, 1), slice(1, 4), slice(4, 4), slice(4, 6)):
        table.stage(embeddings[part], person_ids[part])
    table.commit()
    joint.stage(embeddings, person_ids)
    joint.commit()
    assert table.fingerprint() == joint.fingerprint()


def test_evaluation_never_moves_the_table():
    table = make_table().eval()
    before = table.fingerprint()
    for _ in range(2):
        assert table(unit(3, 3), torch.tensor([0, 1, -1])) > 0
    assert not table.has_staged and table.fingerprint() == before


def test_training_mode_without_gradients_never_moves_the_table():
    table = make_table()
    before = table.fingerprint()
    with torch.no_grad():
        for _ in range(2):
            table(unit(3, 3), torch.tensor([0, 1, -1]))
    assert not table.has_staged and table.fingerprint() == before


def test_two_forwards_before_one_backward():
    table = make_table(dim=6)
    weights = torch.eye(6, requires_grad=True)
    inputs, person_ids = unit(3, 6), torch.tensor([0, 1, -1])
    tables = []
    loss = 0
    for _ in range(2):
        loss = loss + table(inputs @ weights, person_ids)
        tables.append((table.rows.clone(), table.queue.clone()))
    table.commit()
    loss.backward()

    expected = torch.eye(6, requires_grad=True)
    sum(
        oim_loss(oim_logits(inputs @ expected, rows, queue, 0.1), person_ids, 5)
        for rows, queue in tables
    ).backward()
    assert not torch.equal(*(rows for rows, _ in tables))
    assert torch.equal(weights.grad, expected.grad)


def test_staged_embeddings_are_copies():
    table, expected = make_table(), make_table()
    embeddings, person_ids = unit(2, 3), torch.tensor([0, -1])
    expected.stage(embeddings.clone(), person_ids.clone())
    expected.commit()
    table.stage(embeddings, person_ids)
    embeddings.zero_()
    person_ids.fill_(3)
    table.commit()
    assert table.fingerprint() == expected.fingerprint()


def test_buffers_never_require_gradients():
    table = make_table()
    table(unit(2, 3).requires_grad_(), torch.tensor([0, -1]))
    table.commit()
    assert not any(buffer.requires_grad for buffer in table.buffers())


def test_training_with_nothing_and_with_nobody_labelled():
    table = make_table()
    rows = table.rows.clone()
    for embeddings in (torch.zeros(0, 3), unit(2, 3)):
        embeddings = embeddings.requires_grad_()
        loss = table(embeddings, torch.full((len(embeddings),), -1))
        loss.backward()
        table.commit()
        assert loss.item() == 0 and not embeddings.grad.any()
    assert torch.equal(table.rows, rows) and int(table.queue_ptr) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_keeps_the_table_in_float32(dtype):
    table, expected = make_table(dim=8), make_table(dim=8)
    embeddings, person_ids = unit(3, 8).to(dtype), torch.tensor([0, -1, 2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = table(embeddings.requires_grad_(), person_ids)
        table.commit()
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected(embeddings.float(), person_ids))
    expected.commit()
    assert table.rows.dtype == table.queue.dtype == torch.float32
    assert table.fingerprint() == expected.fingerprint()
