"""Candidate boxes of prototypes.

Tang et al., "Distilling Object Detectors With Global Knowledge", ECCV 2022, arXiv 2210.09022. As in
the released code, these are the large boxes of a class in a limited number of images of that class,
chosen once for the training: annotated boxes and, optionally, confident detections of the teacher.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
from torchvision.ops import batched_nms, box_iou

from kd_search.data.person_search.mapper import absolute_boxes
from kd_search.distillation.teacher import FrozenTeacher

#: Boxes of a class that overlap by more than this IoU are one object.
SAME_OBJECT = 0.5

#: Makes the choice of images independent of other random numbers of the seed.
_STREAM = 20


class CandidateBoxes(NamedTuple):
    """n boxes of one image."""

    #: (n,) int64. Annotated boxes come first, in the order of the annotations without crowds.
    numbers: torch.Tensor
    #: (n, 4) float32 XYXY, pixels of the original image.
    boxes: torch.Tensor
    #: (n,) int64, the student's classes.
    classes: torch.Tensor
    #: (n,) int64, -1 where unlabelled.
    person_ids: torch.Tensor

    def where(self, chosen: torch.Tensor) -> "CandidateBoxes":
        """The boxes of a mask or of indices."""
        return CandidateBoxes(*(column[chosen] for column in self))


class CandidateImage(NamedTuple):
    """A chosen image."""

    #: All annotated boxes without crowds, of any size.
    annotated: CandidateBoxes
    #: (c,) int64, the classes that the image was chosen for.
    classes: torch.Tensor


def annotated_boxes(record: Mapping[str, Any]) -> CandidateBoxes:
    """The boxes of a dataset dict without crowds, clipped at the border if its size is known."""
    entries = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
    boxes = torch.as_tensor(absolute_boxes(entries), dtype=torch.float32)
    if "width" in record and "height" in record:
        boxes = _cut(boxes, record["width"], record["height"])
    classes = torch.tensor([a["category_id"] for a in entries], dtype=torch.int64)
    ids = torch.tensor([a.get("person_id", -1) for a in entries], dtype=torch.int64)
    return CandidateBoxes(torch.arange(len(boxes)), boxes, classes, ids)


def choose_images(
    records: Sequence[Mapping[str, Any]], *, images_per_class: int, min_size: float, seed: int
) -> dict[int, CandidateImage]:
    """Choose images with large boxes for every class.

    Args:
        records: dataset dicts with ``annotations``.
        images_per_class: at most; drawn from the seed if there are more.
        min_size: width and height of a large box exceed it, pixels of the original image.
        seed: not negative; the same on all ranks and in a resumed training.

    Returns:
        position to image, in the order of the positions. Only boxes of the classes that an image
        was chosen for are candidates.
    """
    containing: dict[int, list[int]] = {}
    for position, record in enumerate(records):
        found = annotated_boxes(record)
        for name in sorted(set(found.classes[_is_large(found.boxes, min_size)].tolist())):
            containing.setdefault(name, []).append(position)
    chosen_for: dict[int, list[int]] = {}
    for name, positions in sorted(containing.items()):
        if len(positions) > images_per_class:
            generator = np.random.Generator(np.random.PCG64([seed, _STREAM, name]))
            positions = generator.permutation(positions)[:images_per_class].tolist()
        for position in positions:
            chosen_for.setdefault(position, []).append(name)
    return {
        position: CandidateImage(annotated_boxes(records[position]), torch.tensor(classes))
        for position, classes in sorted(chosen_for.items())
    }


def candidates_of(
    image: CandidateImage,
    width: int,
    height: int,
    *,
    min_size: float,
    confident: Optional[CandidateBoxes] = None,
) -> CandidateBoxes:
    """The candidate boxes of one image.

    Args:
        image: of :func:`choose_images`.
        width, height: of the original image.
        min_size: see :func:`choose_images`.
        confident: of :func:`confident_boxes`; those without an annotation are added.
    """
    found = image.annotated
    if confident is not None:
        overlaps = box_iou(confident.boxes, found.boxes) > SAME_OBJECT
        annotated = (overlaps & (confident.classes[:, None] == found.classes)).any(dim=1)
        missing = confident.where(~annotated)
        missing = missing._replace(numbers=missing.numbers + len(found.numbers))
        found = CandidateBoxes(*(torch.cat(pair) for pair in zip(found, missing)))
    found = found._replace(boxes=_cut(found.boxes, width, height))
    wanted = torch.isin(found.classes, image.classes) & _is_large(found.boxes, min_size)
    return found.where(wanted)


@torch.no_grad()
def confident_boxes(
    teacher: FrozenTeacher, inputs: list[dict[str, Any]], min_score: float
) -> CandidateBoxes:
    """Detections of a teacher with a high score, in the student's classes.

    Without classes that the student does not have, and after NMS at IoU 0.5: several classes of the
    teacher may map to one of the student.

    Args:
        teacher: a detector.
        inputs: one image, with ``image``, ``height`` and ``width``, in the student's channel order.
        min_score: the score of a box exceeds it.
    """
    instances = teacher.model(teacher.inputs(inputs))[0]["instances"].to("cpu")
    boxes, scores = instances.pred_boxes.tensor, instances.scores
    classes = instances.pred_classes
    if teacher.aligner is not None:
        classes = teacher.aligner.classes.student_classes(classes)
    sure = (scores > min_score) & (classes >= 0)
    boxes, scores, classes = boxes[sure], scores[sure], classes[sure]
    keep = batched_nms(boxes, scores, classes, SAME_OBJECT)
    boxes, classes = boxes[keep].float(), classes[keep]
    unlabelled = torch.full_like(classes, -1)
    return CandidateBoxes(torch.arange(len(boxes)), boxes, classes, unlabelled)


def _is_large(boxes: torch.Tensor, min_size: float) -> torch.Tensor:
    return (boxes[:, 2:] - boxes[:, :2] > min_size).all(dim=1)


def _cut(boxes: torch.Tensor, width: float, height: float) -> torch.Tensor:
    limits = boxes.new_tensor([width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), limits)
