"""The density filter: the kernel pair by pair, and who passes where there are few."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_search.losses import density_filter, local_density
from tests.losses.helpers import slow_cosine


def features(num_rows, num_dims, seed=0, dtype=torch.float64, spread=0.4):
    """A bundle of directions around one, so that cosines are of the size of the bandwidth."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.ones(num_dims, dtype=torch.float64)
    noise = torch.randn(num_rows, num_dims, generator=generator, dtype=torch.float64)
    return (centre + spread * noise).to(dtype)


def slow_density(rows, bandwidth):
    rows = rows.tolist()
    result = []
    for x in rows:
        total = 0.0
        for y in rows:
            total += math.exp(-(((1 - slow_cosine(x, y)) / bandwidth) ** 2))
        result.append(total)
    return result


def slow_passed(density, percentile):
    """All but the floor(N q / 100) least dense, unless as dense as one that stays."""
    ranked = sorted(density)
    dropped = min(int(len(density) * percentile / 100), len(density) - 1)
    return [value >= ranked[dropped] for value in density]


@settings(max_examples=40)
@given(
    num_rows=st.integers(0, 12),
    num_dims=st.integers(1, 6),
    bandwidth=st.sampled_from([0.02, 0.1, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_density_equals_slow_reference(num_rows, num_dims, bandwidth, seed):
    rows = features(num_rows, num_dims, seed)
    density = local_density(rows, bandwidth)
    assert density.shape == (num_rows,) and density.dtype == torch.float64
    assert density.tolist() == pytest.approx(slow_density(rows, bandwidth), rel=1e-9)


@settings(max_examples=60)
@given(
    num_rows=st.integers(1, 15),
    percentile=st.sampled_from([0.0, 20.0, 40.0, 75.0, 100.0]),
    seed=st.integers(0, 2**16),
)
def test_filter_equals_slow_reference(num_rows, percentile, seed):
    student, teacher = features(num_rows, 4, seed), features(num_rows, 5, seed + 1)
    passed = density_filter(student, teacher, percentile=percentile)
    slow = [
        ours and theirs
        for ours, theirs in zip(
            slow_passed(slow_density(student, 0.1), percentile),
            slow_passed(slow_density(teacher, 0.1), percentile),
        )
    ]
    assert passed.tolist() == slow


def test_an_outlier_of_either_space_does_not_pass():
    student, teacher = features(10, 6, spread=0.05), features(10, 8, spread=0.05)
    student[3] = -student[3]
    teacher[7, :4] = -teacher[7, :4]
    passed = density_filter(student, teacher, percentile=10.0)
    assert passed.tolist() == [i not in (3, 7) for i in range(10)]
    assert density_filter(student, student, percentile=10.0).tolist() == [i != 3 for i in range(10)]


def test_the_default_drops_four_of_ten_in_each_space():
    rows = features(10, 6)
    passed = density_filter(rows, rows)
    assert passed.sum() == 6
    density = torch.tensor(slow_density(rows, 0.1))
    assert density[passed].min() > density[~passed].max()


@settings(max_examples=60)
@given(num_rows=st.integers(1, 9), percentile=st.floats(0, 49.9), seed=st.integers(0, 2**16))
def test_below_the_median_some_instance_passes(num_rows, percentile, seed):
    student, teacher = features(num_rows, 3, seed), features(num_rows, 3, seed + 1)
    assert density_filter(student, teacher, percentile=percentile).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_instances_pass_together_wherever_they_lie(dtype):
    """Near the edge of a matrix product their densities have other last bits on most processors."""
    for num_rows in (9, 15, 21, 33, 50):
        for num_dims in (5, 19, 64):
            rows = features(num_rows, num_dims, seed=num_rows, dtype=dtype)
            copies = torch.arange(num_rows) % 2 == 0
            rows[copies] = rows[0].clone()
            for percentile in (60.0, 75.0, 90.0):
                passed = density_filter(rows, rows, percentile=percentile)
                assert passed[copies].unique().numel() == 1, (num_rows, num_dims, percentile)


def test_above_the_median_possibly_none_passes():
    student = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert density_filter(student, teacher, percentile=60.0).tolist() == [False, True, False]
    assert not density_filter(student, teacher[[1, 0, 0]].flip(0), percentile=99.0)[2]
    passed = density_filter(
        torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.5, 1.0]]),
        torch.tensor([[0.0, 1.0], [0.5, 1.0], [1.0, 0.0], [1.0, 0.0]]),
        percentile=60.0,
    )
    assert passed.tolist() == [False] * 4


def test_copies_of_one_instance_all_pass():
    rows = torch.tensor([[0.6, 0.8]], dtype=torch.float64).repeat(5, 1)
    assert density_filter(rows, rows).all()


def test_no_instance():
    assert density_filter(torch.zeros(0, 3), torch.zeros(0, 5)).tolist() == []
    assert local_density(torch.zeros(0, 3)).shape == (0,)


def test_length_of_the_features_does_not_matter_and_zeros_are_alone():
    rows = features(8, 5)
    scales = torch.linspace(0.01, 300, 8, dtype=torch.float64)[:, None]
    torch.testing.assert_close(local_density(rows * scales), local_density(rows))
    rows[2] = 0
    # exp(-(1 / 0.1)^2) from every instance, itself included.
    assert local_density(rows)[2].item() == pytest.approx(8 * math.exp(-100))


@pytest.mark.parametrize("block_size", [1, 3, 7, 100])
def test_blocks_change_nothing(block_size):
    student, teacher = features(20, 5), features(20, 6, seed=1)
    torch.testing.assert_close(
        local_density(student, block_size=block_size), local_density(student), rtol=1e-13, atol=0
    )
    assert torch.equal(
        density_filter(student, teacher, block_size=block_size), density_filter(student, teacher)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precision_is_computed_in_float32(dtype):
    rows = features(30, 8, dtype=dtype)
    density = local_density(rows)
    assert density.dtype == torch.float32
    torch.testing.assert_close(density.double(), local_density(rows.double()), rtol=1e-4, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(local_density(rows), density)


def test_wrong_arguments_are_refused():
    rows = features(4, 3)
    with pytest.raises(ValueError, match="bandwidth.* 0"):
        local_density(rows, 0.0)
    with pytest.raises(ValueError, match="percentile.* 101"):
        density_filter(rows, rows, percentile=101)
    with pytest.raises(ValueError, match=r"student \(4, 3\), teacher \(3, 3\)"):
        density_filter(rows, rows[:3])
    with pytest.raises(ValueError, match=r"features \(3,\)"):
        local_density(rows[0])
    for broken in (float("nan"), float("inf")):
        rows[1, 1] = broken
        with pytest.raises(ValueError, match="features.* NaN"):
            local_density(rows)
