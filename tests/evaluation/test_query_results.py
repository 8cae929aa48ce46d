"""Intervals and the paired test against enumeration, coverage and known answers."""

import itertools

import numpy as np
import pytest

from kd_search.evaluation.query_results import (
    bootstrap_intervals,
    compare_paired,
    resampling_weights,
)


def test_resamples_are_drawn_with_replacement_and_repeat_with_the_seed():
    weights = resampling_weights(40, 500, seed=3)
    assert (weights.sum(axis=1) == 40).all()
    assert abs(weights.mean() - 1) < 1e-6 and abs(weights.var() - (1 - 1 / 40)) < 0.05
    np.testing.assert_array_equal(weights, resampling_weights(40, 500, seed=3))
    assert (weights != resampling_weights(40, 500, seed=4)).any()


def test_intervals_equal_a_plain_loop():
    values = np.random.default_rng(0).random((30, 2))
    low, high = bootstrap_intervals(values, 200, seed=1)
    means = []
    for weights in resampling_weights(30, 200, seed=1):
        drawn = [row for row, times in zip(values, weights) for _ in range(int(times))]
        means.append(np.mean(drawn, axis=0))
    np.testing.assert_allclose(low, np.percentile(means, 2.5, axis=0), rtol=1e-12)
    np.testing.assert_allclose(high, np.percentile(means, 97.5, axis=0), rtol=1e-12)


def test_intervals_hold_the_true_mean_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    values = rng.random((60, 400)) < 0.3  # 400 samples of 60 queries
    low, high = bootstrap_intervals(values.astype(float), 400, seed=0)
    assert 0.90 < np.mean((low <= 0.3) & (0.3 <= high)) < 0.98


def test_p_value_of_few_queries_is_that_of_all_sign_patterns():
    difference = np.array([0.5, -0.1, 0.3, 0.2, 0.0, 0.4, -0.3])
    result = compare_paired(np.zeros(7), difference)
    patterns = itertools.product([1, -1], repeat=7)
    sums = [abs(sum(s * d for s, d in zip(signs, difference))) for signs in patterns]
    assert result.p_value == pytest.approx(np.mean(np.array(sums) >= sum(difference) - 1e-12))
    assert (result.num_queries, result.num_different) == (7, 6)
    assert result.difference.mean == pytest.approx(difference.mean())


def test_random_sign_patterns_agree_with_all_of_them():
    difference = np.random.default_rng(5).normal(0.25, 0.5, 20)
    patterns = 1 - 2.0 * ((np.arange(1 << 20)[:, None] >> np.arange(20)) & 1)
    exact = (np.abs(patterns @ difference) >= abs(difference.sum()) - 1e-12).mean()
    result = compare_paired(np.zeros(20), difference, resamples=20000)
    assert result.p_value == pytest.approx(exact, abs=0.01)
    assert 0.02 < exact < 0.5


def test_the_observed_signs_are_among_the_random_ones():
    # No random pattern of 40 signs is as far from 0, but for one in 2^39.
    result = compare_paired(np.zeros(40), np.ones(40), resamples=50)
    assert result.p_value == 1 / 51


def test_equal_runs_do_not_differ():
    values = np.random.default_rng(0).random(50)
    result = compare_paired(values, values)
    assert result.p_value == 1
    assert (result.difference.low, result.difference.mean, result.difference.high) == (0, 0, 0)


def test_a_clear_difference_is_found_and_noise_is_not():
    rng = np.random.default_rng(0)
    a = rng.random(300)
    better = compare_paired(a, a + 0.05 + 0.1 * rng.standard_normal(300))
    assert better.p_value < 0.001 and better.difference.low > 0
    p_values = [
        compare_paired(a, a + 0.1 * rng.standard_normal(300), resamples=400).p_value
        for _ in range(60)
    ]
    # Under no difference, p values are uniform.
    assert 0.35 < np.mean(p_values) < 0.65 and np.mean(np.array(p_values) < 0.1) < 0.25


def test_lists_of_other_queries_are_refused():
    with pytest.raises(ValueError, match=r"\(\d,\)"):
        compare_paired(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match=r"\(\d,\)"):
        compare_paired(np.zeros(0), np.zeros(0))
