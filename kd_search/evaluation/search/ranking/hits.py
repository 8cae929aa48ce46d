"""The right detections of a view, what re-ranking moved, and what follows from counts of them."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Hits:
    """The right detections of a view in a block, one per place, sorted by query."""

    query: np.ndarray
    image: np.ndarray
    column: np.ndarray
    score: np.ndarray


@dataclass
class Moved:
    """Detections of a block that re-ranking gave another similarity, in one searched set."""

    column: np.ndarray  # (B, K) -1 padding
    old: np.ndarray  # (B, K) -inf padding
    new: np.ndarray  # (B, K) -inf padding

    @classmethod
    def nothing(cls, num_queries: int, count: int) -> "Moved":
        shape = (num_queries, count)
        return cls(np.full(shape, -1, np.int64), np.full(shape, -np.inf), np.full(shape, -np.inf))


def best_of(hits: Hits, num_queries: int) -> np.ndarray:
    """(B,) the highest similarity of a hit of each query; -inf without any."""
    best = np.full(num_queries, -np.inf)
    np.maximum.at(best, hits.query, hits.score)
    return best


def ranked_precision(hits: Hits, count: np.ndarray, num_gt: np.ndarray) -> np.ndarray:
    """Sum over the hits of the precision there, over the places; equal ones enter together."""
    order = np.lexsort((-hits.score, hits.query))
    query, score = hits.query[order], hits.score[order]
    ends = np.append((np.diff(query) != 0) | (np.diff(score) != 0), True)[: len(order)]
    # The last hit of the same similarity, counted from the first of the same query.
    places = np.flatnonzero(ends)
    last = places[np.searchsorted(places, np.arange(len(order)))]
    so_far = last + 1 - np.searchsorted(query, query, side="left")
    precision = np.bincount(query, so_far / count[order], minlength=len(num_gt))
    return np.divide(precision, num_gt, out=np.zeros(len(num_gt)), where=num_gt > 0)


def moved_count(hits: Hits, change: Moved, compare) -> np.ndarray:
    """(H,) how many more detections compare so with each hit than before re-ranking."""
    score = hits.score[:, None]
    moved = change.column[hits.query] >= 0
    after = compare(change.new[hits.query], score) & moved
    before = compare(change.old[hits.query], score) & moved
    return after.sum(axis=1) - before.sum(axis=1)
