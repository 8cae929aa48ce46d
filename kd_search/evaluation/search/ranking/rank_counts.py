"""How many searched detections are at least as similar as each hit, for all sets at once."""

from dataclasses import dataclass

import numpy as np

from kd_search.evaluation.search.ranking.gallery_mask import SearchedColumns
from kd_search.evaluation.search.ranking.hits import Hits

# A few similarities are counted by comparing, more of them by sorting once: sorting an entry costs
# about as much as comparing this many.
_SORT_COST = 24
# Bits that one table of counts covers.
_BITS = 10
_BIT_TABLE = (np.arange(1 << _BITS)[:, None] >> np.arange(_BITS)) & 1


@dataclass
class RankCounts:
    """Counts of the U distinct pairs of a query and a similarity that hits of a block have."""

    counts: np.ndarray  # (U, sets) detections of each set that are at least as similar
    # (U,) detections of the whole row that are exactly as similar; only where a hit is the best of
    # its view, 0 elsewhere
    equal: np.ndarray
    number: list[np.ndarray]  # for each view, which of the U each of its hits is


def count_ranks(
    rows: np.ndarray, hits: list[Hits], best: list[np.ndarray], columns: SearchedColumns
) -> RankCounts:
    """Count for each similarity of a hit.

    Args:
        rows: (B, columns) similarities of a block of queries.
        hits: of each view.
        best: of each view (B,) the highest similarity of a hit of each query.
        columns: the searched sets; the block was started.
    """
    query = np.concatenate([h.query for h in hits])
    score = np.concatenate([h.score for h in hits])
    leads = np.concatenate([h.score == b[h.query] for h, b in zip(hits, best)])
    order = np.lexsort((score, query))
    new = (np.diff(query[order], prepend=-1) != 0) | (np.diff(score[order], prepend=0) != 0)
    new[:1] = True
    number = np.empty(len(order), np.int64)
    number[order] = np.cumsum(new) - 1
    total = int(new.sum())
    scores, owner = score[order[new]], query[order[new]]
    leading = np.zeros(total, bool)
    leading[number[leads]] = True
    counts = np.zeros((total, len(columns.sets)), np.int64)
    equal = np.zeros(total, np.int64)
    bounds = np.searchsorted(owner, np.arange(len(rows) + 1))
    for q in np.unique(owner):
        part = slice(bounds[q], bounds[q + 1])
        relevant = np.flatnonzero(rows[q] >= scores[part][0])
        values = rows[q, relevant]
        for i in part.start + np.flatnonzero(leading[part]):
            equal[i] = np.count_nonzero(values == scores[i])
        _count_row(values, columns.bits(q, relevant), scores[part], counts[part])
    ends = np.cumsum([len(h.query) for h in hits])[:-1]
    return RankCounts(counts, equal, np.split(number, ends))


def _count_row(
    values: np.ndarray, member: np.ndarray, scores: np.ndarray, counts: np.ndarray
) -> None:
    """Fill ``counts`` (S, sets) for ascending similarities ``scores`` (S,) of one query.

    Args:
        values: (C,) the similarities that are at least as high as the lowest of ``scores``.
        member: (C,) bits of the sets that each of them is in.
    """
    num_sets = counts.shape[1]
    if num_sets > 1 and len(scores) <= 4:
        for i, score in enumerate(scores):
            above = member[values >= score] if i else member
            for first in range(0, num_sets, _BITS):
                part = above
                if num_sets > _BITS:
                    part = ((above >> first) & (len(_BIT_TABLE) - 1)).astype(np.intp)
                table = np.bincount(part, minlength=len(_BIT_TABLE)) @ _BIT_TABLE
                counts[i, first : first + _BITS] = table[: num_sets - first]
        return
    for k in range(num_sets):
        own = values[(member >> k) & 1 != 0]
        if len(scores) < _SORT_COST:
            counts[:, k] = [np.count_nonzero(own >= score) for score in scores]
        else:
            own.sort()
            counts[:, k] = len(own) - np.searchsorted(own, scores, side="left")
