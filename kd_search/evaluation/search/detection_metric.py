"""Detection average precision and recall, as person search reports them."""

from dataclasses import dataclass

import numpy as np

from kd_search.evaluation.flat_arrays import Detections, GroundTruth
from kd_search.evaluation.matching import overlapping_pairs


@dataclass
class DetectionResult:
    """Rates are fractions in 0..1, NaN where nothing is annotated."""

    ap: float  # average precision times recall
    recall: float
    num_gt: int
    num_detections: int  # at or above the score threshold
    true_positives: np.ndarray  # indices of the detections, as given, that found a person


def evaluate_detection(
    detections: Detections,
    ground_truth: GroundTruth,
    *,
    score_thresh: float = 0.5,
    iou_thresh: float = 0.5,
) -> DetectionResult:
    """Match detections to annotated people (OIM protocol, Xiao et al., CVPR 2017).

    In each image, in descending score (equal scores in the given order), a detection takes the
    free annotated box with which it overlaps most, if their IoU is at least ``iou_thresh``; each
    box is taken once. recall = taken / annotated. AP = average precision over all detections of
    all images x recall. All annotated people count, labelled or not.

    Args:
        detections: those below ``score_thresh`` are ignored. The protocol has 0.5, SeqNet 0.01.
        ground_truth: the annotated people of the same images.
    """
    kept = np.flatnonzero(detections.scores >= score_thresh)
    boxes, image_index = detections.boxes[kept], detections.image_index[kept]
    scores = detections.scores[kept]
    gt, detection, iou = overlapping_pairs(
        ground_truth.boxes,
        ground_truth.image_index,
        np.full(len(ground_truth), iou_thresh, dtype=np.float64),
        boxes,
        image_index,
    )
    # Order of matching: image by image, highest score first.
    turn_order = np.lexsort((np.arange(len(kept)), -scores, image_index))
    found = np.zeros(len(kept), dtype=bool)
    found[turn_order] = _take_in_turn(
        gt, np.argsort(turn_order)[detection], iou, image_index[turn_order], len(ground_truth)
    )
    num_gt = len(ground_truth)
    recall = float(found.sum()) / num_gt if num_gt else float("nan")
    return DetectionResult(
        ap=average_precision(found, scores) * recall,
        recall=recall,
        num_gt=num_gt,
        num_detections=len(kept),
        true_positives=kept[found],
    )


def average_precision(is_positive: np.ndarray, scores: np.ndarray) -> float:
    """Average precision of a ranked list, without interpolation.

    AP = sum over thresholds n, from high to low, of (R_n - R_{n-1}) P_n. The thresholds are the
    distinct scores: equal scores enter together and their order does not matter. This is the
    definition of scikit-learn's ``average_precision_score``.

    Args:
        is_positive: (N,) bool, whether each entry of the list is right.
        scores: (N,), higher is earlier in the list.

    Returns:
        AP in 0..1; 0 where nothing is positive.
    """
    is_positive = np.asarray(is_positive, dtype=bool)
    scores = np.asarray(scores)
    if not is_positive.any():
        return 0.0
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last_of_threshold = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    true_positives = np.cumsum(is_positive[order])[last_of_threshold]
    precision = true_positives / (last_of_threshold + 1)
    new_positives = np.diff(true_positives, prepend=0)
    return float((new_positives * precision).sum() / true_positives[-1])


def _take_in_turn(
    gt: np.ndarray, turn: np.ndarray, iou: np.ndarray, image_of_turn: np.ndarray, num_gt: int
) -> np.ndarray:
    """Match one to one, greedily, pairs of annotated box and detection, given by its turn.

    One round handles the next detection of every image at once: images do not share boxes, so that
    detections of one round do not compete.
    """
    found = np.zeros(len(image_of_turn), dtype=bool)
    taken = np.zeros(num_gt, dtype=bool)
    best_first = np.lexsort((gt, -iou, turn))
    gt, turn = gt[best_first], turn[best_first]
    # Only detections that overlap something need a round.
    candidates, candidate = np.unique(turn, return_inverse=True)
    images = image_of_turn[candidates]
    rounds = np.arange(len(candidates)) - np.searchsorted(images, images, side="left")
    round_of_pair = rounds[candidate]
    by_round = np.argsort(round_of_pair, kind="stable")
    for pairs in np.split(by_round, np.flatnonzero(np.diff(round_of_pair[by_round])) + 1):
        free = pairs[~taken[gt[pairs]]]
        winners, first = np.unique(turn[free], return_index=True)
        found[winners] = True
        taken[gt[free[first]]] = True
    return found
