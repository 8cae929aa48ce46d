"""Writer of PRW's own format."""

import os
from collections import Counter
from pathlib import Path
from typing import Optional

import numpy as np
from tqdm import tqdm

from kd_search.data.person_search.coco_json import camera_and_frame
from kd_search.data.person_search.prw_mat import BOX_KEYS
from kd_search.data.person_search.split import LoadedSplit
from kd_search.data.records import Record, non_crowd
from kd_search.data.writers.common import (
    ImageFolder,
    cell_array,
    gallery_note,
    person_numbers,
    refuse_outside_gallery,
    subset_note,
    write_id_file,
    write_mat,
    write_queries,
    xywh,
)

#: Id of a person of unknown identity in the release.
_UNKNOWN = -2


def write_prw(
    folder: Path,
    train: Optional[LoadedSplit],
    test: Optional[LoadedSplit],
    *,
    images: Optional[ImageFolder] = None,
) -> list[str]:
    """Write ``frame_<split>.mat``, ``annotations/``, ``frames/`` and ``query_info.txt``.

    Frames are named ``c<camera>s1_<frame>`` unless their name has camera and frame in this form; a
    frame of unknown camera keeps its name. Crowd boxes are left out.

    Returns:
        Notes on what the format cannot represent.

    Raises:
        ValueError: an image is no JPEG file, or outside of the gallery, or two get the same name.
    """
    images = images or ImageFolder()
    numbers = person_numbers(train, test)
    notes: list[str] = []
    taken: Counter = Counter()
    crowds = 0
    for part, split, ids in zip(("train", "test"), (train, test), numbers):
        if split is None:
            continue
        refuse_outside_gallery(split, "PRW")
        frames = [_frame_name(record, split) for record in split.dicts]
        taken.update(frames)
        name, count = taken.most_common(1)[0] if taken else ("", 0)
        if count > 1:
            raise ValueError(f"{split.name}: {count} images would be named {name}.jpg")
        for record, frame in zip(tqdm(split.dicts, desc=f"{part} frames", disable=None), frames):
            images.put(record["file_name"], folder / "frames" / f"{frame}.jpg")
            people = non_crowd(record)
            crowds += len(record["annotations"]) - len(people)
            rows = [
                [ids[a["person_id"]] if a["person_id"] >= 0 else _UNKNOWN, *xywh(a["bbox"])]
                for a in people
            ]
            path = folder / "annotations" / f"{frame}.jpg.mat"
            write_mat(path, BOX_KEYS[0], np.array(rows, dtype=np.float64).reshape(-1, 5))
        write_mat(folder / f"frame_{part}.mat", f"img_index_{part}", cell_array(frames))
        if part == "test" and split.queries:
            write_queries(folder / "query_info.txt", split, ids.__getitem__, frames)
    if crowds:
        notes.append(f"{crowds} crowd boxes are left out: PRW has none")
    if test is not None:
        notes += gallery_note(test, "PRW") + subset_note(test)
    return notes + write_id_file(folder, train, test, numbers)


def _frame_name(record: Record, split: LoadedSplit) -> str:
    stem, end = os.path.splitext(os.path.basename(record["file_name"]))
    if end.lower() not in (".jpg", ".jpeg"):
        raise ValueError(
            f"{split.name}: {record['file_name']} is no JPEG file, the only format of PRW"
        )
    camera, frame = record.get("camera_id", -1), record.get("frame_id", -1)
    if camera_and_frame(stem) == (camera, frame):
        return stem
    if camera < 0 or frame < 0:
        if camera_and_frame(stem) != (-1, -1):
            raise ValueError(
                f"{split.name}: {record['file_name']} has no known camera, but one in its name"
            )
        return stem
    return f"c{camera}s1_{frame:06d}"
