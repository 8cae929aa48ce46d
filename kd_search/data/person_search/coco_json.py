"""COCO-JSON with a ``person_id`` on its annotations."""

import logging
import math
import os
import re
from collections.abc import Iterable
from typing import Annotated, Any, Optional

from pydantic import AfterValidator, Field

from kd_search.data.io.files import first_repeat
from kd_search.data.person_search.id_map import IDMap, OriginalID, is_labelled
from kd_search.data.records import Record, clip_box, has_area, person_annotation, xyxy
from kd_search.utils.files import read_json
from kd_search.utils.schema import (
    FourNumbers,
    Identifier,
    Integer,
    Schema,
    Size,
    check_schema,
    shown,
)

logger = logging.getLogger(__name__)

#: PRW and Market-1501 name their frames after camera, sequence and frame: c6s1_000451.jpg
_CAMERA_NAME = re.compile(r"c(\d+)s\d+_(\d+)")


def _flag(value: Any) -> Any:
    if value not in (None, 0, 1):
        raise ValueError("is neither 0 nor 1")
    return value


def _person_id(value: Any) -> Optional[OriginalID]:
    # Spreadsheets and data frames write integers as 3.0 and missing values as NaN.
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if value.is_integer():
            return int(value)
    if value is None or isinstance(value, str) or type(value) is int:
        return value
    raise ValueError("is neither an integer nor a string")


class _Image(Schema):
    id: Identifier
    file_name: Annotated[str, Field(min_length=1)]
    width: Size
    height: Size
    camera_id: Optional[Integer] = None
    frame_id: Optional[Integer] = None
    in_gallery: Annotated[Any, AfterValidator(_flag)] = True


class _Annotation(Schema):
    image_id: Identifier
    bbox: FourNumbers
    iscrowd: Annotated[Any, AfterValidator(_flag)] = 0
    person_id: Annotated[Any, AfterValidator(_person_id)] = None


class _Category(Schema):
    id: Any
    name: Any


class _CocoFile(Schema):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: Optional[list[_Category]] = None


def load_coco_json(
    json_file: str, image_root: str, id_map: Optional[IDMap] = None, *, clip: bool = True
) -> list[Record]:
    """Read a COCO-JSON file into Detectron2 dataset dicts.

    Args:
        json_file: file with ``images`` (``id``, ``file_name``, ``width``, ``height``; optional
            ``camera_id``, ``frame_id``, ``in_gallery``), ``annotations`` (``image_id``, ``bbox``
            as XYWH in absolute pixels; optional ``person_id``, ``category_id``, ``iscrowd``) and,
            optionally, ``categories``. A ``person_id`` that is missing, null or negative means
            unlabelled. With several categories only the one named "person" is read.
        image_root: folder that the file names are relative to.
        id_map: rows of the original ids; other ids become unlabelled. ``None`` builds the map of
            exactly the ids of this file, see :func:`person_ids_of`.
        clip: clip boxes to their image (those of PRW stick out) and drop those without area.
            ``False`` keeps the boxes of the file, for checking them.

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
) -> list[Record]:
    """Dataset dicts of a file that :func:`read_coco_json` has read; see :func:`load_coco_json`."""
    dicts = [_image_dict(image, image_root) for image in content["images"]]
    by_image = {record["image_id"]: record for record in dicts}
    dropped = 0
    for annotation in content["annotations"]:
        record = by_image[annotation["image_id"]]
        box = xyxy(annotation["bbox"])
        if clip:
            box = clip_box(box, record["width"], record["height"])
            if not has_area(box):
                dropped += 1
                continue
        row, iscrowd = id_map.row(annotation["person_id"]), int(annotation.get("iscrowd") or 0)
        record["annotations"].append(person_annotation(box, row, iscrowd))
    if dropped:
        logger.warning("%s: left out %d boxes that lie outside of their image", json_file, dropped)
    return dicts


def read_coco_json(json_file: str, id_key: str = "person_id") -> dict[str, Any]:
    """Parse the file and check its structure, entry by entry.

    Args:
        json_file: as :func:`load_coco_json`.
        id_key: key of the annotations to read as ``person_id``, such as ``track_id``. Tracks are
            numbered within their video: where the images have a ``video_id``, an identity is
            "<video>/<id>".

    Returns:
        The content of the file, with annotations of other categories than "person" left out and
        each ``person_id`` an int, a str or ``None``.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_coco_json`.
    """
    content = read_json(json_file, "annotation file")
    if id_key != "person_id":
        _use_ids_of(content, id_key, json_file)
    checked = check_schema(content, _CocoFile, json_file)
    for key in ("id", "file_name"):
        values = [getattr(image, key) for image in checked.images]
        repeat = first_repeat(values)
        if repeat:
            raise ValueError(
                f"{json_file}: images[{repeat[0]}]: {key} {values[repeat[0]]!r} is already that of "
                f"images[{repeat[1]}]"
            )
    ids = {image.id for image in checked.images}
    wanted = _person_category(checked.categories, json_file)
    annotations = []
    for index, (annotation, known) in enumerate(zip(content["annotations"], checked.annotations)):
        where = f"{json_file}: annotations[{index}]"
        if known.image_id not in ids:
            raise ValueError(
                f"{where}: image_id {known.image_id!r} is the id of no image in this file"
            )
        if wanted is not None and "category_id" not in annotation:
            raise ValueError(f"{where}.category_id is missing")
        if wanted is None or annotation["category_id"] == wanted:
            annotations.append({**annotation, "person_id": known.person_id})
    return {**content, "annotations": annotations}


def _use_ids_of(content: Any, key: str, json_file: str) -> None:
    """Give the annotations of a parsed file the values of another key as ``person_id``."""
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(annotations, list) or not isinstance(content.get("images"), list):
        return  # the schema says what is wrong
    found = [a for a in annotations if isinstance(a, dict) and a.get(key) is not None]
    if not found:
        raise ValueError(f"{json_file}: no annotation has a {key}")
    videos = {
        image.get("id"): image.get("video_id")
        for image in content["images"]
        if isinstance(image, dict) and isinstance(image.get("id"), (int, str))
    }
    for annotation in found:
        image_id = annotation.get("image_id")
        video = videos.get(image_id) if isinstance(image_id, (int, str)) else None
        number = annotation[key]
        annotation["person_id"] = number if video is None else f"{video}/{number}"


def ids_of_tracks(content: dict[str, Any]) -> int:
    """Number of annotations with a ``track_id``, of a file that has no ``person_id`` at all."""
    annotations = content["annotations"]
    if any(annotation["person_id"] is not None for annotation in annotations):
        return 0
    return sum(annotation.get("track_id") is not None for annotation in annotations)


def person_ids_of(content: dict[str, Any]) -> list[OriginalID]:
    """Original ids of the labelled people of a parsed file, with repeats."""
    ids = (annotation["person_id"] for annotation in content["annotations"])
    return [original for original in ids if is_labelled(original)]


def build_id_map(person_ids: Iterable[Optional[OriginalID]], where: str) -> IDMap:
    """Id map of a split.

    Raises:
        ValueError: the ids are invalid; the message names ``where``, the file.
    """
    try:
        return IDMap(person_ids)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def camera_and_frame(file_name: str) -> tuple[int, int]:
    """Camera and frame number in a name like ``c6s1_000451.jpg``; (-1, -1) for other names."""
    match = _CAMERA_NAME.match(os.path.basename(file_name))
    return (int(match[1]), int(match[2])) if match else (-1, -1)


def _person_category(categories: Optional[list[_Category]], json_file: str) -> Optional[Any]:
    """Id of the category to read; ``None`` reads every annotation."""
    if not categories or len(categories) == 1:
        return None
    for category in categories:
        if str(category.name).lower() == "person":
            return category.id
    names = ", ".join(shown(category.name) for category in categories)
    raise ValueError(f"{json_file}: none of the categories ({names}) is named 'person'")


def _image_dict(image: dict[str, Any], image_root: str) -> Record:
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
