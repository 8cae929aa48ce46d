"""Writes PRW's own files."""

import os
from collections import Counter
from pathlib import Path
from typing import Any, Optional

import numpy as np
from scipy.io import savemat
from tqdm import tqdm

from kd_search.data.person_search.coco_json import camera_and_frame
from kd_search.data.person_search.prw_mat import BOX_KEYS
from kd_search.data.writers.common import (
    ImageFolder,
    SplitContent,
    gallery_note,
    is_crowd,
    person_numbers,
    refuse_outside_gallery,
    subset_note,
    write_id_file,
    write_queries,
    xywh,
)
from kd_search.utils.files import atomic_write

#: What the release writes for a person whose identity is not known.
_UNKNOWN = -2


def write_prw(
    folder: Path,
    train: Optional[SplitContent],
    test: Optional[SplitContent],
    *,
    images: Optional[ImageFolder] = None,
) -> list[str]:
    """Write ``frame_<split>.mat``, ``annotations/``, ``frames/`` and ``query_info.txt``.

    Frames are called ``c<camera>s1_<frame>`` where their name does not already say camera and frame
    in this way; a frame of no known camera keeps its name. Crowd boxes are left out.

    Returns:
        Notes on what the format cannot keep.

    Raises:
        ValueError: an image is no JPEG file, or outside of the gallery, or two get the same name.
    """
    images = images or ImageFolder()
    numbers = person_numbers(train, test)
    notes, crowds, taken = [], 0, Counter()
    for part, split, ids in zip(("train", "test"), (train, test), numbers):
        if split is None:
            continue
        refuse_outside_gallery(split, "PRW's form")
        frames = [_frame_name(record, split) for record in split.dicts]
        taken.update(frames)
        name, count = taken.most_common(1)[0] if taken else ("", 0)
        if count > 1:
            raise ValueError(f"{split.name}: {count} images would be called {name}.jpg")
        for record, frame in zip(tqdm(split.dicts, desc=f"{part} frames", disable=None), frames):
            images.put(record["file_name"], folder / "frames" / f"{frame}.jpg")
            people = [a for a in record["annotations"] if not is_crowd(a)]
            crowds += len(record["annotations"]) - len(people)
            rows = [
                [ids[a["person_id"]] if a["person_id"] >= 0 else _UNKNOWN, *xywh(a["bbox"])]
                for a in people
            ]
            path = folder / "annotations" / f"{frame}.jpg.mat"
            _save(path, BOX_KEYS[0], np.array(rows, dtype=np.float64).reshape(-1, 5))
        _save(folder / f"frame_{part}.mat", f"img_index_{part}", _cells(frames))
        if part == "test" and split.queries:
            write_queries(folder / "query_info.txt", split, ids.__getitem__, frames)
    if crowds:
        notes.append(f"{crowds} crowd boxes are left out: PRW has none")
    if test is not None:
        notes += gallery_note(test, "PRW") + subset_note(test)
    return notes + write_id_file(folder, train, test, numbers)


def _frame_name(record: dict[str, Any], split: SplitContent) -> str:
    stem, end = os.path.splitext(os.path.basename(record["file_name"]))
    if end.lower() not in (".jpg", ".jpeg"):
        raise ValueError(f"{split.name}: {record['file_name']} is no JPEG file, as PRW has them")
    camera, frame = record.get("camera_id", -1), record.get("frame_id", -1)
    if camera_and_frame(stem) == (camera, frame):
        return stem
    if camera < 0 or frame < 0:
        if camera_and_frame(stem) != (-1, -1):
            raise ValueError(
                f"{split.name}: {record['file_name']} has no known camera, but its name says one"
            )
        return stem
    return f"c{camera}s1_{frame:06d}"


def _cells(texts: list[str]) -> np.ndarray:
    cells = np.empty((len(texts), 1), dtype=object)
    cells[:, 0] = texts
    return cells


def _save(path: Path, key: str, value: np.ndarray) -> None:
    with atomic_write(path) as stream:
        savemat(stream, {key: value}, do_compression=True)
