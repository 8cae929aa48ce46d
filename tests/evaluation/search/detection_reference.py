"""The detection metric as plain loops, from the text of the protocol."""

from benchmarks._search_reference import iou


def average_precision_by_definition(is_positive, scores):
    """One pass over every distinct score: precision and recall of all that is at or above it."""
    positives = sum(is_positive)
    area = recall_before = 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = [right for right, score in zip(is_positive, scores) if score >= threshold]
        recall = sum(chosen) / positives
        area += (recall - recall_before) * sum(chosen) / len(chosen)
        recall_before = recall
    return area


def detection_by_loop(detections, ground_truth, score_thresh=0.5, iou_thresh=0.5):
    """AP x recall and recall by the text: best score first, the best free box, each box once."""
    taken, right, scores = set(), [], []
    for i in sorted(range(len(detections)), key=lambda i: (-detections.scores[i], i)):
        if detections.scores[i] < score_thresh:
            continue
        best, best_iou = None, -1.0
        for g in range(len(ground_truth)):
            if g in taken or ground_truth.image_index[g] != detections.image_index[i]:
                continue
            overlap = iou(detections.boxes[i], ground_truth.boxes[g])
            if overlap >= iou_thresh and overlap > best_iou:
                best, best_iou = g, overlap
        if best is not None:
            taken.add(best)
        right.append(best is not None)
        scores.append(detections.scores[i])
    if not len(ground_truth):
        return float("nan"), float("nan")
    recall = sum(right) / len(ground_truth)
    ap = average_precision_by_definition(right, scores) if any(right) else 0.0
    return ap * recall, recall
