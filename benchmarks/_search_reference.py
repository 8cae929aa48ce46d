"""The search protocol as it is defined, query by query and image by image. Slow and obvious.

Written from the text of the protocol (``rank_gallery`` states it): float64, no cleverness, the
overlap computed box by box. Only the sort at the end uses numpy as scikit-learn's
``average_precision_score`` does, so that the time is spent where the definition spends it.
"""

from dataclasses import dataclass

import numpy as np


@dataclass
class GalleryImage:
    """One gallery image, as a loop over images wants it."""

    boxes: np.ndarray  # (n, 4) detections
    scores: np.ndarray  # (n,)
    embeddings: np.ndarray  # (n, D) float64
    gt_boxes: np.ndarray  # (m, 4)
    gt_person_ids: np.ndarray  # (m,)


@dataclass
class QueryResult:
    ap: float
    num_gt: int
    num_found: int
    first_hit_rank: int  # 0: none
    matches: list  # of (similarity, image, index of the detection in it, right), best first


def split_by_image(detections, ground_truth, num_images):
    """Flat arrays to a list of :class:`GalleryImage`; detections keep their order."""
    gallery = []
    for image in range(num_images):
        own = detections.image_index == image
        annotated = ground_truth.image_index == image
        gallery.append(
            GalleryImage(
                boxes=np.asarray(detections.boxes[own], dtype=np.float64),
                scores=detections.scores[own],
                embeddings=np.asarray(detections.embeddings[own], dtype=np.float64),
                gt_boxes=np.asarray(ground_truth.boxes[annotated], dtype=np.float64),
                gt_person_ids=ground_truth.person_ids[annotated],
            )
        )
    return gallery


def search_one_query(
    embedding, person_id, own_image, gallery, *, score_thresh=0.5, iou_thresh=0.5, num_matches=10
):
    """Search one query; ``embedding`` (D,) float64, ``own_image`` an index into the gallery."""
    similarities, labels, places = [], [], []
    num_gt = num_found = 0
    for index, image in enumerate(gallery):
        if index == own_image:
            continue
        kept = np.flatnonzero(image.scores >= score_thresh)
        similarity = image.embeddings[kept] @ embedding
        label = np.zeros(len(kept), dtype=bool)
        holds = image.gt_person_ids == person_id
        if person_id >= 0 and holds.any():
            num_gt += 1
            gt_boxes = image.gt_boxes[holds]
            for i in sorted(range(len(kept)), key=lambda i: -similarity[i]):
                if any(_matches(image.boxes[kept[i]], gt, iou_thresh) for gt in gt_boxes):
                    label[i] = True
                    num_found += 1
                    break
        similarities.extend(similarity)
        labels.extend(label)
        places.extend((index, int(i)) for i in kept)

    similarities, labels = np.array(similarities), np.array(labels, dtype=bool)
    order = np.argsort(-similarities, kind="stable")
    ranked, right = similarities[order], labels[order]
    first = int(np.argmax(right)) + 1 if num_found else 0
    matches = [(ranked[i], *places[order[i]], bool(right[i])) for i in range(len(order))]
    return QueryResult(
        ap=_average_precision(ranked, right) * num_found / num_gt if num_gt else 0.0,
        num_gt=num_gt,
        num_found=num_found,
        first_hit_rank=first,
        matches=matches[:num_matches],
    )


def iou(a, b):
    """Intersection over union of two boxes, XYXY."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union


def _matches(box, gt, iou_thresh):
    width, height = gt[2] - gt[0], gt[3] - gt[1]
    threshold = min(iou_thresh, width * height / ((width + 10) * (height + 10)))
    return iou(box, gt) >= threshold


def _average_precision(ranked, right):
    """Sum of (recall gained) x precision over the distinct similarities, high to low."""
    if not right.any():
        return 0.0
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    true_positives = np.cumsum(right)[last]
    gained = np.diff(true_positives, prepend=0) / true_positives[-1]
    return float((gained * true_positives / (last + 1)).sum())
