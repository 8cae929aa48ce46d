"""Writer of MOTChallenge folders."""

import os
from collections import defaultdict
from pathlib import Path
from typing import Optional

from tqdm import tqdm

from kd_search.data.person_search.split import LoadedSplit
from kd_search.data.records import Record, is_crowd
from kd_search.data.writers.common import (
    ImageFolder,
    gallery_note,
    person_numbers,
    refuse_outside_gallery,
    subset_note,
    write_id_file,
    write_queries,
    xywh,
)
from kd_search.utils.files import atomic_write


def write_mot(
    folder: Path,
    train: Optional[LoadedSplit],
    test: Optional[LoadedSplit],
    *,
    images: Optional[ImageFolder] = None,
) -> list[str]:
    """Write ``<split>/<sequence>/{img1,gt/gt.txt,seqinfo.ini}`` and ``test/query_info.txt``.

    Every camera is a sequence. A section [kd_search] of ``seqinfo.ini`` has the number of the
    camera, and a flag that all sequences have one numbering of people. An unlabelled person has
    the id -1, a crowd box the flag 0; every visibility is 1.

    Returns:
        Notes on what the format cannot represent.

    Raises:
        ValueError: an image is outside of the gallery.
    """
    images = images or ImageFolder()
    numbers = person_numbers(train, test)
    notes = []
    for part, split, ids in zip(("train", "test"), (train, test), numbers):
        if split is None:
            continue
        refuse_outside_gallery(split, "MOTChallenge")
        frames = [""] * len(split.dicts)
        cameras: dict[int, list[int]] = defaultdict(list)
        for i, record in enumerate(split.dicts):
            cameras[record.get("camera_id", -1)].append(i)
        with tqdm(total=len(split.dicts), desc=f"{part} frames", disable=None) as bar:
            for camera in sorted(cameras):
                records = [split.dicts[i] for i in cameras[camera]]
                name = f"CAM-{camera:02d}" if camera >= 0 else "CAM-none"
                kept, files = _write_sequence(folder / part / name, camera, records, ids, images)
                if not kept:
                    notes.append(f"{split.name}: frames of camera {camera} have new numbers")
                for i, file in zip(cameras[camera], files):
                    frames[i] = f"{name}/img1/{file}"
                bar.update(len(records))
        if part == "test" and split.queries:
            path = folder / part / "query_info.txt"
            write_queries(path, split, ids.__getitem__, frames)
    if test is not None:
        notes += gallery_note(test, "MOTChallenge") + subset_note(test)
    return notes + write_id_file(folder, train, test, numbers)


def _write_sequence(
    folder: Path, camera: int, records: list[Record], ids: list[int], images: ImageFolder
) -> tuple[bool, list[str]]:
    """Write one sequence; return whether frame numbers were kept, and the names of the frames."""
    numbers = [record.get("frame_id", -1) for record in records]
    kept = min(numbers) >= 1 and len(set(numbers)) == len(numbers)
    if not kept:
        numbers = list(range(1, len(records) + 1))
    lines, files = [], []
    for number, record in zip(numbers, records):
        files.append(f"{number:06d}{os.path.splitext(record['file_name'])[1].lower()}")
        images.put(record["file_name"], folder / "img1" / files[-1])
        for annotation in record["annotations"]:
            x, y, w, h = xywh(annotation["bbox"])
            person = annotation["person_id"]
            flag = 0 if is_crowd(annotation) else 1
            values = [number, ids[person] if person >= 0 else -1, x + 1, y + 1, w, h, flag, 1, 1]
            lines.append((number, ",".join(map(repr, values))))
    lines.sort(key=lambda line: line[0])
    _write_text(folder / "gt" / "gt.txt", [line for _, line in lines])
    info = ["[Sequence]", f"name={folder.name}", "imDir=img1", f"seqLength={max(numbers)}"]
    sizes = {(record["width"], record["height"]) for record in records}
    if len(sizes) == 1:
        width, height = sizes.pop()
        info += [f"imWidth={width}", f"imHeight={height}"]
    info += [f"imExt={os.path.splitext(files[0])[1]}", ""]
    info += ["[kd_search]", f"camera_id={camera}", "shared_ids=yes"]
    _write_text(folder / "seqinfo.ini", info)
    return kept, files


def _write_text(path: Path, lines: list[str]) -> None:
    with atomic_write(path) as stream:
        stream.write("".join(line + "\n" for line in lines).encode())
