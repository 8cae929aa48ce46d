"""What the loaders of detection sets share: text files, image sizes and boxes."""

import os
from typing import Any, Optional

from detectron2.structures import BoxMode

from kd_search.data.io.image import ImageError
from kd_search.data.io.image_size import read_image_size
from kd_search.data.person_search.coco_json import clip_box


def read_lines(path: str, what: str) -> list[tuple[int, str]]:
    """Lines of a text file that are not blank, stripped, with their numbers from 1.

    Args:
        path: text file in UTF-8.
        what: what the file is, for messages.

    Raises:
        FileNotFoundError, ValueError: it is missing, or no text.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            lines = stream.read().splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such {what}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error})") from None
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def image_size(path: str, strict: bool = True) -> tuple[int, int]:
    """Width and height of an image, from its header.

    Args:
        path: image file.
        strict: ``False`` gives (0, 0) where there is no image.

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
    file_name: str, image_id: Any, size: tuple[int, int], boxes: list[dict[str, Any]], strict: bool
) -> dict[str, Any]:
    """Dataset dict of an image.

    Args:
        file_name: path of the image.
        image_id: unique in the set.
        size: width and height in pixels.
        boxes: dicts with ``bbox`` (XYXY, absolute pixels), ``category_id`` and ``iscrowd``.
        strict: clip the boxes, and leave out those of which nothing is left.
    """
    width, height = size
    annotations = []
    for box in boxes:
        bbox = [float(value) for value in box["bbox"]]
        if strict:
            bbox = clip_box(bbox, width, height)
            if bbox[2] <= bbox[0] or bbox[3] <= bbox[1]:
                continue
        annotations.append({**box, "bbox": bbox, "bbox_mode": BoxMode.XYXY_ABS})
    return {
        "file_name": file_name,
        "image_id": image_id,
        "width": width,
        "height": height,
        "annotations": annotations,
    }


def require_folder(name: str, folder: str, hint: str) -> None:
    """
    Raises:
        FileNotFoundError: one line that names the data set, the folder and what to set.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{name}: {folder} is missing; {hint} (see docs/datasets.md)")


def under_datasets(root: Optional[str], folder: str) -> str:
    """``root``, or else ``$DETECTRON2_DATASETS/<folder>``, ``datasets/<folder>`` if unset."""
    datasets = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    return root or os.path.join(datasets, folder)


def first_repeat(names: list[tuple[int, str]]) -> Optional[tuple[int, str]]:
    """Line number and text of the first entry that was there before."""
    seen = set()
    for number, name in names:
        if name in seen:
            return number, name
        seen.add(name)
    return None
