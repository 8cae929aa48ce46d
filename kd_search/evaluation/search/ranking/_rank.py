"""Person-search ranking under many gallery protocols: each similarity is computed only once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np

from kd_search.evaluation.flat_arrays import Contexts, Detections, GroundTruth, Queries
from kd_search.evaluation.query_results import QueryResults
from kd_search.evaluation.search.galleries import GalleryProtocol
from kd_search.evaluation.similarity import Similarity

from ._block import GalleryMask, RerankedScores, TruePositives, count_ranks
from ._index import GalleryIndex
from ._reranking import rerank


@dataclass(frozen=True)
class RankingSettings:
    """Settings of a ranking that all gallery protocols share.

    Attributes:
        score_thresh: detections with a lower score are not searched.
        iou_thresh: IoU of a right detection; small boxes need less.
        num_matches: K, best detections to report per query, in the first protocol.
        k1: number of detections to re-rank, see :mod:`._reranking`.
        weight_by_score: multiply each similarity by the score of the detection (the confidence
            weighted similarity of NAE, Chen et al., CVPR 2020, and of SeqNet).
    """

    score_thresh: float = 0.5
    iou_thresh: float = 0.5
    num_matches: int = 10
    k1: int = 10
    weight_by_score: bool = False


@dataclass
class RankingResult(QueryResults):
    """Per-query results of one gallery protocol; K is 0 but in the first protocol."""

    protocol: GalleryProtocol
    num_found: np.ndarray  # (Q,) int64, of num_gt, images with a right detection
    num_images: np.ndarray  # (Q,) int64, images searched
    num_detections: int  # of enough score, in all images
    hit_query: np.ndarray  # (H,) query of each right detection, ascending
    hit_count: np.ndarray  # (H,) searched detections that are at least as similar, itself included
    # Only in the first protocol with K > 0; -inf where there is none, see :meth:`open_set`.
    best_right: np.ndarray  # (Q,) similarity of the most similar right detection
    best_other: np.ndarray  # (Q,) of the most similar detection that is not of the query's person

    def open_set(self, rates: Sequence[float] = (0.01, 0.1)) -> dict[str, float]:
        """``FNIR@FPIR=1%`` ...: share of missed people at a share of false alarms, in percent.

        Each query searches twice, for a person who is in the gallery and, without that person's
        detections, for one who is not. FPIR is the share of the latter that return a similarity of
        the threshold or above, FNIR the share of the former in which no right detection reaches it
        (ISO/IEC 19795-1, identification; any rank). Rates below 1 / queries are left out.
        """
        alarms, missed = self.open_set_curve()
        allowed = [int(rate * (len(alarms) + 1) + 1e-9) for rate in rates]
        return {
            f"FNIR@FPIR={100 * rate:g}%": 100 * float(missed[count - 1])
            for rate, count in zip(rates, allowed)
            if 1 <= count <= len(alarms)
        }

    def open_set_curve(self) -> tuple[np.ndarray, np.ndarray]:
        """(Q - 1,) FPIR ascending, and FNIR at each, as fractions, over the Q counted queries."""
        counted = self.num_gt > 0
        right, other = np.sort(self.best_right[counted]), np.sort(self.best_other[counted])[::-1]
        # A threshold just above the k + 1st false alarm allows k of them.
        missed = np.searchsorted(right, other[1:], side="right") / max(len(right), 1)
        return np.arange(1, len(other)) / max(len(other), 1), missed


def rank_gallery(
    detections: Detections,
    ground_truth: GroundTruth,
    queries: Queries,
    protocols: Sequence[GalleryProtocol] = (GalleryProtocol(),),
    settings: RankingSettings = RankingSettings(),  # noqa: B008  immutable
    *,
    image_cameras: Optional[np.ndarray] = None,
    searchable: Optional[np.ndarray] = None,
    contexts: Optional[Contexts] = None,
) -> list[RankingResult]:
    """Search each query's person among the detections of its gallery.

    The protocol is that of CUHK-SYSU and PRW (Xiao et al., CVPR 2017; Zheng et al., CVPR 2017):

    1. Detections with a score below ``score_thresh`` are dropped.
    2. The similarity of query and detection is the dot product of their unit embeddings.
    3. The query's own image is not searched, and the person in it is not counted.
    4. In each gallery image that holds the person, the most similar detection among those with
       IoU >= min(iou_thresh, w h / ((w + 10) (h + 10))) is right (of equally similar ones, the
       first as given). All other detections are wrong, a second one on the same person too. An
       image that holds the person twice counts once; either box is accepted.
    5. AP = average precision of the ranked list x found images / images that hold the person.
       Equal similarities enter together, see :func:`average_precision`. No detection, or none
       right, is an AP of 0.
    6. A query is a top-k hit if a right detection is among the first k, equal similarities in the
       given order. The list may be shorter than k.

    The mode ``compat`` changes rules 3 to 6 as :mod:`..galleries` describes.

    Args:
        detections: of the gallery images, with embeddings (N, D).
        ground_truth: annotated people of the gallery images.
        queries: embeddings (Q, D).
        protocols: galleries to search; by default all images.
        image_cameras: (G,) camera of each image, -1 unknown.
        searchable: (G,) bool, the gallery images; None is all. People elsewhere do not count.
        contexts: of the queries, for re-ranked protocols.

    Returns:
        A result per protocol.

    Raises:
        ValueError: detections have no embeddings, or of another length than the queries'; or a
            protocol needs cameras or contexts that are not given.
    """
    if detections.embeddings is None:
        raise ValueError("search needs detections with embeddings")
    have, want = detections.embeddings.shape[1], queries.embeddings.shape[1]
    if have != want and len(detections) and len(queries):
        raise ValueError(f"detections have embeddings of length {have}, the queries of {want}")
    restricted = [p.cameras for p in protocols if p.cameras != "all"]
    if image_cameras is None and restricted:
        raise ValueError(f"cameras {restricted[0]!r} needs the camera of each image")
    if contexts is None and any(p.reranked for p in protocols):
        raise ValueError("re-ranking by context (CBGM) needs the contexts of the queries")
    kept = np.flatnonzero(detections.scores >= settings.score_thresh)
    found = Detections(
        detections.boxes[kept], detections.scores[kept], detections.image_index[kept]
    )
    weights = found.scores if settings.weight_by_score else None
    similarity = Similarity(detections.embeddings, kept, weights)
    num_images = 1 + max(
        int(images.max(initial=-1))
        for images in (
            found.image_index,
            ground_truth.image_index,
            queries.image_index,
            *(p.gallery.images for p in protocols),
        )
    )
    image_cameras = np.zeros(0, int) if image_cameras is None else np.asarray(image_cameras)
    num_images = max(num_images, len(image_cameras), 0 if searchable is None else len(searchable))
    missing = num_images - len(image_cameras)
    cameras = np.concatenate([image_cameras, np.full(missing, -1, image_cameras.dtype)])
    if searchable is None:
        searchable = np.ones(num_images, bool)
    missing = num_images - len(searchable)
    index = GalleryIndex(
        protocols,
        found,
        ground_truth,
        queries,
        settings.iou_thresh,
        np.concatenate([searchable, np.zeros(missing, bool)]),
        cameras,
    )
    results = [
        RankingResult(
            **QueryResults.empty(len(queries), 0 if number else settings.num_matches),
            protocol=protocol,
            num_found=np.zeros(len(queries), np.int64),
            num_images=np.zeros(len(queries), np.int64),
            num_detections=len(kept),
            hit_query=np.zeros(0, np.int64),
            hit_count=np.zeros(0, np.int64),
            best_right=np.full(len(queries), -np.inf),
            best_other=np.full(len(queries), -np.inf),
        )
        for number, protocol in enumerate(protocols)
    ]
    hits = [
        _rank_block(results, start, rows, index, similarity, contexts, settings.k1, kept)
        for start, rows in similarity.blocks(queries.embeddings)
    ]
    for result, parts in zip(results, zip(*hits)):
        result.hit_query, result.hit_count = np.concatenate(parts, axis=1)
    return results


def _rank_block(
    results: Sequence[RankingResult],
    start: int,
    rows: np.ndarray,
    index: GalleryIndex,
    similarity: Similarity,
    contexts: Optional[Contexts],
    k1: int,
    kept: np.ndarray,
) -> list[np.ndarray]:
    """Fill a block of the results.

    Args:
        start: first query of the block.
        rows: (B, columns) similarities of the block; they are changed.
        kept: (N,) rows of the searched detections among the given ones.

    Returns:
        for each protocol (2, H), ``hit_query`` and ``hit_count``.
    """
    set_of, hits, block = index.set_of, [], slice(start, start + len(rows))
    mask = GalleryMask(index, start, start + len(rows))
    reranked: Mapping[int, RerankedScores] = {}
    if contexts is not None and index.reranked_sets:
        reranked = rerank(rows, mask, similarity, contexts, k1)
    positives = [
        targets.true_positives(rows, p.mode, reranked.get(k) if p.reranked else None)
        for targets, p, k in zip(mask.targets, index.protocols, set_of)
    ]
    num_images = {k: mask.count_images(k) for k in set(set_of)}
    ranks = count_ranks(rows, positives, mask)
    for result, k, found, (count, ties) in zip(results, set_of, positives, ranks):
        if found.change is not None:
            count = count + found.count_change(found.change, np.greater_equal)
            ties = ties + found.count_change(found.change, np.equal)
        num_gt = np.bincount(found.targets.query, found.targets.weight, minlength=len(rows))
        result.num_gt[block] = num_gt
        result.num_found[block] = np.bincount(found.query, minlength=len(rows))
        result.num_images[block] = num_images[k]
        result.ap[block] = found.average_precision(count, result.num_gt[block])
        leading = np.flatnonzero(found.leads)
        result.first_hit_rank[start + found.query[leading]] = count[leading]
        for q in np.unique(found.query[leading[ties[leading] > 1]]):
            own = leading[found.query[leading] == q]
            score = found.score[own[0]]
            ranked = _order_equals(rows[q], int(q), k, result.protocol, mask, found, score)
            first = int(np.flatnonzero(np.isin(ranked, found.column[own]))[0])
            result.first_hit_rank[start + q] = count[own[0]] - len(ranked) + first + 1
        hits.append(np.stack([start + found.query, count]))
    result, found, num_matches = results[0], positives[0], results[0].match_index.shape[1]
    bounds = np.searchsorted(found.query, np.arange(len(rows) + 1))
    pair_query = found.targets.query[found.targets.pair_target]
    pair_bounds = np.searchsorted(pair_query, np.arange(len(rows) + 1))
    candidates = found.targets.pair_column
    for q, row in enumerate(rows if num_matches else ()):
        if found.change is not None:
            moved = found.change.column[q] >= 0
            row[found.change.column[q][moved]] = found.change.new[q][moved]
        same = candidates[pair_bounds[q] : pair_bounds[q + 1]]
        best = mask.most_similar(q, row, set_of[:1], max(num_matches, len(same) + 1))[set_of[0]]
        own = found.column[bounds[q] : bounds[q + 1]]
        result.best_right[start + q] = row[own].max(initial=-np.inf)
        others = best[~np.isin(best, same)]
        result.best_other[start + q] = row[others[0]] if len(others) else -np.inf
        best = best[:num_matches]
        place = start + q, slice(0, len(best))
        result.match_index[place] = kept[best]
        result.match_similarity[place] = row[best]
        result.match_correct[place] = (best[:, None] == own).any(axis=1)
    return hits


def _order_equals(
    row: np.ndarray,
    q: int,
    k: int,
    protocol: GalleryProtocol,
    mask: GalleryMask,
    found: TruePositives,
    score: float,
) -> np.ndarray:
    """Columns of the detections of a query with this similarity, in the order of their ranks."""
    equal = np.flatnonzero(row == score)
    if found.change is not None:
        column, new = found.change.column[q], found.change.new[q]
        moved = column[column >= 0]
        raised = column[(new == score) & (column >= 0)]
        equal = np.union1d(equal[~np.isin(equal, moved)], raised)
    equal = equal[(mask.bits(q, equal) >> k) & 1 != 0]
    order = np.arange(len(equal))
    if protocol.mode == "compat":
        # A stable ascending sort, read backwards: the last of the list leads. In an image that
        # holds the person, the list has equal detections backwards already.
        images, targets = mask.index.image_index[equal], found.targets
        holding = np.isin(images, targets.image[(targets.query == q) & targets.can_match])
        position = mask.list_position(protocol.gallery, q, images)
        order = np.lexsort((np.where(holding, equal, -equal), -position))
    ranked: np.ndarray = equal[order]
    return ranked
