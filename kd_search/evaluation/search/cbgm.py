"""Contexts of queries for context bipartite graph matching (CBGM), see :mod:`.ranking`.

Li and Miao, "Sequential End-to-end Network for Efficient Person Search" (SeqNet), AAAI 2021,
section 3.4.
"""

from collections.abc import Sequence

import numpy as np

from kd_search.evaluation.flat_arrays import Contexts
from kd_search.evaluation.matching import iou_of_pairs
from kd_search.evaluation.search.predictions import DetectionSet

#: IoU above which non-maximum suppression drops a detection of a query's image, where SeqNet joins
#: the query's box and the detections (the authors' code).
CONTEXT_NMS_IOU = 0.5
# Pixels by which a query's box may differ from its annotated box: files round.
_SAME_BOX = 1.0


def contexts_of_detections(
    detections: DetectionSet,
    query_boxes: np.ndarray,
    query_images: np.ndarray,
    *,
    k2: int,
    score_thresh: float,
) -> Contexts:
    """Choose the highest-scoring detections around each query.

    SeqNet joins the query's box (score 1) and the detections of its image by non-maximum
    suppression: the query comes first and suppresses what overlaps it. Boxes that the detector's
    own suppression dropped before are not restored.

    Args:
        detections: of the query images.
        query_boxes: (Q, 4) XYXY, absolute pixels.
        query_images: (Q,) position of the query's image in ``detections.image_ids``.
        k2: size of the context, the query included.
        score_thresh: detections with a lower score are no context.
    """
    rows = []
    for box, image in zip(query_boxes, query_images):
        start, stop = detections.offsets[image], detections.offsets[image + 1]
        candidates = np.arange(start, stop)[detections.scores[start:stop] >= score_thresh]
        candidates = candidates[np.argsort(-detections.scores[candidates], kind="stable")]
        chosen: list[int] = []
        while len(chosen) < k2 - 1:
            # The box that was kept last suppresses what overlaps it.
            overlap = iou_of_pairs(
                np.broadcast_to(box, (len(candidates), 4)), detections.boxes[candidates]
            )
            candidates = candidates[overlap <= CONTEXT_NMS_IOU]
            if not len(candidates):
                break
            chosen.append(candidates[0])
            box, candidates = detections.boxes[candidates[0]], candidates[1:]
        rows.append(chosen)
    return _gather(rows, detections.embeddings)


def contexts_of_given_boxes(
    detections: DetectionSet,
    query_boxes: np.ndarray,
    query_images: np.ndarray,
    query_ids: np.ndarray,
    *,
    k2: int,
) -> Contexts:
    """Take the first annotated people around each query, where the boxes are annotated ones.

    Raises:
        ValueError: a query's box is not among the boxes of its image, so that it would count as its
            own neighbour; the message names the query.
    """
    rows = []
    for box, image, query in zip(query_boxes, query_images, query_ids):
        candidates = np.arange(detections.offsets[image], detections.offsets[image + 1])
        difference = np.abs(detections.boxes[candidates] - box).max(axis=1, initial=0)
        own = int(difference.argmin()) if len(candidates) else -1
        if own < 0 or difference[own] > _SAME_BOX:
            raise ValueError(
                f"query {query}: its box {np.round(box, 2).tolist()} is not among the "
                f"{len(candidates)} given boxes of image {detections.image_ids[image]!r}; "
                "context matching (CBGM) needs the query's own box there"
            )
        rows.append(np.delete(candidates, own)[: max(0, k2 - 1)])
    return _gather(rows, detections.embeddings)


def _gather(rows: Sequence[Sequence[int]], embeddings: np.ndarray) -> Contexts:
    chosen = np.array([row for part in rows for row in part], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in rows])]).astype(np.int64)
    return Contexts(offsets, embeddings[chosen])
