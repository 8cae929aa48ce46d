"""Detection average precision and recall, as person search reports them."""

from dataclasses import dataclass

import numpy as np

from kd_search.evaluation.average_precision import average_precision
from kd_search.evaluation.flat_arrays import (
    Detections,
    GroundTruth,
)
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
    """Match detections to annotated people and rate them (OIM protocol, Xiao et al., CVPR 2017).

    In each image, in descending score (equal scores in the given order), a detection takes the
    free annotated box with which it overlaps most, if their IoU is at least ``iou_thresh``; each
    box is taken once. recall = taken / annotated. AP = average precision over all detections of
    all images x recall. All annotated people count, labelled or not.

    Args:
        detections: those below ``score_thresh`` take no part. The protocol has 0.5, SeqNet 0.01.
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
    # Detections in the order of their turn: image by image, best score first.
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


def _take_in_turn(
    gt: np.ndarray, turn: np.ndarray, iou: np.ndarray, image_of_turn: np.ndarray, num_gt: int
) -> np.ndarray:
    """Greedy one-to-one matching; a detection is known by its turn, the image of which is given.

    One round handles the next detection of every image at once: images do not share boxes, so
    that within a round nobody takes what another wants.
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
