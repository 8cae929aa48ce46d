"""Where each query's person is, which detections are right there, and their ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable, Optional

import numpy as np

from kd_search.evaluation.flat_arrays import Detections, GroundTruth, Queries
from kd_search.evaluation.matching import expand_ranges, overlapping_pairs, search_iou_threshold
from kd_search.evaluation.search.galleries import Gallery, GalleryProtocol

from ._gallery_mask import GalleryMask
from ._reranking import RerankedScores

# Up to this many similarities are counted by comparing, more of them by sorting once: sorting an
# entry costs about as much as comparing it this often.
_SORT_COST = 24
# Bits that one table of counts covers.
_BITS = 10
_BIT_TABLE = (np.arange(1 << _BITS)[:, None] >> np.arange(_BITS)) & 1


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
    place, of which each is accepted. Places are sorted by query and image, candidates by place.
    """

    query: np.ndarray  # (T,) query of the block
    image: np.ndarray  # (T,)
    weight: np.ndarray  # (T,) how often the place counts; more than 1 only in compat mode
    can_match: np.ndarray  # (T,) bool, whether it has candidates; False only in compat mode
    pair_target: np.ndarray  # (P,) place of each candidate
    pair_column: np.ndarray  # (P,) the detection

    def select(self, keep: np.ndarray) -> "Targets":
        """Return the places of this mask (T,)."""
        pairs = keep[self.pair_target]
        number = np.cumsum(keep) - 1
        return Targets(
            self.query[keep],
            self.image[keep],
            self.weight[keep],
            self.can_match[keep],
            number[self.pair_target[pairs]],
            self.pair_column[pairs],
        )

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
        return TruePositives(
            self,
            change,
            self.query[self.pair_target[first]],
            self.pair_column[first],
            score[first],
            len(similarity),
        )


class TargetTables:
    """Targets of all queries for several gallery protocols.

    Args:
        detections: the searched ones.
        iou_thresh: see :func:`search_iou_threshold`.
    """

    def __init__(
        self,
        protocols: Sequence[GalleryProtocol],
        detections: Detections,
        ground_truth: GroundTruth,
        queries: Queries,
        iou_thresh: float,
        mask: GalleryMask,
    ):
        self._protocols, self._mask = protocols, mask
        self._tables: dict[tuple[Gallery, str], _TargetTable] = {}
        for protocol in protocols:
            # Junk is determined without the deviations of compat mode.
            junk = {"corrected"} if protocol.cameras == "junk_same_camera" else set()
            for mode in {protocol.mode, *junk}:
                if (protocol.gallery, mode) not in self._tables:
                    self._tables[protocol.gallery, mode] = _TargetTable(
                        protocol.gallery,
                        mode == "compat",
                        detections,
                        ground_truth,
                        queries,
                        iou_thresh,
                    )

    def of_block(self, start: int, stop: int) -> list[Targets]:
        """Targets of the queries start..stop - 1 in each protocol; passes junk to the mask."""
        mask, by_key = self._mask, {}
        whole = {key: table.of_block(start, stop) for key, table in self._tables.items()}
        if not mask.searchable.all():
            for (gallery, mode), targets in whole.items():
                if not gallery.has_lists:
                    whole[gallery, mode] = targets.select(mask.searchable[targets.image])
        query_camera = mask.camera_of_query[start:stop]
        for protocol, k in zip(self._protocols, mask.set_of):
            key = (protocol.gallery, protocol.mode, protocol.cameras)
            if key in by_key:
                continue
            targets = whole[protocol.gallery, protocol.mode]
            if protocol.cameras != "all":
                camera, own = mask.cameras[targets.image], query_camera[targets.query]
                if protocol.cameras == "cross_camera":
                    keep = (camera != own) & (camera >= 0) & (own >= 0)
                else:
                    keep = (camera != own) | (camera < 0)
                    junk = whole[protocol.gallery, "corrected"]
                    camera, own = mask.cameras[junk.image], query_camera[junk.query]
                    junk = junk.select((camera == own) & (camera >= 0))
                    mask.set_junk(k, junk.query[junk.pair_target], junk.pair_column)
                targets = targets.select(keep)
            by_key[key] = targets
        return [by_key[p.gallery, p.mode, p.cameras] for p in self._protocols]


class _TargetTable:
    """Places and candidates of one gallery in one mode; see :mod:`..galleries` for the modes."""

    def __init__(
        self,
        gallery: Gallery,
        compat: bool,
        detections: Detections,
        ground_truth: GroundTruth,
        queries: Queries,
        iou_thresh: float,
    ):
        self._own_image = queries.image_index
        # In compat mode lists are taken as they are, with the query's own image.
        self._drops_own_image = not (compat and gallery.has_lists)
        if gallery.has_lists:
            owner, images, boxes, can_match = _listed_places(gallery, compat)
        else:
            labelled = np.flatnonzero(ground_truth.person_ids >= 0)
            owner = ground_truth.person_ids[labelled]
            images = ground_truth.image_index[labelled]
            boxes = np.asarray(ground_truth.boxes[labelled], dtype=np.float64)
            can_match = np.ones(len(labelled), bool)
        # Group rows by owner (a query, or a person) and image, in the given order.
        order = np.lexsort((images, owner))
        owner, images, boxes = owner[order], images[order], boxes[order]
        can_match = can_match[order]
        first = np.flatnonzero((np.diff(owner, prepend=-2) != 0) | (np.diff(images, prepend=-2)))
        weight = np.ones(len(owner), dtype=np.int64)
        if compat:
            boxes = whole_pixels(boxes)[first]
            owner, images, can_match = owner[first], images[first], can_match[first]
            repeats = np.diff(np.append(first, len(weight)))
            weight = repeats if gallery.has_lists else np.ones(len(first), dtype=np.int64)
        keys = np.arange(len(queries)) if gallery.has_lists else queries.person_ids
        self._start = np.searchsorted(owner, keys, side="left")
        self._count = np.searchsorted(owner, keys, side="right") - self._start
        if not gallery.has_lists:
            self._count[keys < 0] = 0
        self._images, self._weight, self._can_match = images, weight, can_match
        row, column, _ = overlapping_pairs(
            boxes,
            images,
            search_iou_threshold(boxes, iou_thresh),
            detections.boxes,
            detections.image_index,
            include_disjoint=compat,
        )
        row, self._pair_column = row[can_match[row]], column[can_match[row]]
        self._pair_start = np.searchsorted(row, np.arange(len(boxes)), side="left")
        self._pair_count = np.searchsorted(row, np.arange(len(boxes)), side="right")
        self._pair_count -= self._pair_start

    def of_block(self, start: int, stop: int) -> Targets:
        count = self._count[start:stop]
        rows = expand_ranges(self._start[start:stop], count)
        query = np.repeat(np.arange(stop - start), count)
        if self._drops_own_image:
            others = self._images[rows] != self._own_image[start:stop][query]
            rows, query = rows[others], query[others]
        image = self._images[rows]
        new = (np.diff(query, prepend=-1) != 0) | (np.diff(image, prepend=-1) != 0)
        place = np.cumsum(new) - 1
        pairs = expand_ranges(self._pair_start[rows], self._pair_count[rows])
        return Targets(
            query[new],
            image[new],
            self._weight[rows[new]],
            self._can_match[rows[new]],
            np.repeat(place, self._pair_count[rows]),
            self._pair_column[pairs],
        )


def whole_pixels(boxes: np.ndarray) -> np.ndarray:
    """Cut the edges of boxes (M, 4) towards zero, as integer arrays of published code hold them.

    Edges are rounded to 1e-6 first: a sum of fractions may lie 1e-14 below a whole number.
    """
    return np.trunc(np.round(boxes, 6))


def _listed_places(
    gallery: Gallery, compat: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(query, image, box) of the entries that hold the person, and whether the box can match."""
    entry = gallery.filled
    query = np.searchsorted(gallery.offsets, entry, side="right") - 1
    images = gallery.images[entry]
    can_match = np.ones(len(entry), bool)
    if compat:
        start = gallery.offsets[query]
        # Only an entry after one without a box, which official files do not have, can be hidden.
        before = np.arange(len(entry)) - np.searchsorted(query, query, side="left")
        for row in np.flatnonzero(entry - start != before):
            can_match[row] = not (gallery.images[start[row] : entry[row]] == images[row]).any()
    return query, images, gallery.boxes, can_match


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
    counts = np.zeros((len(scores), len(mask.sets)), np.int64)
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
    return [(counts[own, k], equal[own]) for own, k in zip(numbers, mask.set_of)]


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
