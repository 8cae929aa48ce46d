"""Person search in many views at once: each similarity is computed, and ranked, only once.

What a view needs of a query is little: for each right detection, how many searched detections are
at least as similar. :func:`search_views` finds the right detections of all views, counts for all of
their similarities and all searched sets in one go, and leaves the rest to arithmetic on the counts.
"""

from typing import Optional

import numpy as np

from kd_search.evaluation.flat_arrays import (
    Detections,
    GroundTruth,
    Queries,
)
from kd_search.evaluation.search.cbgm import Contexts
from kd_search.evaluation.search.galleries import (
    Gallery,
    View,
)
from kd_search.evaluation.search.ranking.gallery_mask import (
    SearchedColumns,
    SearchedSet,
    camera_of_queries,
)
from kd_search.evaluation.search.ranking.hits import (
    Hits,
    Moved,
    best_of,
    moved_count,
    ranked_precision,
)
from kd_search.evaluation.search.ranking.positives import (
    Targets,
    TargetTable,
)
from kd_search.evaluation.search.ranking.rank_counts import count_ranks
from kd_search.evaluation.search.ranking.reranking import Reranker
from kd_search.evaluation.search.ranking.result import ViewResult
from kd_search.evaluation.search.ranking.top_k import best_of_sets
from kd_search.evaluation.similarity import Similarity


def search_views(
    detections: Detections,
    ground_truth: GroundTruth,
    queries: Queries,
    views: list[View],
    *,
    score_thresh: float = 0.5,
    iou_thresh: float = 0.5,
    num_matches: int = 0,
    image_cameras: Optional[np.ndarray] = None,
    searchable: Optional[np.ndarray] = None,
    contexts: Optional[Contexts] = None,
    k1: int = 10,
    weight_by_score: bool = False,
) -> list[ViewResult]:
    """Search each query's person in every view; :func:`evaluate_search` states the protocol.

    Args:
        detections: with embeddings (N, D); equal similarities keep their order.
        ground_truth: annotated people of the gallery images.
        queries: embeddings (Q, D).
        views: what to search.
        num_matches: K, how many of the best detections to report per query, in the first view.
        image_cameras: (G,) camera of each image, -1 unknown.
        searchable: (G,) bool, the gallery images; None is all. People elsewhere do not count.
        contexts: of the queries, for re-ranked views.
        k1: how many detections are re-ranked, see :mod:`.cbgm`.
        weight_by_score: multiply each similarity by the score of the detection (the confidence
            weighted similarity of NAE, Chen et al., CVPR 2020, and of SeqNet).

    Returns:
        A result per view.

    Raises:
        ValueError: a view needs cameras or contexts that are not given.
    """
    needs_cameras = [view for view in views if view.cameras != "all"]
    if image_cameras is None and needs_cameras:
        raise ValueError(f"cameras {needs_cameras[0].cameras!r} needs the camera of each image")
    if contexts is None and any(view.reranked for view in views):
        raise ValueError("re-ranking by context (CBGM) needs the contexts of the queries")
    search = _Search(
        detections,
        ground_truth,
        queries,
        views,
        score_thresh,
        iou_thresh,
        num_matches,
        image_cameras,
        searchable,
        weight_by_score,
    )
    if search.reranked_sets:
        search.reranker = Reranker(
            contexts,
            k1,
            search.reranked_sets,
            search.columns,
            search.similarity,
            search.image_index,
        )
    search.run()
    return search.results


class _Search:
    def __init__(
        self,
        detections,
        ground_truth,
        queries,
        views,
        score_thresh,
        iou_thresh,
        num_matches,
        image_cameras,
        searchable,
        weight_by_score,
    ):
        self.views, self.queries, self.num_matches = views, queries, num_matches
        self.reranker: Optional[Reranker] = None
        self.kept = np.flatnonzero(detections.scores >= score_thresh)
        found = Detections(
            detections.boxes[self.kept],
            detections.scores[self.kept],
            detections.image_index[self.kept],
        )
        self.similarity = Similarity(
            detections.embeddings, self.kept, found.scores if weight_by_score else None
        )
        num_images = 1 + max(
            (
                int(images.max(initial=-1))
                for images in (
                    found.image_index,
                    ground_truth.image_index,
                    queries.image_index,
                    *(v.gallery.images for v in views if v.gallery.has_lists),
                )
            ),
            default=-1,
        )
        num_images = max(num_images, 0 if searchable is None else len(searchable))
        self.cameras = _extend(image_cameras, num_images, -1)
        self.searchable = np.ones(num_images, bool)
        if searchable is not None:
            self.searchable = _extend(searchable, num_images, False)
        self.camera_of_query = camera_of_queries(self.cameras, queries.image_index)
        self.tables, self.own_listed = {}, {}
        self.whole = next(
            (v.gallery for v in views if v.gallery.complete and not v.gallery.has_lists),
            Gallery.whole(),
        )
        for view in views:
            for mode in (
                {view.mode, "corrected"} if view.cameras == "junk_same_camera" else {view.mode}
            ):
                if (view.gallery, mode) not in self.tables:
                    self.tables[view.gallery, mode] = TargetTable(
                        view.gallery, mode == "compat", found, ground_truth, queries, iou_thresh
                    )
        sets = [self._searched_set(view) for view in views]
        unique = list(dict.fromkeys(sets))
        self.set_of_view = [unique.index(searched) for searched in sets]
        self.reranked_sets = sorted({s for s, v in zip(self.set_of_view, views) if v.reranked})
        self.columns = SearchedColumns(
            unique,
            found.image_index,
            num_images,
            queries.image_index,
            self.searchable,
            self.cameras,
        )
        self.image_index = found.image_index
        self.results = [
            ViewResult.empty(view, len(queries), num_matches if v == 0 else 0)
            for v, view in enumerate(views)
        ]

    def _searched_set(self, view: View) -> SearchedSet:
        """Views that search the same detections share a set."""
        gallery = view.gallery
        own_listed = False
        if view.mode == "compat" and gallery.has_lists:
            own_listed = self._lists_own_image(gallery)
        if (
            gallery.complete
            and gallery.has_lists
            and not own_listed
            and gallery.queries is None
            and view.cameras != "junk_same_camera"
            and self.searchable[gallery.images].all()
        ):
            # The rest has what the lists leave out: all images but the query's own. (Junk is what
            # the lists say.)
            gallery = self.whole
        return SearchedSet(gallery, view.cameras, own_listed)

    def _lists_own_image(self, gallery) -> bool:
        if gallery.offsets is not None and id(gallery.images) not in self.own_listed:
            own = self.queries.image_index.astype(gallery.images.dtype)
            own = np.repeat(own, np.diff(gallery.offsets))
            self.own_listed[id(gallery.images)] = bool((own == gallery.images).any())
        return self.own_listed[id(gallery.images)]

    def run(self) -> None:
        self.hit_parts = [[] for _ in self.views]
        for start, rows in self.similarity.blocks(self.queries.embeddings):
            self._run_block(start, rows)
        for result, parts in zip(self.results, self.hit_parts):
            if parts:
                result.hit_query, result.hit_count = np.concatenate(parts, axis=1)

    def _run_block(self, start: int, rows: np.ndarray) -> None:
        stop = start + len(rows)
        self.columns.start_block(start, stop)
        camera = self.camera_of_query[start:stop]
        targets = self._targets(start, stop, camera)
        moved = {}
        if self.reranker is not None:
            moved = self.reranker.move(start, rows)
        hits = [
            self._hits(rows, targets[view.gallery, view.mode, view.cameras], view.mode, change)
            for view, change in zip(self.views, self._changes(moved))
        ]
        best = [best_of(h, len(rows)) for h in hits]
        ranks = count_ranks(rows, hits, best, self.columns)
        for v, (view, result) in enumerate(zip(self.views, self.results)):
            k = self.set_of_view[v]
            change = moved.get(k) if view.reranked else None
            count = ranks.counts[ranks.number[v], k]
            ties = ranks.equal[ranks.number[v]]
            if change is not None:
                count = count + moved_count(hits[v], change, np.greater_equal)
                ties = ties + moved_count(hits[v], change, np.equal)
            target = targets[view.gallery, view.mode, view.cameras]
            block = slice(start, stop)
            result.num_gt[block] = np.bincount(target.query, target.weight, minlength=len(rows))
            result.num_found[block] = np.bincount(hits[v].query, minlength=len(rows))
            result.ap[block] = ranked_precision(hits[v], count, result.num_gt[block])
            self.hit_parts[v].append(np.stack([start + hits[v].query, count]))
            leading = np.flatnonzero(hits[v].score == best[v][hits[v].query])
            result.first_hit_rank[start + hits[v].query[leading]] = count[leading]
            for q in np.unique(hits[v].query[leading[ties[leading] > 1]]):
                own = leading[hits[v].query[leading] == q]
                result.first_hit_rank[start + q] = self._rank_among_equals(
                    rows[q], q, k, view, hits[v], own, int(count[own[0]]), target, change
                )
        images = {k: self.columns.count_images(k) for k in set(self.set_of_view)}
        for k, result in zip(self.set_of_view, self.results):
            result.num_images[start:stop] = images[k]
        if self.num_matches:
            change = moved.get(self.set_of_view[0]) if self.views[0].reranked else None
            self._keep_matches(start, rows, hits[0], change)

    def _targets(self, start, stop, camera) -> dict[tuple, Targets]:
        """Places by gallery, mode and cameras; marks the junk of the block."""
        whole = {key: table.of_block(start, stop) for key, table in self.tables.items()}
        if not self.searchable.all():
            for key, places in whole.items():
                if not key[0].has_lists:
                    whole[key] = places.select(self.searchable[places.image])
        targets = {}
        for view, k in zip(self.views, self.set_of_view):
            key = (view.gallery, view.mode, view.cameras)
            if key in targets:
                continue
            places = whole[view.gallery, view.mode]
            if view.cameras != "all":
                seen_by, asked_by = self.cameras[places.image], camera[places.query]
                if view.cameras == "cross_camera":
                    keep = (seen_by != asked_by) & (seen_by >= 0) & (asked_by >= 0)
                else:
                    keep = (seen_by != asked_by) | (seen_by < 0)
                    self._mark_junk(k, whole[view.gallery, "corrected"], camera)
                places = places.select(keep)
            targets[key] = places
        return targets

    def _mark_junk(self, k: int, places: Targets, camera: np.ndarray) -> None:
        seen_by, asked_by = self.cameras[places.image], camera[places.query]
        junk = places.select((seen_by == asked_by) & (seen_by >= 0))
        self.columns.set_junk(k, junk.query[junk.pair_target], junk.pair_column)

    def _changes(self, moved) -> list[Optional[Moved]]:
        return [
            moved.get(k) if view.reranked else None for view, k in zip(self.views, self.set_of_view)
        ]

    def _hits(self, rows, places: Targets, mode: str, change: Optional[Moved]) -> Hits:
        """Of each place the most similar candidate."""
        query = places.query[places.pair_target]
        score = rows[query, places.pair_column]
        if change is not None and len(query):
            same = change.column[query] == places.pair_column[:, None]
            score = np.where(same.any(axis=1), change.new[query, same.argmax(axis=1)], score)
        tie = places.pair_column if mode == "corrected" else -places.pair_column
        order = np.lexsort((tie, -score, places.pair_target))
        first = order[np.flatnonzero(np.diff(places.pair_target[order], prepend=-1))]
        target = places.pair_target[first]
        return Hits(
            places.query[target], places.image[target], places.pair_column[first], score[first]
        )

    def _rank_among_equals(self, row, q, k, view, hits, own, count, places, change) -> int:
        """Rank of the best hits ``own`` of a query, where other detections are as similar."""
        score = hits.score[own[0]]
        equal = np.flatnonzero(row == score)
        if change is not None:
            here = change.column[q][change.column[q] >= 0]
            raised = change.column[q][(change.new[q] == score) & (change.column[q] >= 0)]
            equal = np.union1d(equal[~np.isin(equal, here)], raised)
        equal = equal[(self.columns.bits(q, equal) >> k) & 1 != 0]
        if view.mode == "corrected":
            ranked = equal
        else:
            # A stable ascending sort, read backwards: the last of the list leads. In an image that
            # holds the person, the list has equal detections backwards already.
            images = self.image_index[equal]
            holding = np.isin(images, places.image[(places.query == q) & places.is_seen])
            position = self.columns.list_position(view.gallery, q, images)
            within = np.where(holding, equal, -equal)
            ranked = equal[np.lexsort((within, -position))]
        first = int(np.flatnonzero(np.isin(ranked, hits.column[own]))[0])
        return count - len(equal) + first + 1

    def _keep_matches(self, start, rows, hits: Hits, change: Optional[Moved]) -> None:
        result, k = self.results[0], self.set_of_view[0]
        bounds = np.searchsorted(hits.query, np.arange(len(rows) + 1))
        for q, row in enumerate(rows):
            if change is not None:
                has = change.column[q] >= 0
                row[change.column[q][has]] = change.new[q][has]
            best = best_of_sets(self.columns, q, row, [k], self.num_matches)[k]
            own = hits.column[bounds[q] : bounds[q + 1]]
            place = slice(0, len(best))
            result.match_index[start + q, place] = self.kept[best]
            result.match_similarity[start + q, place] = row[best]
            result.match_correct[start + q, place] = (best[:, None] == own).any(axis=1)


def _extend(values: Optional[np.ndarray], count: int, fill) -> np.ndarray:
    values = np.full(0, fill) if values is None else np.asarray(values)
    return np.concatenate([values, np.full(count - len(values), fill, dtype=values.dtype)])
