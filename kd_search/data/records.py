"""Boxes, annotations and images of Detectron2 dataset dicts."""

from collections.abc import Iterable
from typing import Any

from detectron2.structures import BoxMode

from kd_search.data.io.image import ImageError, read_image_size

Record = dict[str, Any]


def xyxy(xywh: Iterable[float]) -> list[float]:
    """Corners of a box given as x, y, width, height."""
    x, y, w, h = map(float, xywh)
    return [x, y, x + w, y + h]


def clip_box(box: Iterable[float], width: int, height: int) -> list[float]:
    """Clip an XYXY box to an image, all in absolute pixels."""
    limits = (width, height, width, height)
    return [min(max(value, 0.0), float(limit)) for value, limit in zip(box, limits)]


def has_area(box: list[float]) -> bool:
    """Whether an XYXY box has positive width and height."""
    return box[2] > box[0] and box[3] > box[1]


def person_annotation(box: list[float], row: int, iscrowd: int = 0) -> Record:
    """Annotation of a person: XYXY box in absolute pixels and row of the ID table (or -1)."""
    return {
        "bbox": box,
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 0,
        "iscrowd": iscrowd,
        "person_id": row,
    }


def is_crowd(annotation: Record) -> bool:
    """Whether an annotation marks an ignored region."""
    return bool(annotation.get("iscrowd", 0))


def non_crowd(record: Record) -> list[Record]:
    """Annotations of an image without ignored regions."""
    return [annotation for annotation in record["annotations"] if not is_crowd(annotation)]


def image_size(path: str, strict: bool = True) -> tuple[int, int]:
    """Width and height of an image, from its header.

    Args:
        path: image file.
        strict: ``False`` returns (0, 0) where there is no image.

    Raises:
        ImageError: the file is missing or no image; the message names it.
    """
    try:
        return read_image_size(path)
    except ImageError:
        if strict:
            raise
        return 0, 0


def make_record(
    file_name: str, image_id: Any, size: tuple[int, int], boxes: Iterable[Record], strict: bool
) -> Record:
    """Dataset dict of an image.

    Args:
        file_name: path of the image.
        image_id: unique in the set.
        size: width and height in pixels.
        boxes: dicts with ``bbox`` (XYXY, absolute pixels), ``category_id`` and ``iscrowd``.
        strict: clip the boxes, and leave out those without area.
    """
    width, height = size
    annotations = []
    for box in boxes:
        bbox = [float(value) for value in box["bbox"]]
        if strict:
            bbox = clip_box(bbox, width, height)
        if not strict or has_area(bbox):
            annotations.append({**box, "bbox": bbox, "bbox_mode": BoxMode.XYXY_ABS})
    return {
        "file_name": file_name,
        "image_id": image_id,
        "width": width,
        "height": height,
        "annotations": annotations,
    }
