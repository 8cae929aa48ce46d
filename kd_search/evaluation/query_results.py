"""Per-query results, means over the queries, and the uncertainty of these means.

The queries of a test set are a sample. Resampling them (Efron and Tibshirani, "An Introduction to
the Bootstrap", 1993, chapter 13: percentile interval) estimates the variation of a mean over other
queries of the same kind. It does not cover the variation between training runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Up to this number of queries that differ, all sign patterns are tried instead of a sample.
_EXACT_QUERIES = 14
_CHUNK = 512


@dataclass
class QueryResults:
    """Per-query results, in the order of the queries. Rates are fractions in 0..1.

    A query without a match in its gallery (``num_gt`` 0) is left out of every mean and counted by
    ``num_without_match``.
    """

    ap: np.ndarray  # (Q,) float64; 0 where num_gt is 0
    num_gt: np.ndarray  # (Q,) int64, gallery images (search) or entries (re-ID) of the person
    first_hit_rank: np.ndarray  # (Q,) int64, 1 is best; 0 where nothing was found
    match_index: np.ndarray  # (Q, K) int64, best entries as rows of the gallery; -1 padding
    match_similarity: np.ndarray  # (Q, K) float64; NaN padding
    match_correct: np.ndarray  # (Q, K) bool

    @staticmethod
    def empty(num_queries: int, num_matches: int) -> dict[str, np.ndarray]:
        """Initial values of the fields, for Q queries and K matches each."""
        matches = (num_queries, num_matches)
        return {
            "ap": np.zeros(num_queries),
            "num_gt": np.zeros(num_queries, np.int64),
            "first_hit_rank": np.zeros(num_queries, np.int64),
            "match_index": np.full(matches, -1, dtype=np.int64),
            "match_similarity": np.full(matches, np.nan),
            "match_correct": np.zeros(matches, dtype=bool),
        }

    @property
    def num_queries(self) -> int:
        """Number of queries that the means are over."""
        return int((self.num_gt > 0).sum())

    @property
    def num_without_match(self) -> int:
        """Number of queries whose person is not in the gallery."""
        return int((self.num_gt == 0).sum())

    def mean_ap(self) -> float:
        """Mean of ``ap`` over the queries with a match; NaN if there is none."""
        return self._mean(self.ap)

    def top_k_accuracy(self, k: int) -> float:
        """Share of the same queries with a right entry among the ``k`` best."""
        return self._mean((self.first_hit_rank >= 1) & (self.first_hit_rank <= k))

    def metrics(self, top_k: Sequence[int]) -> dict[str, float]:
        """``mAP``, ``top1``, ... in percent; ``queries`` and ``queries_without_match``."""
        metrics = {"mAP": 100 * self.mean_ap()}
        metrics.update({f"top{k}": 100 * self.top_k_accuracy(k) for k in top_k})
        metrics["queries"] = self.num_queries
        metrics["queries_without_match"] = self.num_without_match
        return metrics

    def rates(self, top_k: Sequence[int]) -> np.ndarray:
        """(Q, 1 + len(top_k)) percent: average precision, and whether a top-k match is right."""
        ranks = self.first_hit_rank
        hits = [(ranks >= 1) & (ranks <= k) for k in top_k]
        rates: np.ndarray = 100 * np.stack([self.ap, *hits], axis=1)
        return rates

    def _mean(self, values: np.ndarray) -> float:
        answerable = self.num_gt > 0
        return float(values[answerable].mean()) if answerable.any() else float("nan")


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
    values: np.ndarray, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compute 95 % intervals of the means of several columns from the same resamples.

    Args:
        values: (Q, R), Q at least 1.
        resamples, seed: of :func:`resampling_weights`.

    Returns:
        (R,) low and (R,) high ends.
    """
    weights = resampling_weights(len(values), resamples, seed)
    means = weights.astype(np.float64) @ values / len(values)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low, high


def shared_intervals(
    samples: Sequence[tuple[np.ndarray, np.ndarray]], resamples: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Compute 95 % intervals of several samples; those over the same queries share resamples.

    Args:
        samples: values (Q, R), and (Q,) bool which queries count.

    Returns:
        for each sample (R,) low and (R,) high ends; empty where no query counts.
    """
    groups: dict[bytes, list[int]] = {}
    for number, (_, counted) in enumerate(samples):
        groups.setdefault(np.packbits(counted).tobytes(), []).append(number)
    intervals = [(np.zeros(0), np.zeros(0))] * len(samples)
    for numbers in groups.values():
        counted = samples[numbers[0]][1]
        if not counted.any():
            continue
        values = np.concatenate([samples[n][0][counted] for n in numbers], axis=1)
        ends = bootstrap_intervals(values, resamples, seed)
        bounds = np.cumsum([samples[n][0].shape[1] for n in numbers])[:-1]
        for number, low, high in zip(numbers, *(np.split(end, bounds) for end in ends)):
            intervals[number] = low, high
    return intervals


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
