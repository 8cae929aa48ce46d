"""Overlap of detections with annotated boxes, for all images at once."""

import numpy as np

# Pairs per chunk: bounds the memory of the overlap computation to some tens of megabytes.
PAIRS_PER_CHUNK = 1 << 18


def iou_of_pairs(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """Intersection over union of the boxes of equal rows.

    Args:
        boxes_a, boxes_b: (P, 4), absolute pixels, XYXY.

    Returns:
        (P,) float64; 0 where a box has no area.
    """
    a = np.asarray(boxes_a, dtype=np.float64)
    b = np.asarray(boxes_b, dtype=np.float64)
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    intersection = sides.clip(min=0).prod(axis=1)
    area_a, area_b = ((c[:, 2:] - c[:, :2]).clip(min=0).prod(axis=1) for c in (a, b))
    union = area_a + area_b - intersection
    iou: np.ndarray = np.divide(intersection, union, out=np.zeros(len(a)), where=union > 0)
    return iou


def search_iou_threshold(boxes: np.ndarray, iou_thresh: float = 0.5) -> np.ndarray:
    """IoU at which a detection matches each annotated box.

    min(iou_thresh, w h / ((w + 10) (h + 10))): small boxes get some pixels of slack, as in the
    protocol of CUHK-SYSU and PRW (Xiao et al., CVPR 2017).

    Args:
        boxes: (M, 4), absolute pixels, XYXY.

    Returns:
        (M,) float64.
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    width, height = (boxes[:, 2:] - boxes[:, :2]).clip(min=0).T
    thresholds: np.ndarray = np.minimum(iou_thresh, width * height / ((width + 10) * (height + 10)))
    return thresholds


def overlapping_pairs(
    gt_boxes: np.ndarray,
    gt_image_index: np.ndarray,
    thresholds: np.ndarray,
    boxes: np.ndarray,
    image_index: np.ndarray,
    *,
    include_disjoint: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the pairs of annotated box and detection in one image with enough IoU.

    Args:
        gt_boxes, gt_image_index: (M, 4) annotated boxes and (M,) their images.
        thresholds: (M,) minimum IoU with each annotated box.
        boxes, image_index: (N, 4) detections and (N,) their images.
        include_disjoint: whether boxes of IoU 0 are a pair where the threshold is 0.

    Returns:
        (P,) rows of the annotated boxes, (P,) rows of the detections, (P,) their IoU; sorted by
        annotated box, then detection.
    """
    by_image = np.argsort(image_index, kind="stable")
    sorted_images = image_index[by_image]
    start = np.searchsorted(sorted_images, gt_image_index, side="left")
    count = np.searchsorted(sorted_images, gt_image_index, side="right") - start
    chunk = np.cumsum(count) // PAIRS_PER_CHUNK
    gt_parts, detection_parts, iou_parts = [], [], []
    for part in np.split(np.arange(len(gt_boxes)), np.flatnonzero(np.diff(chunk)) + 1):
        gt = np.repeat(part, count[part])
        detection = by_image[expand_ranges(start[part], count[part])]
        iou = iou_of_pairs(gt_boxes[gt], boxes[detection])
        keep = iou >= thresholds[gt]
        if not include_disjoint:
            keep &= iou > 0
        gt_parts.append(gt[keep])
        detection_parts.append(detection[keep])
        iou_parts.append(iou[keep])
    return np.concatenate(gt_parts), np.concatenate(detection_parts), np.concatenate(iou_parts)


def expand_ranges(start: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Concatenate the ranges start[i], ..., start[i] + count[i] - 1, without a loop."""
    before = np.cumsum(count) - count
    indices: np.ndarray = np.repeat(start - before, count) + np.arange(int(count.sum()))
    return indices
