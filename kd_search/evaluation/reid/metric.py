"""Re-ID average precision and ranks (CMC) on flat arrays.

The protocol is that of Market-1501 (Zheng et al., ICCV 2015), which MARS, DukeMTMC-VideoReID and
VeRi-776 use too: see :func:`evaluate_reid`.
"""

from dataclasses import dataclass, fields

import numpy as np

from kd_search.evaluation.flat_arrays import check_floats, check_integers
from kd_search.evaluation.matching import expand_ranges
from kd_search.evaluation.query_results import QueryResults
from kd_search.evaluation.similarity import Similarity, best_columns

#: Comparison of two embeddings.
METRICS = ("cosine", "euclidean")
#: Integration of the curve of precision and recall, see :func:`evaluate_reid`.
AP_RULES = ("market", "exact")
#: Identity of a gallery entry that is wrong for every query: the distractors of Market-1501 and
#: MARS (0 in their files), and people without an identity.
DISTRACTOR = -1
#: Identity of a gallery entry that is left out for every query: the junk of Market-1501 and MARS
#: (-1 in their files). The loaders of kd_search leave it out already.
JUNK = -2
#: Camera or frame that is not known.
UNKNOWN = -1

# Queries that are converted to float64 at a time.
_QUERIES = 1024


@dataclass
class ReIDSet:
    """N queries, or N entries of a gallery: embeddings of crops or tracklets.

    Arrays that are None become UNKNOWN. Raises ValueError, naming the array, where a shape or type
    is wrong or a number not finite.
    """

    embeddings: np.ndarray  # (N, D), of any length
    person_ids: np.ndarray  # (N,) int; in a gallery also DISTRACTOR or JUNK
    # __post_init__ fills these; the attributes are never None.
    camera_ids: np.ndarray = None  # type: ignore[assignment]  # (N,) int; UNKNOWN is no camera
    frame_ids: np.ndarray = None  # type: ignore[assignment]  # (N,) int, in the camera's video
    # (N,) int, object that an entry depicts: entries of the query's own item are left out. UNKNOWN
    # is an item of its own.
    items: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.embeddings = check_floats("embeddings", self.embeddings, (None, None))
        count = (len(self.embeddings),)
        self.person_ids = check_integers("person_ids", self.person_ids, count)
        for name in ("camera_ids", "frame_ids", "items"):
            values = getattr(self, name)
            values = np.full(count, UNKNOWN) if values is None else values
            setattr(self, name, check_integers(name, values, count))

    def __len__(self) -> int:
        return len(self.embeddings)

    def select(self, rows: np.ndarray) -> "ReIDSet":
        """Return the entries of these rows (mask or indices), in that order."""
        return ReIDSet(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


@dataclass(frozen=True)
class JunkRule:
    """Which entries of a query's own person are left out of its gallery, as too easy.

    ``kind`` is

    - "camera": all in the query's camera, where that is known (Market-1501, MARS, Duke, VeRi-776);
    - "frames": those in the query's camera that are at most ``frames`` frames away, where both are
      known (ATRW);
    - "none": none.

    Entries left out have no rank. Those of the query's own item always are.
    """

    kind: str = "camera"
    frames: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("camera", "frames", "none"):
            raise ValueError(f"junk_rule {self.kind!r} is none of 'camera', 'frames', 'none'")
        if self.frames < 0:
            raise ValueError(f"junk_frames {self.frames} must be 0 or more")

    def applies(
        self, queries: ReIDSet, query_rows: np.ndarray, gallery: ReIDSet, columns: np.ndarray
    ) -> np.ndarray:
        """(P,) bool for pairs of a query and an entry of the same identity."""
        if self.kind == "none":
            return np.zeros(len(columns), dtype=bool)
        camera = queries.camera_ids[query_rows]
        same: np.ndarray = (camera >= 0) & (camera == gallery.camera_ids[columns])
        if self.kind == "frames":
            frame, other = queries.frame_ids[query_rows], gallery.frame_ids[columns]
            same &= (frame >= 0) & (other >= 0) & (np.abs(frame - other) <= self.frames)
        return same


class ReIDResult(QueryResults):
    """Per-query results. Right entries of the gallery count, in place of images.

    ``match_similarity`` is the cosine, or minus the distance. The means raise ValueError if no
    query has a match.
    """

    def cmc(self, max_rank: int) -> np.ndarray:
        """(max_rank,) :meth:`top_k_accuracy` of k = 1, 2, ..."""
        return np.array([self.top_k_accuracy(k) for k in range(1, max_rank + 1)])

    def _mean(self, values: np.ndarray) -> float:
        if not self.num_queries:
            raise ValueError(
                f"none of the {len(self.num_gt)} queries has a match in its gallery: there is "
                "nothing to average"
            )
        return super()._mean(values)


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

    1. Left out of a query's gallery: entries of the identity ``JUNK``, those of the query's own
       identity that ``junk`` covers, and those of the query's own item.
    2. Entries of the query's identity are right, all others wrong, distractors too. A query of a
       negative identity has no match.
    3. The rest is ranked by similarity. Of equally similar entries the wrong ones come first, so
       that the given order does not matter and constant embeddings score 0. Similarities are
       rounded to multiples of 2^-44 (of squared distances, times the greatest squared length of an
       embedding), so that equal embeddings tie.
    4. For the i-th right entry (i = 1, 2, ...), at rank r, precision is i / r. "exact" AP is the
       mean of these, as in scikit-learn and current re-ID code. "market" AP takes the mean of i / r
       and of the precision just above, (i - 1) / (r - 1), or 1 where r is 1: the trapezoid of
       Market-1501's own code, which VKD (ECCV 2020) uses.
    5. A query is a top-k hit if the first right entry is at rank k or better (CMC).

    Memory holds the gallery in float64, twice, and a block of similarities: it does not grow with
    the queries.

    Args:
        queries: embeddings (Q, D).
        gallery: embeddings (G, D).
        metric: one of :data:`METRICS`. An embedding of length 0 has cosine 0 to every other.
        ap_rule: one of :data:`AP_RULES`.
        junk: which entries of the query's own identity are left out.
        num_matches: K, best entries to report per query.

    Raises:
        ValueError: an unknown rule, or embeddings of different lengths.
    """
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r} is none of {', '.join(METRICS)}")
    if ap_rule not in AP_RULES:
        raise ValueError(f"ap_rule {ap_rule!r} is none of {', '.join(AP_RULES)}")
    have, want = gallery.embeddings.shape[1], queries.embeddings.shape[1]
    if have != want and len(gallery) and len(queries):
        raise ValueError(f"the gallery has embeddings of length {have}, the queries of {want}")
    result = ReIDResult(**QueryResults.empty(len(queries), num_matches))
    if not len(queries) or not len(gallery):
        return result
    space = _Space(metric, queries, gallery)
    similarity = Similarity(space.of_gallery(gallery.embeddings))
    never = np.flatnonzero(gallery.person_ids == JUNK)
    by_id, by_item = _Groups(gallery.person_ids), _Groups(gallery.items)
    for first in range(0, len(queries), _QUERIES):
        part = space.of_queries(queries.embeddings[first : first + _QUERIES])
        for start, scores in similarity.blocks(part):
            rows = np.arange(first + start, first + start + len(scores))
            row, column = by_id.members(queries.person_ids[rows])
            left_out = junk.applies(queries, rows[row], gallery, column)
            scores[row[left_out], column[left_out]] = -np.inf
            scores[by_item.members(queries.items[rows])] = -np.inf
            scores[:, never] = -np.inf
            right = scores[row, column] > -np.inf
            row, column = row[right], column[right]
            if num_matches:
                _keep_best(result, rows, scores, row, column)
                found = result.match_similarity[rows]
                result.match_similarity[rows] = space.reported(queries.embeddings[rows], found)
            _rate(result, rows, scores, row, column, ap_rule)
    return result


class _Groups:
    """Entries grouped by a number; those with negative numbers are in no group."""

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
    """Transform of embeddings to rows whose dot product ranks as the metric does.

    The Euclidean distance of q and g ranks as 2 q g - g g, the dot product of (2 q, 1) and
    (g, -g g). All are divided by one power of two, at least the greatest length, for the
    rounding of :mod:`..similarity`.
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
        distance: np.ndarray = np.sqrt(squared.clip(min=0)) * self._unit
        return -distance


def _keep_best(
    result: ReIDResult, rows: np.ndarray, scores: np.ndarray, right: np.ndarray, column: np.ndarray
) -> None:
    """Fill the matches of a block; (right, column) are its pairs of query and right entry."""
    is_right = np.zeros(scores.shape[1], dtype=bool)
    first = np.searchsorted(right, np.arange(len(rows) + 1))
    for place, row in enumerate(rows):
        own = column[first[place] : first[place + 1]]
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
    result: ReIDResult,
    rows: np.ndarray,
    scores: np.ndarray,
    right: np.ndarray,
    column: np.ndarray,
    ap_rule: str,
) -> None:
    """Fill the ranks and AP of a block; sorts ``scores`` in place."""
    values = scores[right, column]
    order = np.lexsort((-values, right))
    row, values = right[order], values[order]
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
    last = np.append((row[1:] != row[:-1]) | (values[1:] != values[:-1]), True)
    ends = np.flatnonzero(last)
    last_of_equals = hit[ends[np.searchsorted(ends, np.arange(len(row)))]]
    rank = at_least - last_of_equals + hit
    precision = hit / rank
    if ap_rule == "market":
        above = np.divide(hit - 1, rank - 1, out=np.ones(len(row)), where=rank > 1)
        precision = (precision + above) / 2
    sums = np.bincount(row, weights=precision, minlength=len(rows))
    result.ap[rows] = sums / np.maximum(num_gt, 1)
    result.first_hit_rank[rows[row[hit == 1]]] = rank[hit == 1]


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    lengths = _lengths(rows)
    units: np.ndarray = rows / np.where(lengths > 0, lengths, 1.0)[:, None]
    return units


def _lengths(rows: np.ndarray) -> np.ndarray:
    lengths: np.ndarray = np.sqrt(_squares(rows))
    return lengths


def _squares(rows: np.ndarray) -> np.ndarray:
    """(N,) squared lengths, float64."""
    squares: np.ndarray = np.einsum("nd,nd->n", rows, rows, dtype=np.float64)
    return squares
