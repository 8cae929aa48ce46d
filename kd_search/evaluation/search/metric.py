"""Person-search average precision and ranks on flat arrays.

The protocol is that of CUHK-SYSU and PRW (Xiao et al., CVPR 2017; Zheng et al., CVPR 2017): see
:func:`evaluate_search`. Everything here is numpy; anyone can evaluate their own detections.
"""

from dataclasses import dataclass
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
from kd_search.evaluation.search.ranking.engine import search_views
from kd_search.evaluation.search.ranking.result import ViewResult


@dataclass
class SearchResult:
    """Per-query results, in the order of the queries. Rates are fractions in 0..1.

    A query whose person is in no other gallery image (``num_gt`` 0) cannot be answered: it is
    left out of every mean and counted by ``num_without_match``.
    """

    ap: np.ndarray  # (Q,) float64; 0 where num_gt is 0
    num_gt: np.ndarray  # (Q,) gallery images that hold the person
    num_found: np.ndarray  # (Q,) of these, images with a matching detection
    first_hit_rank: np.ndarray  # (Q,) 1 is best; 0 where nothing was found
    match_index: np.ndarray  # (Q, K) best detections, as indices into the given ones; -1 padding
    match_similarity: np.ndarray  # (Q, K) float64; NaN padding
    match_correct: np.ndarray  # (Q, K) bool

    @property
    def num_queries(self) -> int:
        """Queries that the means are over."""
        return int((self.num_gt > 0).sum())

    @property
    def num_without_match(self) -> int:
        """Queries whose person is in no gallery image; they are in no mean."""
        return int((self.num_gt == 0).sum())

    def mean_ap(self) -> float:
        """Mean of ``ap`` over the queries that have a match in the gallery; NaN if none has."""
        evaluated = self.num_gt > 0
        return float(self.ap[evaluated].mean()) if evaluated.any() else float("nan")

    def top_k_accuracy(self, k: int) -> float:
        """Share of the same queries with a right detection among the ``k`` best."""
        evaluated = self.num_gt > 0
        hit = (self.first_hit_rank >= 1) & (self.first_hit_rank <= k)
        return float(hit[evaluated].mean()) if evaluated.any() else float("nan")


def evaluate_search(
    detections: Detections,
    ground_truth: GroundTruth,
    queries: Queries,
    *,
    score_thresh: float = 0.5,
    iou_thresh: float = 0.5,
    num_matches: int = 10,
    view: Optional[View] = None,
    image_cameras: Optional[np.ndarray] = None,
    searchable: Optional[np.ndarray] = None,
    contexts: Optional[Contexts] = None,
    k1: int = 10,
    weight_by_score: bool = False,
) -> SearchResult:
    """Search each query's person among the detections of its gallery.

    1. Detections with a score below ``score_thresh`` are dropped.
    2. The similarity of query and detection is the dot product of their unit embeddings.
    3. The query's own image is not searched, and the person in it is not counted.
    4. In each gallery image that holds the person, the most similar detection among those with
       IoU >= min(iou_thresh, w h / ((w + 10) (h + 10))) is right (of equally similar ones, the
       first as given). All other detections are wrong, a second one on the same person too. An
       image that holds the person twice counts once; either box will do.
    5. AP = average precision of the ranked list x found images / images that hold the person.
       Equal similarities enter together, see :func:`average_precision`. No detection, or none
       right, is an AP of 0.
    6. A query is a top-k hit if a right detection is among the first k, equal similarities in the
       given order. The list may be shorter than k.

    Args:
        detections: of the gallery images, with embeddings (N, D).
        ground_truth: annotated people of the gallery images.
        queries: embeddings (Q, D).
        num_matches: K, how many of the best detections to report per query.
        view: another gallery than all images, other cameras, the mode ``compat`` (which changes
            rules 3 to 6 as :mod:`.galleries` says), or re-ranking.
        image_cameras, searchable, contexts, k1, weight_by_score: see :func:`search_views`.

    Returns:
        SearchResult.

    Raises:
        ValueError: detections have no embeddings, or of another length than the queries'.
    """
    check_embeddings(detections, queries)
    (result,) = search_views(
        detections,
        ground_truth,
        queries,
        [view or View(Gallery.whole())],
        score_thresh=score_thresh,
        iou_thresh=iou_thresh,
        num_matches=num_matches,
        image_cameras=image_cameras,
        searchable=searchable,
        contexts=contexts,
        k1=k1,
        weight_by_score=weight_by_score,
    )
    return search_result(result)


def search_result(result: ViewResult) -> SearchResult:
    """The part of a view's result that means and rankings are made of."""
    return SearchResult(
        **{field: getattr(result, field) for field in SearchResult.__dataclass_fields__}
    )


def check_embeddings(detections: Detections, queries: Queries) -> None:
    """Raise ValueError unless the embeddings are there and of one length."""
    if detections.embeddings is None:
        raise ValueError("search needs detections with embeddings")
    have, want = detections.embeddings.shape[1], queries.embeddings.shape[1]
    if have != want and len(detections) and len(queries):
        raise ValueError(f"detections have embeddings of length {have}, the queries of {want}")
