from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_search.data.sampling.order import IdentityOrder, PositionBatchSampler

# Identity of each sample; -1 is nobody.
people = st.lists(st.integers(-1, 7), min_size=1, max_size=60).filter(
    lambda ids: any(i >= 0 for i in ids)
)
seeds = st.integers(0, 2**40)
FEW = settings(max_examples=60)


def _orders(ids, data, max_k=6):
    identities = len({i for i in ids if i >= 0})
    p = data.draw(st.integers(1, identities), label="P")
    k = data.draw(st.integers(1, max_k), label="K")
    return IdentityOrder(ids, p, k, data.draw(seeds, label="seed")), p, k


def _batches(order, count):
    return [[draw.index for draw in order.batch(number)] for number in range(count)]


@given(people, st.data())
@FEW
def test_a_batch_has_exactly_p_identities_of_k_samples_side_by_side(ids, data):
    order, p, k = _orders(ids, data)
    for batch in _batches(order, 12):
        groups = [[ids[i] for i in batch[n : n + k]] for n in range(0, len(batch), k)]
        assert len(batch) == p * k
        assert all(len(set(group)) == 1 for group in groups)
        assert len({group[0] for group in groups}) == p
        assert -1 not in {group[0] for group in groups}


@given(people, st.data())
@FEW
def test_samples_of_an_identity_differ_if_there_are_enough_and_are_even_if_not(ids, data):
    order, _, k = _orders(ids, data)
    sizes = Counter(ids)
    for batch in _batches(order, 12):
        for n in range(0, len(batch), k):
            counts = Counter(batch[n : n + k])
            assert len(counts) == min(k, sizes[ids[batch[n]]])
            assert max(counts.values()) - min(counts.values()) <= 1


@given(people, st.data())
@FEW
def test_an_epoch_shows_nobody_twice_and_leaves_out_fewer_than_p(ids, data):
    order, p, k = _orders(ids, data)
    identities = {i for i in ids if i >= 0}
    assert order.epoch_length == len(identities) // p
    for epoch in range(3):
        shown = [
            ids[draw.index]
            for number in range(order.epoch_length)
            for draw in order.batch(epoch * order.epoch_length + number)[::k]
        ]
        assert len(shown) == len(set(shown)) > len(identities) - p


@given(st.integers(1, 40), st.integers(1, 6), seeds)
@FEW
def test_every_sample_of_an_identity_comes_up(count, k, seed):
    order = IdentityOrder([0] * count, 1, k, seed)
    visits = max(count // k, 1)
    # A shuffle leaves out fewer than K; they are not the same ones every time.
    for cycle in range(3):
        drawn = [i for batch in range(visits) for i in _draws(order, cycle * visits + batch)]
        assert len(set(drawn)) >= min(count, visits * k)
    seen = {i for number in range(25 * visits) for i in _draws(order, number)}
    assert seen == set(range(count))


def _draws(order, number):
    return [draw.index for draw in order.batch(number)]


@given(people, st.data(), st.integers(0, 50))
@FEW
def test_starting_anywhere_gives_the_batches_of_a_straight_run(ids, data, start):
    order, p, k = _orders(ids, data)
    straight = list(islice(PositionBatchSampler(order), start + 4))
    fresh = IdentityOrder(ids, p, k, order.seed)
    assert list(islice(PositionBatchSampler(fresh, start), 4)) == straight[start:]
    positions = [draw.position for batch in straight for draw in batch]
    assert positions == list(range(len(positions)))


@given(people, st.data(), st.integers(1, 4))
@FEW
def test_ranks_share_a_batch_and_keep_identities_whole(ids, data, world_size):
    identities = len({i for i in ids if i >= 0})
    if identities < world_size:
        return
    share = data.draw(st.integers(1, identities // world_size))
    k = data.draw(st.integers(1, 4))
    order = IdentityOrder(ids, share * world_size, k, 3)
    joint = list(islice(PositionBatchSampler(order), 6))
    parts = [
        list(islice(PositionBatchSampler(order, 0, rank, world_size), 6))
        for rank in range(world_size)
    ]
    assert [[draw for part in batch for draw in part] for batch in zip(*parts)] == joint
    for batch in parts[0]:
        counts = Counter(ids[draw.index] for draw in batch)
        assert len(counts) == share and set(counts.values()) == {k}


def test_the_order_is_the_same_on_every_machine_and_version():
    order = IdentityOrder([0, 0, 0, 1, 1, 2, -1, 2], 2, 2, 7)
    assert _batches(order, 4) == [[4, 3, 0, 1], [4, 3, 5, 7], [4, 3, 0, 1], [5, 7, 4, 3]]


def test_seeds_and_epochs_differ():
    firsts = {
        tuple(_draws(IdentityOrder(np.repeat(np.arange(20), 4), 20, 4, seed), epoch))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(firsts) == 4


@pytest.mark.parametrize(
    ("ids", "p", "k", "seed", "message"),
    [
        ([0, 0, 1], 3, 1, 0, "3 identities .REID_DATA.IDS_PER_BATCH.* 2$"),
        ([-1, -1], 1, 1, 0, "IDS_PER_BATCH.* 0$"),
        ([0], 0, 1, 0, "P = 0"),
        ([0], 1, 0, 0, "K = 0"),
        ([0], 1, 1, -1, "seed -1"),
    ],
)
def test_impossible_settings_are_refused(ids, p, k, seed, message):
    with pytest.raises(ValueError, match=message):
        IdentityOrder(ids, p, k, seed)
