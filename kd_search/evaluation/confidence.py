"""Uncertainty of a mean over queries: bootstrap intervals and a paired test of two runs.

The queries of a test set are a sample. Resampling them (Efron and Tibshirani, "An Introduction to
the Bootstrap", 1993, chapter 13: percentile interval) estimates the variation of a mean over other
queries of the same kind. It does not cover the variation between training runs.
"""

from dataclasses import dataclass
from typing import Optional

import numpy as np

# Up to this number of queries that differ, all sign patterns are tried instead of a sample.
_EXACT_QUERIES = 14
_CHUNK = 512


@dataclass
class Interval:
    """A mean in the unit of the values, and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass
class PairedComparison:
    """Per-query values of two runs on the same queries; b minus a."""

    mean_a: float
    mean_b: float
    difference: Interval
    p_value: float
    num_queries: int
    num_different: int


def resampling_weights(num_queries: int, resamples: int, seed: int) -> np.ndarray:
    """(S, Q) number of times that each resample, with replacement, holds each query."""
    rng = np.random.default_rng(seed)
    weights = np.empty((resamples, num_queries), dtype=np.float32)
    for row in weights:
        row[:] = np.bincount(rng.integers(num_queries, size=num_queries), minlength=num_queries)
    return weights


def bootstrap_intervals(
    values: np.ndarray, resamples: int, seed: int, weights: Optional[np.ndarray] = None
) -> tuple[np.ndarray, np.ndarray]:
    """Compute 95 % intervals of the means of several columns from the same resamples.

    Args:
        values: (Q, R), Q at least 1.
        resamples, seed: of :func:`resampling_weights`; ``weights`` may be given instead.

    Returns:
        (R,) low and (R,) high ends.
    """
    if weights is None:
        weights = resampling_weights(len(values), resamples, seed)
    means = weights.astype(np.float64) @ values / len(values)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low, high


def compare_paired(
    a: np.ndarray, b: np.ndarray, *, resamples: int = 10000, seed: int = 0
) -> PairedComparison:
    """Test whether the means of ``a`` and ``b`` differ by more than chance.

    Sign-flip permutation test: for equally good runs, both signs of a query's difference are
    equally likely. The p value is the share of sign patterns whose mean is at least as far from 0,
    two-sided; all patterns where few queries differ, else ``resamples`` random ones (and the
    observed one, so that it is never 0).

    Args:
        a, b: (Q,) values of the same queries, Q at least 1.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"two lists of values of the same queries, not {a.shape} and {b.shape}")
    difference = b - a
    low, high = bootstrap_intervals(difference[:, None], resamples, seed)
    nonzero = difference[difference != 0]
    return PairedComparison(
        mean_a=float(a.mean()),
        mean_b=float(b.mean()),
        difference=Interval(float(difference.mean()), float(low[0]), float(high[0])),
        p_value=_sign_flip_p(nonzero, resamples, seed),
        num_queries=len(a),
        num_different=len(nonzero),
    )


def _sign_flip_p(difference: np.ndarray, resamples: int, seed: int) -> float:
    if not len(difference):
        return 1.0
    # Sums that differ only by rounding count as equal.
    observed = abs(difference.sum()) * (1 - 1e-9)
    if len(difference) <= _EXACT_QUERIES:
        patterns = np.arange(1 << len(difference))[:, None] >> np.arange(len(difference))
        sums = (1.0 - 2.0 * (patterns & 1)) @ difference
        return float((np.abs(sums) >= observed).mean())
    rng = np.random.default_rng(seed)
    as_far = 0
    for first in range(0, resamples, _CHUNK):
        shape = (min(_CHUNK, resamples - first), len(difference))
        signs = 1.0 - 2.0 * rng.integers(0, 2, shape, dtype=np.int8)
        as_far += int((np.abs(signs @ difference) >= observed).sum())
    return (1 + as_far) / (1 + resamples)
