"""Annotations of a test set, from dataset dicts to the flat arrays of the metrics."""

from dataclasses import dataclass

import numpy as np

from kd_search.evaluation.flat_arrays import GroundTruth
from kd_search.evaluation.search.predictions import ImageId

# Values of detectron2.structures.BoxMode, which this room's mathematics does not import.
_XYXY_ABS, _XYWH_ABS = 0, 1


@dataclass
class Annotations:
    """Ground truth and queries of a test set; images are numbered as the dataset dicts are."""

    image_ids: list[ImageId]
    in_gallery: np.ndarray  # (G,) bool; an image outside the gallery only holds queries
    ground_truth: GroundTruth  # of the gallery images, crowd boxes left out
    query_ids: np.ndarray  # (Q,) int
    query_boxes: np.ndarray  # (Q, 4), absolute pixels, XYXY
    query_person_ids: np.ndarray  # (Q,) int
    query_image_index: np.ndarray  # (Q,) int
    image_cameras: np.ndarray  # (G,) int, -1 where unknown


def flatten_annotations(dataset_dicts: list[dict]) -> Annotations:
    """Gather the annotations of Detectron2 dataset dicts with ``person_id`` and ``queries``.

    Raises:
        ValueError: an image id or a query id is there twice, or a box is in another mode than
            XYXY_ABS or XYWH_ABS. The line names the image.
    """
    image_ids = [image["image_id"] for image in dataset_dicts]
    _refuse_repeats("image_id", image_ids)
    boxes, persons, images = [], [], []
    queries, query_images = [], []
    for index, image in enumerate(dataset_dicts):
        for query in image.get("queries", ()):
            queries.append(query)
            query_images.append(index)
        if not image.get("in_gallery", True):
            continue
        for annotation in image.get("annotations", ()):
            if annotation.get("iscrowd", 0):
                continue
            boxes.append(_xyxy(annotation, image["image_id"]))
            persons.append(annotation.get("person_id", -1))
            images.append(index)
    _refuse_repeats("query_id", [query["query_id"] for query in queries])
    return Annotations(
        image_ids=image_ids,
        in_gallery=np.array([image.get("in_gallery", True) for image in dataset_dicts], bool),
        ground_truth=GroundTruth(
            boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
            person_ids=np.array(persons, dtype=np.int64),
            image_index=np.array(images, dtype=np.int64),
        ),
        query_ids=np.array([query["query_id"] for query in queries], dtype=np.int64),
        query_boxes=np.array([q["bbox"] for q in queries], dtype=np.float64).reshape(-1, 4),
        query_person_ids=np.array([query["person_id"] for query in queries], dtype=np.int64),
        query_image_index=np.array(query_images, dtype=np.int64),
        image_cameras=np.array([_camera(image) for image in dataset_dicts], dtype=np.int64),
    )


def _camera(image: dict) -> int:
    camera = image.get("camera_id")
    return -1 if camera is None else int(camera)


def _xyxy(annotation: dict, image_id: ImageId) -> list[float]:
    mode = annotation.get("bbox_mode", _XYXY_ABS)
    x, y, right, bottom = annotation["bbox"]
    if mode == _XYXY_ABS:
        return [x, y, right, bottom]
    if mode == _XYWH_ABS:
        return [x, y, x + right, y + bottom]
    raise ValueError(f"image {image_id!r}: bbox_mode {mode!r}; expected XYXY_ABS or XYWH_ABS")


def _refuse_repeats(name: str, ids: list) -> None:
    if len(set(ids)) != len(ids):
        seen = set()
        repeated = next(i for i in ids if i in seen or seen.add(i))
        raise ValueError(f"the dataset has {name} {repeated!r} more than once")
