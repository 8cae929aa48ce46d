"""Reads COCO-JSON whose annotations carry a ``person_id`` into Detectron2 dataset dicts."""

import json
import logging
import math
import os
import re
from collections.abc import Iterable
from typing import Any, Optional

from detectron2.structures import BoxMode

from kd_search.data.id_map import IDMap, OriginalID, is_labelled

logger = logging.getLogger(__name__)

#: PRW and Market-1501 name their frames after camera, sequence and frame: c6s1_000451.jpg
_CAMERA_NAME = re.compile(r"c(\d+)s\d+_(\d+)")


def load_coco_json(
    json_file: str, image_root: str, id_map: Optional[IDMap] = None, *, clip: bool = True
) -> list[dict[str, Any]]:
    """Read a COCO-JSON file with ``person_id`` on its annotations.

    Args:
        json_file: file with ``images`` (``id``, ``file_name``, ``width``, ``height``; optional
            ``camera_id``, ``frame_id``, ``in_gallery``), ``annotations`` (``image_id``, ``bbox``
            as XYWH in absolute pixels; optional ``person_id``, ``category_id``, ``iscrowd``) and,
            optionally, ``categories``. A ``person_id`` that is missing, null or negative means
            unlabelled. With several categories only the one named "person" is read.
        image_root: folder that the file names are relative to.
        id_map: rows of the original ids; ids it does not know become unlabelled. ``None`` builds
            the map of exactly the ids of this file, see :func:`person_ids_of`.
        clip: clip boxes to their image (those of PRW stick out) and drop the ones of which
            nothing is left. ``False`` keeps the file's boxes as they are, for checking them.

    Returns:
        One dict per image in the order of the file: ``file_name``, ``image_id``, ``height``,
        ``width``, ``camera_id`` and ``frame_id`` (-1 where unknown), ``in_gallery`` and
        ``annotations`` with ``bbox`` (XYXY, absolute pixels), ``category_id`` 0, ``iscrowd`` and
        ``person_id`` (row of the id map, or -1).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another structure; the message names the file and the entry.
    """
    content = read_coco_json(json_file)
    if id_map is None:
        id_map = build_id_map(person_ids_of(content), json_file)
    return dataset_dicts(content, json_file, image_root, id_map, clip=clip)


def dataset_dicts(
    content: dict[str, Any], json_file: str, image_root: str, id_map: IDMap, *, clip: bool = True
) -> list[dict[str, Any]]:
    """Dataset dicts of a file that :func:`read_coco_json` has read; see :func:`load_coco_json`."""
    dicts = [_image_dict(image, image_root) for image in content["images"]]
    by_image = {record["image_id"]: record for record in dicts}
    dropped = 0
    for annotation in content["annotations"]:
        record = by_image[annotation["image_id"]]
        box = _xyxy(annotation["bbox"])
        if clip:
            box = clip_box(box, record["width"], record["height"])
            if box[2] <= box[0] or box[3] <= box[1]:
                dropped += 1
                continue
        record["annotations"].append(
            {
                "bbox": box,
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": 0,
                "iscrowd": int(annotation.get("iscrowd") or 0),
                "person_id": id_map.row(annotation["person_id"]),
            }
        )
    if dropped:
        logger.warning("%s: left out %d boxes that lie outside of their image", json_file, dropped)
    return dicts


def read_coco_json(json_file: str) -> dict[str, Any]:
    """Parse the file and check its structure, entry by entry.

    Returns:
        The content of the file, with annotations of other categories than "person" left out and
        each ``person_id`` an int, a str or ``None``.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_coco_json`.
    """
    content = _parse(json_file)
    names: dict[str, int] = {}
    ids: dict[Any, int] = {}
    for index, image in enumerate(content["images"]):
        where = f"{json_file}: images[{index}]"
        _check_image(image, where)
        _refuse_repeat(ids, image["id"], index, where, "id")
        _refuse_repeat(names, image["file_name"], index, where, "file_name")
    wanted = _person_category(content.get("categories"), json_file)
    annotations = []
    for index, annotation in enumerate(content["annotations"]):
        where = f"{json_file}: annotations[{index}]"
        _check_annotation(annotation, where, ids)
        if wanted is None or _category_of(annotation, where) == wanted:
            person_id = _person_id(annotation.get("person_id"), where)
            annotations.append({**annotation, "person_id": person_id})
    return {**content, "annotations": annotations}


def person_ids_of(content: dict[str, Any]) -> list[OriginalID]:
    """Original ids of the labelled people of a parsed file, with repeats."""
    ids = (annotation["person_id"] for annotation in content["annotations"])
    return [original for original in ids if is_labelled(original)]


def build_id_map(person_ids: Iterable[OriginalID], json_file: str) -> IDMap:
    """Id map of a split.

    Raises:
        ValueError: the ids do not fit together; the message names the file.
    """
    try:
        return IDMap(person_ids)
    except ValueError as error:
        raise ValueError(f"{json_file}: {error}") from None


def clip_box(box: list[float], width: int, height: int) -> list[float]:
    """Clip an XYXY box to an image of that size, all in absolute pixels."""
    x0, y0, x1, y1 = box
    return [
        min(max(x0, 0.0), float(width)),
        min(max(y0, 0.0), float(height)),
        min(max(x1, 0.0), float(width)),
        min(max(y1, 0.0), float(height)),
    ]


def camera_and_frame(file_name: str) -> tuple[int, int]:
    """Camera and frame number in a name like ``c6s1_000451.jpg``; (-1, -1) for other names."""
    match = _CAMERA_NAME.match(os.path.basename(file_name))
    return (int(match[1]), int(match[2])) if match else (-1, -1)


def _parse(json_file: str) -> dict[str, Any]:
    try:
        with open(json_file, encoding="utf-8") as stream:
            content = json.load(stream)
    except FileNotFoundError:
        raise FileNotFoundError(f"{json_file}: no such annotation file") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{json_file}: not a JSON file ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{json_file}: expected a JSON object with 'images' and 'annotations'")
    for key in ("images", "annotations"):
        if not isinstance(content.get(key), list):
            raise ValueError(f"{json_file}: expected a list named {key!r}")
    return content


def _check_image(image: Any, where: str) -> None:
    _require_keys(image, ("id", "file_name", "width", "height"), where)
    if isinstance(image["id"], bool) or not isinstance(image["id"], (int, str)):
        raise ValueError(f"{where}: id {image['id']!r} is neither an integer nor a string")
    if not isinstance(image["file_name"], str) or not image["file_name"]:
        raise ValueError(f"{where}: file_name {image['file_name']!r} is not a name")
    for key in ("width", "height"):
        if not _is_integer(image[key]) or image[key] < 1:
            raise ValueError(f"{where}: {key} {image[key]!r} is not a positive integer")
    for key in ("camera_id", "frame_id"):
        if image.get(key) is not None and not _is_integer(image[key]):
            raise ValueError(f"{where}: {key} {image[key]!r} is not an integer")


def _check_annotation(annotation: Any, where: str, image_ids: dict[Any, int]) -> None:
    _require_keys(annotation, ("image_id", "bbox"), where)
    image_id = annotation["image_id"]
    if not isinstance(image_id, (int, str)) or image_id not in image_ids:
        raise ValueError(f"{where}: image_id {image_id!r} is the id of no image in this file")
    bbox = annotation["bbox"]
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_finite(v) for v in bbox):
        raise ValueError(f"{where}: bbox {bbox!r} is not a list of four numbers x, y, w, h")
    if annotation.get("iscrowd") not in (None, 0, 1):
        raise ValueError(f"{where}: iscrowd {annotation['iscrowd']!r} is neither 0 nor 1")


def _require_keys(entry: Any, keys: tuple[str, ...], where: str) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected a JSON object, got {entry!r}")
    for key in keys:
        if key not in entry:
            raise ValueError(f"{where}: {key!r} is missing")


def _refuse_repeat(seen: dict[Any, int], value: Any, index: int, where: str, key: str) -> None:
    if seen.setdefault(value, index) != index:
        raise ValueError(f"{where}: {key} {value!r} is already that of images[{seen[value]}]")


def _person_category(categories: Any, json_file: str) -> Optional[Any]:
    """Id of the category to read; ``None`` reads every annotation."""
    if not categories:
        return None
    if not isinstance(categories, list):
        raise ValueError(f"{json_file}: expected a list named 'categories'")
    for index, category in enumerate(categories):
        _require_keys(category, ("id", "name"), f"{json_file}: categories[{index}]")
    if len(categories) == 1:
        return None
    for category in categories:
        if str(category["name"]).lower() == "person":
            return category["id"]
    names = ", ".join(str(category["name"]) for category in categories)
    raise ValueError(f"{json_file}: none of the categories ({names}) is named 'person'")


def _category_of(annotation: dict[str, Any], where: str) -> Any:
    _require_keys(annotation, ("category_id",), where)
    return annotation["category_id"]


def _person_id(value: Any, where: str) -> Optional[OriginalID]:
    # Spreadsheets and data frames write whole numbers as 3.0 and a missing one as NaN.
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if value.is_integer():
            return int(value)
    if value is None or isinstance(value, str) or _is_integer(value):
        return value
    raise ValueError(f"{where}: person_id {value!r} is neither an integer nor a string")


def _image_dict(image: dict[str, Any], image_root: str) -> dict[str, Any]:
    name = image["file_name"].replace("\\", "/")
    camera_id, frame_id = camera_and_frame(name)
    given_camera, given_frame = image.get("camera_id"), image.get("frame_id")
    return {
        "file_name": os.path.join(image_root, name),
        "image_id": image["id"],
        "height": int(image["height"]),
        "width": int(image["width"]),
        "camera_id": camera_id if given_camera is None else int(given_camera),
        "frame_id": frame_id if given_frame is None else int(given_frame),
        "in_gallery": bool(image.get("in_gallery", True)),
        "annotations": [],
    }


def _xyxy(xywh: list[float]) -> list[float]:
    x, y, w, h = (float(value) for value in xywh)
    return [x, y, x + w, y + h]


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
