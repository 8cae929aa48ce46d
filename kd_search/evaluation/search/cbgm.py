"""Context bipartite graph matching (CBGM): re-ranking by the people around the query.

Li and Miao, "Sequential End-to-end Network for Efficient Person Search" (SeqNet), AAAI 2021,
section 3.4: whoever walks beside the query helps to find it. For the k1 most similar detections of
a gallery, the images that own them are looked at again:

1. The context of a query is its own box and the k2 - 1 surest detections of its image. Their
   embeddings count in full, even where similarities to the gallery are weighted by the score: the
   authors' code switches its weighting off for query images.
2. In a gallery image, the context and the detections are matched one to one, so that the sum of
   their similarities is as large as possible.
3. The detection that is matched to the query itself gets the largest similarity of that matching.

The paper has k1 = 10, k2 = 3 for CUHK-SYSU and k1 = 30, k2 = 4 for PRW. It leaves open what
happens where several matchings have the same sum; here it is the one that gives the query, then the
first of its neighbours, and so on, a detection as similar as possible, of equals the first.

Contexts are small, so that all matchings of all images of a block of queries are tried at once;
scipy's ``linear_sum_assignment`` does the rest (contexts of more than 4, fewer detections than
people), where which of equally good matchings it takes is its own choice.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from kd_search.evaluation.matching import iou_of_pairs
from kd_search.evaluation.search.predictions import DetectionSet

#: IoU above which the non-maximum suppression drops a detection of a query's image, where SeqNet
#: joins the query's box and the detections: 0.5 (the authors' code).
CONTEXT_NMS_IOU = 0.5
# Pixels by which a query's box may differ from the annotated box that it is, for rounded files.
_SAME_BOX = 1.0
# Largest context of which all 4^4 choices are tried; above it, scipy is faster.
_TRY_ALL = 4


@dataclass
class Contexts:
    """For each of Q queries, the embeddings of the people around it, without the query's own."""

    offsets: np.ndarray  # (Q + 1,) int64
    embeddings: np.ndarray  # (C, D), unit length


def contexts_of_detections(
    detections: DetectionSet,
    query_boxes: np.ndarray,
    query_images: np.ndarray,
    *,
    k2: int,
    score_thresh: float,
) -> Contexts:
    """The surest detections around each query.

    SeqNet joins the query's box (score 1) and the detections of its image by non-maximum
    suppression, so that the query comes first and whatever lies on it is gone. A box that a
    detection on the query suppressed before is not among the given ones, and stays absent.

    Args:
        detections: of the query images.
        query_boxes: (Q, 4) XYXY, absolute pixels.
        query_images: (Q,) position of the query's image in ``detections.image_ids``.
        k2: size of the context, the query included.
        score_thresh: detections below it are no context.
    """
    rows = []
    for box, image in zip(query_boxes, query_images):
        start, stop = detections.offsets[image], detections.offsets[image + 1]
        candidates = np.arange(start, stop)[detections.scores[start:stop] >= score_thresh]
        candidates = candidates[np.argsort(-detections.scores[candidates], kind="stable")]
        chosen = []
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
        rows.append(np.array(chosen, dtype=np.int64))
    return _gather(rows, detections.embeddings)


def contexts_of_given_boxes(
    detections: DetectionSet,
    query_boxes: np.ndarray,
    query_images: np.ndarray,
    query_ids: np.ndarray,
    *,
    k2: int,
) -> Contexts:
    """The first annotated people around each query, where the gallery boxes are annotated ones.

    Raises:
        ValueError: a query's box is not among the boxes of its image, so that it would be taken
            for its own neighbour; the line names the query.
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
                "context matching (CBGM) must find the query's own box there"
            )
        rows.append(np.delete(candidates, own)[: max(0, k2 - 1)])
    return _gather(rows, detections.embeddings)


def match_context(
    similarity: np.ndarray, counts: np.ndarray, people: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Match contexts with the detections of images, for many pairs of query and image at once.

    Args:
        similarity: (K, I, M) of the up to K people of the query's context, the query first, and
            the up to M detections of the image, for I pairs; -inf beyond either.
        counts: (I,) detections of the image, at least 1.
        people: (I,) people of the context, at least 1.

    Returns:
        (I,) the detection matched to the query, -1 if it got none, which can happen where there
        are fewer detections than people; (I,) the largest similarity of the matching.
    """
    # Somebody who is not there takes nobody's place.
    absent = np.arange(len(similarity))[:, None] >= people
    favourite = np.where(
        absent, -1 - np.arange(len(similarity))[:, None], similarity.argmax(axis=2)
    )
    value = similarity.max(axis=(0, 2))
    matched = favourite[0].copy()
    ranked = np.sort(favourite, axis=0)
    disputed = (ranked[1:] == ranked[:-1]).any(axis=0) | (counts < people)
    crowded = disputed & (counts >= people) & (people <= _TRY_ALL)
    for size in np.unique(people[crowded]):
        pairs = np.flatnonzero(crowded & (people == size))
        matched[pairs], value[pairs] = _try_all(similarity[:size, pairs])
    disputed &= ~crowded
    if disputed.any():
        # Only here: whoever does not re-rank needs no scipy.
        from scipy.optimize import linear_sum_assignment

        for pair in np.flatnonzero(disputed):
            block = similarity[: people[pair], pair, : counts[pair]]
            rows, columns = linear_sum_assignment(block, maximize=True)
            matched[pair] = columns[0] if rows[0] == 0 else -1
            value[pair] = block[rows, columns].max()
    return matched, value


def _try_all(similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """:func:`match_context` for (K, I, M) with at least K detections everywhere, all pairs at once.

    Nobody needs more than K choices: of a person's K most similar detections, the K - 1 others
    leave one free, which is at least as good as any beyond them.
    """
    people, count, _ = similarity.shape
    # A stable sort, so that equal detections are tried in the given order.
    choices = np.argsort(-similarity, axis=2, kind="stable")[:, :, :people]
    values = np.take_along_axis(similarity, choices, axis=2)
    combinations = np.array(list(itertools.product(range(people), repeat=people)))
    total = np.zeros((len(combinations), count))
    for person in range(people):
        total += values[person][:, combinations[:, person]].T
    for one, other in itertools.combinations(range(people), 2):
        same = choices[one][:, combinations[:, one]] == choices[other][:, combinations[:, other]]
        total[same.T] = -np.inf
    best = combinations[total.argmax(axis=0)]  # (I, K)
    pair = np.arange(count)
    value = np.stack([values[k, pair, best[:, k]] for k in range(people)]).max(axis=0)
    return choices[0, pair, best[:, 0]], value


def _gather(rows: list[np.ndarray], embeddings: np.ndarray) -> Contexts:
    counts = [len(part) for part in rows]
    chosen = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Contexts(offsets, embeddings[chosen.astype(np.int64)])
