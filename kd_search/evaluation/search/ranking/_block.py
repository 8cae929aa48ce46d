"""Ranking of a block of queries: searched detections, true positives, and their ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable, Optional

import numpy as np

from kd_search.evaluation.matching import expand_ranges
from kd_search.evaluation.search.galleries import Gallery
from kd_search.evaluation.similarity import LOWEST, candidates_of_best

from ._index import GalleryIndex, TargetTable

# Number of best detections that :meth:`GalleryMask.most_similar` ranks first for several sets.
_LOOK_AT = 256
# Detections from which the bound on their similarity is estimated.
_SAMPLE = 1024
# Up to this many similarities are counted by comparing, more of them by sorting once: sorting an
# entry costs about as much as comparing it this often.
_SORT_COST = 24
# Bits that one table of counts covers.
_BITS = 10
_BIT_TABLE = (np.arange(1 << _BITS)[:, None] >> np.arange(_BITS)) & 1


@dataclass
class RerankedScores:
    """New similarities of some detections of a block of queries, in one searched set."""

    column: np.ndarray  # (B, K) -1 padding
    old: np.ndarray  # (B, K) -inf padding
    new: np.ndarray  # (B, K) -inf padding


class GalleryMask:
    """Membership of detections in the searched sets of a block of queries, as one bit per set.

    Attributes:
        targets: places of the people in each protocol, without junk.
    """

    def __init__(self, index: GalleryIndex, start: int, stop: int):
        """The queries are start..stop - 1; rows below count from ``start``."""
        self.index, self.start, self._stop = index, start, stop
        dtype = np.dtype(next(f"uint{n}" for n in (8, 16, 32, 64) if len(index.sets) <= n))
        self._bit = [dtype.type(1 << k) for k in range(len(index.sets))]
        own = index.own_image[start:stop]
        has_own = np.flatnonzero(own >= 0)
        camera = index.camera_of_query[start:stop, None]
        bits = np.zeros((stop - start, index.num_images), dtype=dtype)
        listed: dict[int, np.ndarray] = {}
        for bit, searched in zip(self._bit, index.sets):
            gallery = searched.gallery
            if gallery.complete:
                searched_here = index.searchable
                if gallery.queries is not None:
                    searched_here = gallery.queries[start:stop, None] & searched_here
                bits |= np.where(searched_here, bit, dtype.type(0))
            if not searched.with_own_image or gallery.complete:
                bits[has_own, own[has_own]] &= ~bit
            if gallery.has_lists:
                if id(gallery) not in listed:
                    offsets = gallery.offsets[start : stop + 1]
                    rows = np.repeat(np.arange(stop - start), np.diff(offsets))
                    images = gallery.images[offsets[0] : offsets[-1]]
                    listed[id(gallery)] = rows * index.num_images + images
                bits.reshape(-1)[listed[id(gallery)]] |= bit
                if not searched.with_own_image:
                    bits[has_own, own[has_own]] &= ~bit
            if searched.cameras == "cross_camera":
                other = (index.cameras != camera) & (index.cameras >= 0) & (camera >= 0)
                bits &= np.where(other, dtype.type(~dtype.type(0)), ~bit)
        self._bits = bits
        self._junk: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.targets = self._find_targets()

    def bits(self, row: int, columns: np.ndarray) -> np.ndarray:
        """(C,) unsigned: bit k is set where set k of a query holds the (ascending) detection."""
        member: np.ndarray = self._bits[row].take(self.index.image_index.take(columns))
        for k in self._junk:
            junk = self._junk_of(k, row)
            if len(junk) and len(columns):
                place = np.searchsorted(columns, junk).clip(max=len(columns) - 1)
                place = place[columns[place] == junk]
                member[place] &= ~self._bit[k]
        return member

    def is_junk(self, k: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """(C,) bool, whether detections (C,) are junk in set ``k`` of the queries (C,)."""
        if k not in self._junk:
            return np.zeros(len(columns), bool)
        count, (junk_rows, junk) = len(self.index.image_index), self._junk[k]
        return np.isin(rows * count + columns, junk_rows * count + junk)

    def columns_of_images(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Columns of the detections of some images, image after image, and their numbers."""
        start = self.index.image_start[images]
        counts = self.index.image_start[images + 1] - start
        places = expand_ranges(start, counts)
        return places if self.index.is_sorted else self.index.by_image[places], counts

    def count_images(self, k: int) -> np.ndarray:
        """(B,) images in set ``k`` of each query of the block."""
        count: np.ndarray = np.count_nonzero(self._bits & self._bit[k], axis=1)
        return count

    def list_position(self, gallery: Gallery, row: int, images: np.ndarray) -> np.ndarray:
        """(C,) place of images in the query's list; all others follow in order."""
        if not gallery.has_lists:
            return images
        first, last = gallery.offsets[self.start + row : self.start + row + 2]
        listed, position = np.unique(gallery.images[first:last], return_index=True)
        rest: np.ndarray = last - first + images
        if not len(listed):
            return rest
        place = np.searchsorted(listed, images).clip(max=len(listed) - 1)
        return np.where(listed[place] == images, position[place], rest)

    def most_similar(
        self, row: int, similarity: np.ndarray, sets: Sequence[int], count: int
    ) -> dict[int, np.ndarray]:
        """Find the most similar detections in several sets of a query.

        Args:
            similarity: (columns,) of the query.
            sets: indices of searched sets.
            count: at least 1.

        Returns:
            by set (K,) columns, K at most ``count``, best first, equals in order.
        """
        total = len(self.index.image_index)
        if len(sets) > 1:
            # Any bound will do: sets that it leaves too few for are searched again.
            sample = similarity[:: max(1, total // _SAMPLE)]
            place = max(1, len(sample) * max(count, _LOOK_AT) // max(total, 1))
            place = min(place, len(sample))
            bound = max(np.partition(sample, -place)[-place], LOWEST)
            candidates = np.flatnonzero(similarity >= bound)
        else:
            candidates = candidates_of_best(similarity, 2 * count)
        order = (-similarity[candidates]).argsort(kind="stable")
        top, member = candidates[order], self.bits(row, candidates)[order]
        best = {}
        for k in sets:
            searching = self.index.sets[k].gallery.queries
            if searching is not None and not searching[self.start + row]:
                best[k] = top[:0]
                continue
            best[k] = top[(member & self._bit[k]).nonzero()[0][:count]]
            if len(best[k]) < count and len(top) < total:
                best[k] = self._most_similar_of_all(k, row, similarity, count)
        return best

    def _most_similar_of_all(
        self, k: int, row: int, similarity: np.ndarray, count: int
    ) -> np.ndarray:
        columns, _ = self.columns_of_images((self._bits[row] & self._bit[k]).nonzero()[0])
        if not self.index.is_sorted:
            columns = np.sort(columns)
        if k in self._junk:
            columns = columns[~np.isin(columns, self._junk_of(k, row))]
        values = similarity[columns]
        if len(columns) > 4 * count:
            near = (values >= np.partition(values, -count)[-count]).nonzero()[0]
            columns, values = columns[near], values[near]
        best: np.ndarray = columns[(-values).argsort(kind="stable")[:count]]
        return best

    def _junk_of(self, k: int, row: int) -> np.ndarray:
        rows, columns = self._junk[k]
        first, last = np.searchsorted(rows, (row, row + 1))
        return columns[first:last]

    def _find_targets(self) -> list["Targets"]:
        """Targets in each protocol; takes the junk out of the searched sets."""
        index, start, stop = self.index, self.start, self._stop
        by_key: dict[tuple[Gallery, str, str], Targets] = {}
        own_image = index.own_image[start:stop]
        whole = {k: _targets_of(table, own_image, start) for k, table in index.tables.items()}
        if not index.searchable.all():
            for (gallery, mode), targets in whole.items():
                if not gallery.has_lists:
                    whole[gallery, mode] = targets.select(index.searchable[targets.image])
        query_camera = index.camera_of_query[start:stop]
        for protocol, k in zip(index.protocols, index.set_of):
            key = (protocol.gallery, protocol.mode, protocol.cameras)
            if key in by_key:
                continue
            targets = whole[protocol.gallery, protocol.mode]
            if protocol.cameras != "all":
                camera, own = index.cameras[targets.image], query_camera[targets.query]
                if protocol.cameras == "cross_camera":
                    keep = (camera != own) & (camera >= 0) & (own >= 0)
                else:
                    keep = (camera != own) | (camera < 0)
                    junk = whole[protocol.gallery, "corrected"]
                    camera, own = index.cameras[junk.image], query_camera[junk.query]
                    junk = junk.select((camera == own) & (camera >= 0))
                    rows, columns = junk.query[junk.pair_target], junk.pair_column
                    order = np.lexsort((columns, rows))
                    self._junk[k] = rows[order], columns[order]
                targets = targets.select(keep)
            by_key[key] = targets
        return [by_key[p.gallery, p.mode, p.cameras] for p in index.protocols]


class TruePositives:
    """The most similar right detection at each place of a block of queries, sorted by query.

    Attributes:
        query, column, score: (H,) query of the block, detection, and its similarity.
        leads: (H,) bool, whether it is as similar as the best of its query.
        targets, change: what it was found with.
    """

    def __init__(
        self,
        targets: "Targets",
        change: Optional[RerankedScores],
        query: np.ndarray,
        column: np.ndarray,
        score: np.ndarray,
        num_queries: int,
    ):
        self.targets, self.change = targets, change
        self.query, self.column, self.score = query, column, score
        best = np.full(num_queries, -np.inf)
        np.maximum.at(best, query, score)
        self.leads = score == best[query]

    def average_precision(self, count: np.ndarray, num_gt: np.ndarray) -> np.ndarray:
        """(B,) sum of the precision at each true positive / number of places.

        Args:
            count: (H,) searched detections that are at least as similar; equal ones enter together.
            num_gt: (B,) places of each query.
        """
        order = np.lexsort((-self.score, self.query))
        query, score = self.query[order], self.score[order]
        ends = np.append((np.diff(query) != 0) | (np.diff(score) != 0), True)[: len(order)]
        # The last one of the same similarity, counted from the first of the same query.
        places = np.flatnonzero(ends)
        last = places[np.searchsorted(places, np.arange(len(order)))]
        so_far = last + 1 - np.searchsorted(query, query, side="left")
        precision = np.bincount(query, so_far / count[order], minlength=len(num_gt))
        ap: np.ndarray = np.divide(precision, num_gt, out=np.zeros(len(num_gt)), where=num_gt > 0)
        return ap

    def count_change(
        self, change: RerankedScores, compare: Callable[[np.ndarray, np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """(H,) change by re-ranking of the number of detections that compare so with each."""
        score = self.score[:, None]
        moved = change.column[self.query] >= 0
        after = compare(change.new[self.query], score) & moved
        before = compare(change.old[self.query], score) & moved
        difference: np.ndarray = after.sum(axis=1) - before.sum(axis=1)
        return difference


@dataclass
class Targets:
    """The places of the people of a block of queries, and the candidate detections at each place.

    A place is an image that holds the query's person; several boxes of the person in it are one
    place, and each is accepted. Places are sorted by query and image, candidates by place.
    """

    query: np.ndarray  # (T,) query of the block
    image: np.ndarray  # (T,)
    weight: np.ndarray  # (T,) how often the place counts; more than 1 only in compat mode
    can_match: np.ndarray  # (T,) bool, whether it has candidates; False only in compat mode
    pair_target: np.ndarray  # (P,) place of each candidate
    pair_column: np.ndarray  # (P,) the detection

    def select(self, keep: np.ndarray) -> "Targets":
        """Return the places of this mask (T,)."""
        pairs, number = keep[self.pair_target], np.cumsum(keep) - 1
        values = (self.query, self.image, self.weight, self.can_match)
        query, image, weight, can_match = (array[keep] for array in values)
        pair_target = number[self.pair_target[pairs]]
        return Targets(query, image, weight, can_match, pair_target, self.pair_column[pairs])

    def true_positives(
        self, similarity: np.ndarray, mode: str, change: Optional[RerankedScores]
    ) -> TruePositives:
        """Find the most similar candidate of each place, given similarities (B, columns)."""
        query = self.query[self.pair_target]
        score = similarity[query, self.pair_column]
        if change is not None and len(query):
            same = change.column[query] == self.pair_column[:, None]
            score = np.where(same.any(axis=1), change.new[query, same.argmax(axis=1)], score)
        tie = self.pair_column if mode == "corrected" else -self.pair_column
        order = np.lexsort((tie, -score, self.pair_target))
        first = order[np.flatnonzero(np.diff(self.pair_target[order], prepend=-1))]
        query, column = self.query[self.pair_target[first]], self.pair_column[first]
        return TruePositives(self, change, query, column, score[first], len(similarity))


def _targets_of(table: TargetTable, own_image: np.ndarray, start: int) -> Targets:
    """Targets of the queries from ``start`` on, whose own images are given."""
    count = table.count[start : start + len(own_image)]
    rows = expand_ranges(table.start[start : start + len(own_image)], count)
    query = np.repeat(np.arange(len(own_image)), count)
    if table.drops_own_image:
        others = table.images[rows] != own_image[query]
        rows, query = rows[others], query[others]
    image = table.images[rows]
    new = (np.diff(query, prepend=-1) != 0) | (np.diff(image, prepend=-1) != 0)
    pairs = expand_ranges(table.pair_start[rows], table.pair_count[rows])
    return Targets(
        query[new],
        image[new],
        table.weight[rows[new]],
        table.can_match[rows[new]],
        np.repeat(np.cumsum(new) - 1, table.pair_count[rows]),
        table.pair_column[pairs],
    )


def count_ranks(
    similarity: np.ndarray, found: Sequence[TruePositives], mask: GalleryMask
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Count the detections that are at least as similar as each true positive.

    Each distinct pair of query and similarity is counted once, for all sets.

    Args:
        similarity: (B, columns) of the block that the mask is at.
        found: true positives of each protocol.

    Returns:
        for each protocol, (H,) detections of its searched set that are at least as similar; and
        (H,) detections of all that are equally similar, only where a true positive leads in some
        protocol, 0 elsewhere.
    """
    query = np.concatenate([f.query for f in found])
    score = np.concatenate([f.score for f in found])
    order = np.lexsort((score, query))
    new = (np.diff(query[order], prepend=-1) != 0) | (np.diff(score[order], prepend=0) != 0)
    new[:1] = True
    number = np.empty(len(order), np.int64)
    number[order] = np.cumsum(new) - 1
    scores, owner = score[order[new]], query[order[new]]
    leading = np.zeros(len(scores), bool)
    leading[number[np.concatenate([f.leads for f in found])]] = True
    counts = np.zeros((len(scores), len(mask.index.sets)), np.int64)
    equal = np.zeros(len(scores), np.int64)
    bounds = np.searchsorted(owner, np.arange(len(similarity) + 1))
    for q in np.unique(owner):
        part = slice(bounds[q], bounds[q + 1])
        relevant = np.flatnonzero(similarity[q] >= scores[part][0])
        values = similarity[q, relevant]
        for i in part.start + np.flatnonzero(leading[part]):
            equal[i] = np.count_nonzero(values == scores[i])
        _count_row(values, mask.bits(q, relevant), scores[part], counts[part])
    numbers = np.split(number, np.cumsum([len(f.query) for f in found])[:-1])
    return [(counts[own, k], equal[own]) for own, k in zip(numbers, mask.index.set_of)]


def _count_row(
    values: np.ndarray, member: np.ndarray, scores: np.ndarray, counts: np.ndarray
) -> None:
    """Fill ``counts`` (S, sets) for ascending similarities ``scores`` (S,) of one query.

    Args:
        values: (C,) the similarities of at least the lowest of ``scores``.
        member: (C,) bits of the sets that they are in.
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
