"""The most similar detections of several searched sets, from one look at a row of similarities."""

import numpy as np

from kd_search.evaluation.search.ranking.gallery_mask import SearchedColumns
from kd_search.evaluation.similarity import (
    above,
    candidates_of_best,
)

# For the first look for the best detections of a small gallery in the ranking of a large one.
_LOOK_AT = 256
# Detections from which the bound of that look is guessed.
_SAMPLE = 1024


def best_of_sets(
    columns: SearchedColumns, query: int, row: np.ndarray, sets: list[int], count: int
) -> dict[int, np.ndarray]:
    """The ``count`` most similar detections of each set, best first, equals in order.

    Args:
        columns: the searched sets; the block of the query was started.
        query: of the block.
        row: (columns,) its similarities.
        sets: numbers of sets.
        count: at least 1.

    Returns:
        by set (K,) columns, K at most ``count``.
    """
    total = columns.num_detections
    if len(sets) > 1:
        # Any bound will do, since galleries that it leaves too few for are looked at again.
        sample = row[:: max(1, total // _SAMPLE)]
        place = max(1, len(sample) * max(count, _LOOK_AT) // max(total, 1))
        place = min(place, len(sample))
        candidates = above(row, np.partition(sample, -place)[-place])
    else:
        candidates = candidates_of_best(row, 2 * count)
    order = (-row[candidates]).argsort(kind="stable")
    top, member = candidates[order], columns.bits(query, candidates)[order]
    best = {}
    for k in sets:
        if not columns.asks(k, query):
            best[k] = top[:0]
            continue
        best[k] = top[(member & columns.bit[k]).nonzero()[0][:count]]
        if len(best[k]) < count and len(top) < total:
            best[k] = _best_of(columns.columns_of_set(k, query), row, count)
    return best


def _best_of(own: np.ndarray, row: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` most similar of some ascending columns, best first, equals in order."""
    values = row[own]
    if len(own) > 4 * count:
        bound = np.partition(values, -count)[-count]
        near = (values >= bound).nonzero()[0]
        own, values = own[near], values[near]
    return own[(-values).argsort(kind="stable")[:count]]
