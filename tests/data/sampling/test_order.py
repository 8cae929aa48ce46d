import random
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_search.data.sampling.order import DrawOrder, PositionBatchSampler, seeded

groups = st.lists(st.integers(0, 1), min_size=1, max_size=40)
sizes = st.integers(1, 9)
seeds = st.integers(0, 2**40)


def _take(sampler, count):
    return list(islice(iter(sampler), count))


@given(groups, sizes, seeds, st.integers(0, 60))
@settings(max_examples=60)
def test_starting_anywhere_gives_the_batches_of_a_straight_run(group, size, seed, start):
    straight = _take(PositionBatchSampler(DrawOrder(group, size, seed)), start + 5)
    later = _take(PositionBatchSampler(DrawOrder(group, size, seed), start), 5)
    assert later == straight[start:]


@given(groups, st.integers(1, 4), seeds, st.integers(1, 4))
@settings(max_examples=60)
def test_ranks_partition_the_batches_of_a_single_process(group, share, seed, world_size):
    size = share * world_size
    joint = _take(PositionBatchSampler(DrawOrder(group, size, seed)), 12)
    ranks = [
        _take(PositionBatchSampler(DrawOrder(group, size, seed), 0, rank, world_size), 12)
        for rank in range(world_size)
    ]
    assert all(len(batch) == share for batches in ranks for batch in batches)
    assert [[draw for part in parts for draw in part] for parts in zip(*ranks)] == joint


@given(groups, sizes, seeds)
@settings(max_examples=60)
def test_every_epoch_of_a_group_covers_it_once(group, size, seed):
    order = DrawOrder(group, size, seed)
    drawn = {value: [] for value in set(group)}
    for number in range(4 * len(group)):
        for draw in order.batch(number):
            drawn[group[draw.index]].append(draw.index)
    for value, indices in drawn.items():
        members = [i for i, g in enumerate(group) if g == value]
        whole = len(indices) // len(members)
        for epoch in range(whole):
            chunk = indices[epoch * len(members) : (epoch + 1) * len(members)]
            assert sorted(chunk) == members


@given(groups, sizes, seeds)
@settings(max_examples=40)
def test_batches_hold_one_group_and_positions_count_up(group, size, seed):
    batches = _take(PositionBatchSampler(DrawOrder(group, size, seed)), 20)
    assert all(len({group[draw.index] for draw in batch}) == 1 for batch in batches)
    assert [draw.position for batch in batches for draw in batch] == list(range(20 * size))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), seeds)
@settings(max_examples=40)
def test_each_group_is_drawn_as_often_as_its_share(group, seed):
    order = DrawOrder(group, 1, seed)
    for rounds in (1, 5):
        drawn = Counter(
            group[order.batch(number)[0].index] for number in range(rounds * len(group))
        )
        for value, count in Counter(group).items():
            assert abs(drawn[value] - rounds * count) <= 2


def test_a_rare_shape_does_not_come_first():
    order = DrawOrder([1] + [0] * 99, 4, 0)
    rare = [n for n in range(200) if order.batch(n)[0].index == 0]
    assert len(rare) == 2 and 30 < rare[0] < 70


def test_the_order_is_the_same_on_every_machine_and_version():
    drawn = [[d.index for d in DrawOrder([0, 1, 0, 0, 1], 2, 7).batch(n)] for n in range(5)]
    assert drawn == [[0, 3], [1, 4], [2, 0], [1, 4], [3, 2]]


def test_epochs_and_seeds_differ():
    def first(seed, epoch):
        order = DrawOrder([0] * 30, 30, seed)
        return [draw.index for draw in order.batch(epoch)]

    assert len({tuple(first(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_groups_of_one_size_are_shuffled_apart():
    order = DrawOrder([0] * 20 + [1] * 20, 20, 3)
    for epoch in range(3):
        shuffles = [[d.index % 20 for d in order.batch(2 * epoch + group)] for group in (0, 1)]
        assert sorted(shuffles[0]) == sorted(shuffles[1]) and shuffles[0] != shuffles[1]


def test_jumping_back_and_forth_gives_the_same_batches():
    order = DrawOrder([0, 1] * 10, 3, 1)
    straight = [order.batch(n) for n in range(100)]
    jumps = np.random.default_rng(0).permutation(100)
    assert all(order.batch(int(n)) == straight[n] for n in jumps)


def test_peers_are_the_images_of_the_same_group():
    order = DrawOrder([0, 1, 0, 0, 1], 2, 7)
    assert order.peers(4).tolist() == [1, 4] and order.peers(0).tolist() == [0, 2, 3]
    with pytest.raises(IndexError, match="no image 5"):
        order.peers(5)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="empty data set"):
        DrawOrder([], 2, 0)
    with pytest.raises(ValueError, match="batch size 0"):
        DrawOrder([0], 0, 0)
    with pytest.raises(ValueError, match="seed -1"):
        DrawOrder([0], 1, -1)
    with pytest.raises(ValueError, match="SOLVER.IMS_PER_BATCH 5 .*2 ranks"):
        PositionBatchSampler(DrawOrder([0], 5, 0), 0, 0, 2)
    with pytest.raises(ValueError, match="batch -1"):
        PositionBatchSampler(DrawOrder([0], 5, 0), -1)


def _random_numbers():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_seeded_fixes_all_three_generators_and_restores_them():
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    expected = [_random_numbers() for _ in range(2)]
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    before = _random_numbers()
    with seeded(5, 1):
        inside = _random_numbers()
    with pytest.raises(KeyError), seeded(5, 2):
        other = _random_numbers()
        raise KeyError
    assert [before, _random_numbers()] == expected
    with seeded(5, 1):
        assert _random_numbers() == inside
    assert all(a != b for a, b in zip(inside, other))
