"""Writer of COCO-JSON with ``person_id``."""

from pathlib import Path
from typing import Any, Optional

from tqdm import tqdm

from kd_search.data.person_search.split import LoadedSplit
from kd_search.data.records import is_crowd
from kd_search.data.writers.common import (
    ImageFolder,
    gallery_note,
    image_names,
    subset_note,
    write_queries,
    xywh,
)
from kd_search.utils.files import write_json


def write_coco_json(
    folder: Path,
    train: Optional[LoadedSplit],
    test: Optional[LoadedSplit],
    *,
    images: Optional[ImageFolder] = None,
) -> list[str]:
    """Write ``<split>.json``, ``<split>/images/`` and, for a test set, ``query_info.txt``.

    Original ids are kept as they are.

    Returns:
        Notes on what the format cannot represent.
    """
    images = images or ImageFolder()
    for part, split in (("train", train), ("test", test)):
        if split is None:
            continue
        names = image_names(split)
        for record, name in zip(tqdm(split.dicts, desc=f"{part} images", disable=None), names):
            images.put(record["file_name"], folder / part / "images" / name)
        write_json(folder / f"{part}.json", _content(split, names))
    if test is None:
        return []
    if test.queries:
        write_queries(folder / "query_info.txt", test, test.id_map.original, image_names(test))
    return gallery_note(test, "COCO-JSON") + subset_note(test)


def _content(split: LoadedSplit, names: list[str]) -> dict[str, Any]:
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "person"}],
    }
    for record, name in zip(split.dicts, names):
        content["images"].append(
            {
                "id": record["image_id"],
                "file_name": name,
                "width": record["width"],
                "height": record["height"],
                "camera_id": record.get("camera_id", -1),
                "frame_id": record.get("frame_id", -1),
                "in_gallery": record.get("in_gallery", True),
            }
        )
        for annotation in record["annotations"]:
            row = annotation["person_id"]
            bbox = xywh(annotation["bbox"])
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": record["image_id"],
                    "category_id": 1,
                    "bbox": bbox,
                    "area": bbox[2] * bbox[3],
                    "iscrowd": int(is_crowd(annotation)),
                    "person_id": split.id_map.original(row) if row >= 0 else None,
                }
            )
    return content
