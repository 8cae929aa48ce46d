"""Distances between two detectors, on regions and detections of single images."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.nn import functional as F

#: Smallest IoU of a region with its object, as in the training of region heads.
_OBJECT_IOU = 0.5


@dataclass
class Objects:
    """Objects of one image, in pixels of the network's input: (G, 4) boxes, (G,) classes."""

    boxes: Boxes
    classes: torch.Tensor


def class_of_regions(regions: Boxes, objects: Objects) -> torch.Tensor:
    """(R,) class of the object that each region overlaps most, -1 below an IoU of 0.5."""
    if not len(objects.boxes):
        return torch.full((len(regions),), -1)
    overlap, index = pairwise_iou(regions, objects.boxes).max(dim=1)
    return torch.where(overlap >= _OBJECT_IOU, objects.classes[index], -1)


def kl_divergence(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """(R,) KL(teacher || student) in nats, from (R, K + 1) logits."""
    p = F.log_softmax(teacher.double(), dim=1)
    q = F.log_softmax(student.double(), dim=1)
    return (p.exp() * (p - q)).sum(dim=1)


def delta_distance(
    teacher: torch.Tensor, student: torch.Tensor, classes: torch.Tensor
) -> torch.Tensor:
    """(F,) length of the difference of (F, 4 K) deltas, for the class (F,) of each region."""
    rows = torch.arange(len(classes))
    difference = (teacher.double() - student.double()).unflatten(1, (-1, 4))
    return difference[rows, classes].norm(dim=1)


def ap_against(
    truth: Sequence[Instances], found: Sequence[Instances], num_classes: int
) -> dict[str, Optional[float]]:
    """COCO's AP (percent) of detections with other detections as ground truth.

    Args:
        truth: per image ``pred_boxes`` and ``pred_classes`` that serve as ground truth.
        found: per image the evaluated detections, with ``scores``.
        num_classes: K.

    Returns:
        ``AP`` and ``AP50``; ``None`` where there is no truth.
    """
    annotations = [entry for i, x in enumerate(truth) for entry in _entries(x, i)]
    if not annotations:
        return {"AP": None, "AP50": None}
    for number, entry in enumerate(annotations, start=1):
        entry.update(id=number, area=entry["bbox"][2] * entry["bbox"][3], iscrowd=0)
    api = COCO()
    api.dataset = {
        "info": {},
        "images": [{"id": i} for i in range(len(truth))],
        "categories": [{"id": k} for k in range(num_classes)],
        "annotations": annotations,
    }
    detections = [entry for i, x in enumerate(found) for entry in _entries(x, i)]
    if not detections:
        return {"AP": 0.0, "AP50": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):
        api.createIndex()
        evaluation = COCOeval(api, api.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"AP": 100 * float(evaluation.stats[0]), "AP50": 100 * float(evaluation.stats[1])}


def _entries(instances: Instances, image_id: int) -> list[dict]:
    boxes = instances.pred_boxes.tensor.double()
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()
    return [
        {"image_id": image_id, "bbox": box, "category_id": int(k), "score": float(score)}
        for box, k, score in zip(boxes, instances.pred_classes, instances.scores)
    ]
