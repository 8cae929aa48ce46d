"""ATRW: Amur tigers, with a CSV list for training and JSON ground truth for the test."""

import csv
import os
from collections import defaultdict
from typing import Annotated, Any

from pydantic import Field, RootModel

from kd_search.data.io.files import image_names, read_lines, require_file
from kd_search.data.reid.samples import LoadedReID, Tracklet, load_tracklets, require_split
from kd_search.utils.files import read_json
from kd_search.utils.schema import Count, Integer, Schema, check_schema

#: Height and width of crops of animals (VKD, ECCV 2020).
ANIMAL_SIZE = (224, 224)
#: The benchmark's evaluation ("plain" track) treats images of a tiger in the same camera as one
#: image if their distance is at most this many frames.
JUNK_FRAMES = 3

_TRAIN_LISTS = ("atrw_anno_reid_train/reid_list_train.csv", "reid_list_train.csv")
_TRAIN_IMAGES = ("atrw_reid_train/train", "train")
_TEST_LISTS = ("gt_test_plain.json", "annotations/gt_test_plain.json")
_TEST_IMAGES = ("atrw_reid_test/test", "test")


def load_atrw(root: str, split: str, *, tracklets: bool = False, hint: str = "") -> LoadedReID:
    """One split of ATRW's re-ID in the plain setting.

    Training images have an identity (``reid_list_train.csv``, lines "identity,image"), but neither
    camera nor tracklet. The test is ``gt_test_plain.json`` of the benchmark's evaluation scripts,
    with video, camera and frame of each image. Every test image is a query among all the others.
    Matches in the same camera count if they are more than :data:`JUNK_FRAMES` frames away.

    Args:
        root: folder of ``atrw_reid_train``, ``atrw_anno_reid_train``, ``atrw_reid_test`` and
            ``gt_test_plain.json``, or of the same without the archives' folders.
        split: "train" or "test".
        tracklets: join the test images of a tiger in a video and camera.
        hint: what to do if a file is missing.

    Raises:
        FileNotFoundError, ValueError: a list is missing or cannot be read; the line names it.
    """
    require_split(split, root)
    metadata: dict[str, Any] = {"input_size": ANIMAL_SIZE, "reid_root": root}
    if split == "train":
        return load_tracklets(_train(root, hint), root, **metadata)
    metadata.update(junk_rule="frames", junk_frames=JUNK_FRAMES)
    return load_tracklets(_test(root, hint, tracklets), root, **metadata)


def _train(root: str, hint: str) -> list[Tracklet]:
    path = _first(root, _TRAIN_LISTS, hint)
    folder = _first_folder(root, _TRAIN_IMAGES)
    found = []
    for number, row in enumerate(csv.reader(line for _, line in read_lines(path)), 1):
        row = [part.strip() for part in row]
        if len(row) != 2 or not row[0].isdecimal():
            if number == 1 and len(row) == 2:
                continue  # a line of titles
            raise ValueError(f"{path}: line {number}: expected 'identity,image', got {row}")
        found.append(Tracklet((os.path.join(folder, row[1]),), int(row[0]), -1, "train"))
    return found


def _test(root: str, hint: str, tracklets: bool) -> list[Tracklet]:
    path = _first(root, _TEST_LISTS, hint)
    folder = _first_folder(root, _TEST_IMAGES)
    entries = read_json(path)
    check_schema(entries, _GroundTruth, path)
    entries.sort(key=lambda entry: entry["frame"] + [entry["imgid"]])
    stems = [os.path.splitext(n) for n in image_names(folder)] if os.path.isdir(folder) else []
    names = {int(stem): stem + suffix for stem, suffix in stems if stem.isdecimal()}
    cameras = sorted({tuple(entry["frame"][:2]) for entry in entries})
    groups: dict[Any, list[dict]] = defaultdict(list)
    for entry in entries:
        place = (entry["entityid"], *entry["frame"][:2])
        groups[place if tracklets else entry["imgid"]].append(entry)
    found = []
    for group in groups.values():
        first = group[0]
        video, camera, frame = first["frame"]
        found.append(
            Tracklet(
                tuple(
                    os.path.join(folder, names.get(entry["imgid"], f"{entry['imgid']:06d}.jpg"))
                    for entry in group
                ),
                first["entityid"] if first["entityid"] >= 0 else None,
                cameras.index((video, camera)),
                "both" if first["entityid"] >= 0 else "gallery",
                frame_id=frame,
                group=(first["entityid"], video, camera),
            )
        )
    return found


class _Entry(Schema):
    imgid: Count
    entityid: Integer
    #: video, camera, frame
    frame: Annotated[list[Integer], Field(min_length=3, max_length=3)]


class _GroundTruth(RootModel):
    root: Annotated[list[_Entry], Field(min_length=1)]


def _first(root: str, choices: tuple[str, ...], hint: str) -> str:
    paths = [os.path.join(root, *choice.split("/")) for choice in choices]
    return next((path for path in paths if os.path.isfile(path)), None) or require_file(
        paths[0], hint
    )


def _first_folder(root: str, choices: tuple[str, ...]) -> str:
    paths = [os.path.join(root, *choice.split("/")) for choice in choices]
    # Missing images raise when they are read; the error then has the first choice.
    return next((path for path in paths if os.path.isdir(path)), paths[0])
