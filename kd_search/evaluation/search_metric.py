"""Person-search average precision and ranks on flat arrays.

The protocol is that of CUHK-SYSU and PRW (Xiao et al., CVPR 2017; Zheng et al., CVPR 2017): see
:func:`evaluate_search`. Everything here is numpy; anyone can evaluate their own detections.
"""

from dataclasses import dataclass

import numpy as np

from .flat_arrays import Detections, GroundTruth, Queries
from .matching import overlapping_pairs, search_iou_threshold

# Similarities are rounded to multiples of 2^-44 (6e-14): adding and subtracting 1.5 * 2^8 drops
# the bits below. A matrix product may sum in another order near the edge of the matrix, so that
# equal embeddings would differ in the last bit; rounded, they tie wherever they lie.
_ROUNDING = 384.0
# Bytes of one block of similarities.
_BLOCK_BYTES = 16 << 20
# Entries that one maximum stands for when the best of a row are looked for.
_CHUNK = 128
# Sorting an entry costs about as much as comparing this many.
_SORT_COST = 150


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
) -> SearchResult:
    """Search each query's person among the detections of all gallery images.

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

    Returns:
        SearchResult.

    Raises:
        ValueError: detections have no embeddings, or of another length than the queries'.
    """
    _check_embeddings(detections, queries)
    kept = np.flatnonzero(detections.scores >= score_thresh)
    columns = -(-max(len(kept), 1) // _CHUNK) * _CHUNK
    gallery = _Gallery(detections, kept, columns, ground_truth, iou_thresh)
    num_queries = len(queries)
    result = SearchResult(
        ap=np.zeros(num_queries),
        num_gt=np.zeros(num_queries, dtype=np.int64),
        num_found=np.zeros(num_queries, dtype=np.int64),
        first_hit_rank=np.zeros(num_queries, dtype=np.int64),
        match_index=np.full((num_queries, num_matches), -1, dtype=np.int64),
        match_similarity=np.full((num_queries, num_matches), np.nan),
        match_correct=np.zeros((num_queries, num_matches), dtype=bool),
    )
    block = np.zeros((max(1, min(num_queries, _BLOCK_BYTES // (8 * columns))), columns))
    for start in range(0, num_queries, len(block)):
        embeddings = queries.embeddings[start : start + len(block)]
        similarity = gallery.similarity(embeddings, out=block[: len(embeddings)])
        for query, row in enumerate(similarity, start):
            _evaluate_query(result, query, row, gallery, queries)
    return result


class _Gallery:
    """The kept detections, and for each person the detections that would be right.

    Detection ``kept[i]`` is column i of the similarities; the columns from len(kept) on are empty.
    """

    def __init__(
        self,
        detections: Detections,
        kept: np.ndarray,
        columns: int,
        ground_truth: GroundTruth,
        iou_thresh: float,
    ):
        self.kept = kept
        self._embeddings = np.zeros((columns, detections.embeddings.shape[1]))
        self._embeddings[: len(kept)] = detections.embeddings[kept]
        image_index = detections.image_index[kept]
        self._by_image = np.argsort(image_index, kind="stable")
        self._sorted_images = image_index[self._by_image]

        labelled = np.flatnonzero(ground_truth.person_ids >= 0)
        boxes = ground_truth.boxes[labelled]
        persons, images = ground_truth.person_ids[labelled], ground_truth.image_index[labelled]
        # Rows (person, image): the images that hold each person.
        self._holding = np.unique(np.stack([persons, images], axis=1), axis=0)
        gt, detection, _ = overlapping_pairs(
            boxes,
            images,
            search_iou_threshold(boxes, iou_thresh),
            detections.boxes[kept],
            image_index,
        )
        # Rows (person, image, detection): sorted, so that a person's are together, image by image.
        self._matching = np.unique(np.stack([persons[gt], images[gt], detection], axis=1), axis=0)

    def similarity(self, query_embeddings: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Similarities (B, columns) of queries (B, D); -inf in the empty columns."""
        if len(self.kept):
            np.matmul(query_embeddings.astype(np.float64), self._embeddings.T, out=out)
        out += _ROUNDING
        out -= _ROUNDING
        out[:, len(self.kept) :] = -np.inf
        return out

    def detections_of_image(self, image: int) -> np.ndarray:
        """Columns of the detections of one image."""
        start, stop = np.searchsorted(self._sorted_images, (image, image + 1))
        return self._by_image[start:stop]

    def images_holding(self, person: int) -> np.ndarray:
        """The gallery images in which the person is annotated, each once."""
        start, stop = np.searchsorted(self._holding[:, 0], (person, person + 1))
        return self._holding[start:stop, 1]

    def matching(self, person: int) -> tuple[np.ndarray, np.ndarray]:
        """Images and columns of the detections that overlap the person enough, image by image."""
        start, stop = np.searchsorted(self._matching[:, 0], (person, person + 1))
        return self._matching[start:stop, 1], self._matching[start:stop, 2]


def _evaluate_query(
    result: SearchResult, query: int, row: np.ndarray, gallery: _Gallery, queries: Queries
) -> None:
    """Rank one query; ``row`` holds its similarities and is changed."""
    person, own_image = queries.person_ids[query], queries.image_index[query]
    # Whatever a query must not see is -inf from here on: it matches nothing and outranks nothing.
    row[gallery.detections_of_image(own_image)] = -np.inf
    hits = _right_detections(row, *gallery.matching(person))

    result.num_gt[query] = np.count_nonzero(gallery.images_holding(person) != own_image)
    result.num_found[query] = len(hits)
    if len(hits):
        # Sum over the hits of (recall gained) x precision, x found / images holding the person.
        scores = np.sort(row[hits])
        hits_so_far = len(hits) - np.searchsorted(scores, scores, side="left")
        precision = hits_so_far / _count_at_least(row, scores)
        result.ap[query] = precision.sum() / result.num_gt[query]
        result.first_hit_rank[query] = _first_rank(row, hits)

    best = _best_columns(row, result.match_index.shape[1])
    result.match_index[query, : len(best)] = gallery.kept[best]
    result.match_similarity[query, : len(best)] = row[best]
    result.match_correct[query, : len(best)] = (best[:, None] == hits).any(axis=1)


def _right_detections(row: np.ndarray, images: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Of each image, the most similar of these columns; the first among equals."""
    searched = row[columns] > -np.inf
    images, columns = images[searched], columns[searched]
    # The sort is stable and columns ascend within an image: among equals the first comes first.
    order = np.lexsort((-row[columns], images))
    images, columns = images[order], columns[order]
    return columns[np.flatnonzero(np.diff(images, prepend=-1))]


def _count_at_least(row: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """For each score (sorted ascending), how many entries of the row are as high or higher."""
    relevant = row >= scores[0]
    if len(scores) * len(row) < _SORT_COST * np.count_nonzero(relevant):
        return np.array([np.count_nonzero(row >= score) for score in scores])
    candidates = np.sort(row[relevant])
    return len(candidates) - np.searchsorted(candidates, scores, side="left")


def _first_rank(row: np.ndarray, hits: np.ndarray) -> int:
    """Rank of the best hit; it comes after equally similar detections that were given earlier."""
    score = row[hits].max()
    first = hits[row[hits] == score].min()
    return 1 + np.count_nonzero(row > score) + np.count_nonzero(row[:first] == score)


def _best_columns(row: np.ndarray, count: int) -> np.ndarray:
    """Columns of the ``count`` highest entries, best first, equals in order; fewer if -inf."""
    maxima = row.reshape(-1, _CHUNK).max(axis=1)
    # The count-th highest maximum cannot be above the count-th highest entry. With fewer chunks
    # than that, every searched column is a candidate.
    bound = np.partition(maxima, -count)[-count] if count <= len(maxima) else -np.inf
    candidates = np.flatnonzero((row >= bound) & (row > -np.inf))
    return candidates[np.argsort(-row[candidates], kind="stable")[:count]]


def _check_embeddings(detections: Detections, queries: Queries) -> None:
    if detections.embeddings is None:
        raise ValueError("search needs detections with embeddings")
    have, want = detections.embeddings.shape[1], queries.embeddings.shape[1]
    if have != want and len(detections) and len(queries):
        raise ValueError(f"detections have embeddings of length {have}, the queries of {want}")
