"""Re-ID average precision and ranks (CMC) on flat arrays.

The protocol is that of Market-1501 (Zheng et al., ICCV 2015), which MARS, DukeMTMC-VideoReID and
VeRi-776 took over: see :func:`evaluate_reid`. Everything here is numpy.
"""

from dataclasses import dataclass

import numpy as np

from kd_search.evaluation.matching import expand_ranges
from kd_search.evaluation.reid.arrays import (
    JUNK,
    JunkRule,
    ReIDSet,
)
from kd_search.evaluation.similarity import (
    Similarity,
    best_columns,
)

#: How two embeddings are compared.
METRICS = ("cosine", "euclidean")
#: How the area under the curve of precision and recall is taken, see :func:`evaluate_reid`.
AP_RULES = ("market", "exact")

# Queries that are held in float64 at a time.
_QUERIES = 1024


@dataclass
class ReIDResult:
    """Per-query results, in the order of the queries. Rates are fractions in 0..1.

    A query without a match in its gallery (``num_gt`` 0) cannot be answered: it is left out of
    every mean and counted by ``num_without_match``.
    """

    ap: np.ndarray  # (Q,) float64; 0 where num_gt is 0
    num_gt: np.ndarray  # (Q,) int64, entries of the gallery that are right
    first_hit_rank: np.ndarray  # (Q,) int64, 1 is best; 0 where num_gt is 0
    match_index: np.ndarray  # (Q, K) best entries, as rows of the gallery; -1 padding
    match_similarity: np.ndarray  # (Q, K) float64: cosine, or minus the distance; NaN padding
    match_correct: np.ndarray  # (Q, K) bool

    @property
    def num_queries(self) -> int:
        """Queries that the means are over."""
        return int((self.num_gt > 0).sum())

    @property
    def num_without_match(self) -> int:
        """Queries without a match in their gallery; they are in no mean."""
        return int((self.num_gt == 0).sum())

    def mean_ap(self) -> float:
        """Mean of ``ap`` over the queries with a match.

        Raises:
            ValueError: there is no such query.
        """
        return float(self.ap[self._answerable()].mean())

    def top_k_accuracy(self, k: int) -> float:
        """Share of the same queries with a right entry among the ``k`` best.

        Raises:
            ValueError: there is no such query.
        """
        return float((self.first_hit_rank[self._answerable()] <= k).mean())

    def cmc(self, max_rank: int) -> np.ndarray:
        """(max_rank,) :meth:`top_k_accuracy` of k = 1, 2, ..."""
        ranks = self.first_hit_rank[self._answerable()]
        return (ranks[:, None] <= np.arange(1, max_rank + 1)).mean(axis=0)

    def _answerable(self) -> np.ndarray:
        answerable = self.num_gt > 0
        if not answerable.any():
            raise ValueError(
                f"none of the {len(self.num_gt)} queries has a match in its gallery: there is "
                "nothing to average"
            )
        return answerable


def evaluate_reid(
    queries: ReIDSet,
    gallery: ReIDSet,
    *,
    metric: str = "cosine",
    ap_rule: str = "market",
    junk: JunkRule = JunkRule(),  # noqa: B008  immutable
    num_matches: int = 0,
) -> ReIDResult:
    """Rank the gallery for every query.

    1. Left out of a query's gallery: junk (``JUNK``; of the query's own identity what ``junk``
       says) and pictures of the query itself (equal ``items``).
    2. Entries of the query's identity are right, all others are wrong, distractors too. A query of
       a negative identity has no match.
    3. The rest is ranked by similarity. Of equally similar entries the wrong ones come first, so
       that the order in which they are given does not matter and embeddings that are all the same
       earn nothing. Similarities are compared as multiples of 2^-44 (of squared distances, times
       the greatest squared length of an embedding): rounding must not tell twins apart.
    4. For the i-th right entry (i = 1, 2, ...), at rank r, precision is i / r. "exact" AP is the
       mean of these, as scikit-learn and today's re-ID code have it. "market" AP takes the mean
       of i / r and of the precision just above, (i - 1) / (r - 1), or 1 where r is 1: the
       trapezoid of Market-1501's own code, which VKD (ECCV 2020) uses.
    5. A query is a top-k hit if the first right entry is at rank k or better (CMC).

    Memory is that of the gallery in float64, twice, and a block of similarities: it does not grow
    with the queries.

    Args:
        queries: embeddings (Q, D).
        gallery: embeddings (G, D).
        metric: one of :data:`METRICS`. An embedding of length 0 has cosine 0 to every other.
        ap_rule: one of :data:`AP_RULES`.
        junk: which entries of the query's own identity are left out.
        num_matches: K, how many of the best entries to report per query.

    Raises:
        ValueError: an unknown rule, or embeddings of different lengths.
    """
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r} is none of {', '.join(METRICS)}")
    if ap_rule not in AP_RULES:
        raise ValueError(f"AP rule {ap_rule!r} is none of {', '.join(AP_RULES)}")
    have, want = gallery.embeddings.shape[1], queries.embeddings.shape[1]
    if have != want and len(gallery) and len(queries):
        raise ValueError(f"the gallery has embeddings of length {have}, the queries of {want}")
    result = ReIDResult(
        ap=np.zeros(len(queries)),
        num_gt=np.zeros(len(queries), dtype=np.int64),
        first_hit_rank=np.zeros(len(queries), dtype=np.int64),
        match_index=np.full((len(queries), num_matches), -1, dtype=np.int64),
        match_similarity=np.full((len(queries), num_matches), np.nan),
        match_correct=np.zeros((len(queries), num_matches), dtype=bool),
    )
    if not len(queries) or not len(gallery):
        return result
    space = _Space(metric, queries, gallery)
    similarity = Similarity(space.of_gallery(gallery.embeddings))
    pairs = _Pairs(queries, gallery, junk)
    for first in range(0, len(queries), _QUERIES):
        part = space.of_queries(queries.embeddings[first : first + _QUERIES])
        for start, scores in similarity.blocks(part):
            rows = np.arange(first + start, first + start + len(scores))
            right = pairs.apply(rows, scores)
            if num_matches:
                _keep_best(result, rows, scores, right)
                found = result.match_similarity[rows]
                result.match_similarity[rows] = space.reported(queries.embeddings[rows], found)
            _rate(result, rows, scores, right, ap_rule)
    return result


@dataclass
class _Right:
    """Right entries of the queries of a block, sorted by query."""

    row: np.ndarray  # (P,) of the block
    column: np.ndarray  # (P,)


class _Pairs:
    """Which entries are right for a query, and which it does not search."""

    def __init__(self, queries: ReIDSet, gallery: ReIDSet, junk: JunkRule):
        self._queries, self._gallery, self._junk = queries, gallery, junk
        self._never = np.flatnonzero(gallery.person_ids == JUNK)
        self._by_id = _Groups(gallery.person_ids)
        self._by_item = _Groups(gallery.items)

    def apply(self, rows: np.ndarray, scores: np.ndarray) -> _Right:
        """Set the similarity of what is not searched to -inf, and find what is right."""
        row, column = self._by_id.members(self._queries.person_ids[rows])
        junk = self._junk.applies(self._queries, rows[row], self._gallery, column)
        own_row, own_column = self._by_item.members(self._queries.items[rows])
        scores[row[junk], column[junk]] = -np.inf
        scores[own_row, own_column] = -np.inf
        scores[:, self._never] = -np.inf
        right = scores[row, column] > -np.inf
        return _Right(row[right], column[right])


class _Groups:
    """Entries by a number of theirs; those with negative numbers are in no group."""

    def __init__(self, numbers: np.ndarray):
        self._order = np.argsort(numbers, kind="stable")
        self._sorted = numbers[self._order]

    def members(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(place in ``numbers``, entry) of all entries of these groups, sorted by place."""
        first = np.searchsorted(self._sorted, numbers, side="left")
        count = np.searchsorted(self._sorted, numbers, side="right") - first
        count[numbers < 0] = 0
        entries = self._order[expand_ranges(first, count)]
        return np.repeat(np.arange(len(numbers)), count), entries


class _Space:
    """Rows whose dot product ranks as the metric does.

    The Euclidean distance of q and g ranks as 2 q g - g g, the dot product of (2 q, 1) and
    (g, -g g). All are divided by one power of two, at least the greatest length, so that the
    rounding of :mod:`.similarity` fits.
    """

    def __init__(self, metric: str, queries: ReIDSet, gallery: ReIDSet):
        self._metric = metric
        self._unit = 1.0
        if metric == "euclidean":
            greatest = max(_lengths(queries.embeddings).max(), _lengths(gallery.embeddings).max())
            self._unit = 2.0 ** np.ceil(np.log2(greatest)) if greatest > 0 else 1.0

    def of_gallery(self, embeddings: np.ndarray) -> np.ndarray:
        if self._metric == "cosine":
            return _unit_rows(embeddings)
        scaled = embeddings / np.float64(self._unit)
        return np.concatenate([scaled, -_squares(scaled)[:, None]], axis=1)

    def of_queries(self, embeddings: np.ndarray) -> np.ndarray:
        if self._metric == "cosine":
            return _unit_rows(embeddings)
        scaled = embeddings * np.float64(2 / self._unit)
        return np.concatenate([scaled, np.ones((len(scaled), 1))], axis=1)

    def reported(self, queries: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """(B, K) scores as cosines or negative distances; NaN stays."""
        if self._metric == "cosine":
            return scores
        squared = _squares(queries / np.float64(self._unit))[:, None] - scores
        return -np.sqrt(squared.clip(min=0)) * self._unit


def _keep_best(result: ReIDResult, rows: np.ndarray, scores: np.ndarray, right: _Right) -> None:
    is_right = np.zeros(scores.shape[1], dtype=bool)
    first = np.searchsorted(right.row, np.arange(len(rows) + 1))
    for place, row in enumerate(rows):
        own = right.column[first[place] : first[place + 1]]
        is_right[own] = True
        best = best_columns(scores[place], result.match_index.shape[1])
        # Wrong ones first where similarities are equal, as in the ranks.
        best = best[np.lexsort((is_right[best], -scores[place, best]))]
        best = best[: result.match_index.shape[1]]
        result.match_index[row, : len(best)] = best
        result.match_similarity[row, : len(best)] = scores[place, best]
        result.match_correct[row, : len(best)] = is_right[best]
        is_right[own] = False


def _rate(
    result: ReIDResult, rows: np.ndarray, scores: np.ndarray, right: _Right, ap_rule: str
) -> None:
    """Ranks and AP of a block. ``scores`` is sorted on the way."""
    values = scores[right.row, right.column]
    order = np.lexsort((-values, right.row))
    row, values = right.row[order], values[order]
    num_gt = np.bincount(row, minlength=len(rows))
    result.num_gt[rows] = num_gt
    if not len(row):
        return
    start = np.cumsum(num_gt) - num_gt
    hit = np.arange(len(row)) - start[row] + 1
    scores.sort(axis=1)
    # Searched entries that are at least as similar; of these, the right ones come last.
    at_least = np.empty(len(row), dtype=np.int64)
    for place in np.flatnonzero(num_gt):
        own = slice(start[place], start[place] + num_gt[place])
        at_least[own] = scores.shape[1] - np.searchsorted(scores[place], values[own], side="left")
    rank = at_least - _last_of_equals(row, values, hit) + hit
    precision = hit / rank
    if ap_rule == "market":
        above = np.divide(hit - 1, rank - 1, out=np.ones(len(row)), where=rank > 1)
        precision = (precision + above) / 2
    sums = np.bincount(row, weights=precision, minlength=len(rows))
    result.ap[rows] = sums / np.maximum(num_gt, 1)
    result.first_hit_rank[rows[row[hit == 1]]] = rank[hit == 1]


def _last_of_equals(row: np.ndarray, values: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """For each right entry the number of right ones that are at least as similar."""
    last = np.append((row[1:] != row[:-1]) | (values[1:] != values[:-1]), True)
    ends = np.flatnonzero(last)
    return hit[ends[np.searchsorted(ends, np.arange(len(row)))]]


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    lengths = _lengths(rows)
    return rows / np.where(lengths > 0, lengths, 1.0)[:, None]


def _lengths(rows: np.ndarray) -> np.ndarray:
    return np.sqrt(_squares(rows))


def _squares(rows: np.ndarray) -> np.ndarray:
    """(N,) squared lengths, float64."""
    return np.einsum("nd,nd->n", rows, rows, dtype=np.float64)
