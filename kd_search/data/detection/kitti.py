"""KITTI's object detection set: one text file of 2D boxes per image.

    <root>/training/image_2/000000.png ...
    <root>/training/label_2/000000.txt ...
    <root>/ImageSets/train.txt, val.txt        optional: numbers of the images, one a line

A line of a label file is "type truncated occluded alpha left top right bottom" and seven numbers
of the 3D box, which are ignored (readme of KITTI's object development kit). Pixels count from 0,
and the width of a box is right - left in the kit, so the numbers are used unchanged.
"""

import logging
import math
import os
from typing import Optional

from tqdm import tqdm

from kd_search.data.detection.register import register_detection_set
from kd_search.data.io.files import (
    datasets_folder,
    datasets_hint,
    read_lines,
    refuse_repeated_lines,
    require_paths,
)
from kd_search.data.records import Record, image_size, make_record

logger = logging.getLogger(__name__)

KITTI_CLASSES = ("Car", "Pedestrian", "Cyclist")
#: Types that are similar to a class and ignored, as in KITTI's own evaluation. DontCare marks
#: unlabelled regions, which may contain objects of any class.
_IGNORED = {"Van": ("Car",), "Person_sitting": ("Pedestrian",), "DontCare": KITTI_CLASSES}
#: Background, as in KITTI's own evaluation.
_OTHERS = ("Truck", "Tram", "Misc")
_NUM_VALUES = 15


def register_kitti(
    name: str, split: str, root: Optional[str] = None, *, van_is_car: bool = False
) -> None:
    """Register a split of KITTI.

    Args:
        name: name for ``DATASETS``.
        split: "train" or "val", see :func:`kitti_split`.
        root: folder that holds ``training``; ``None`` takes ``$DETECTRON2_DATASETS/kitti`` on first
            use.
        van_is_car: vans are cars; otherwise they are ignored, see :func:`load_kitti`.
    """

    def load(strict: bool) -> list[Record]:
        folder = root or datasets_folder("kitti")
        folders = [os.path.join(folder, "training", part) for part in ("image_2", "label_2")]
        require_paths(name, folders, datasets_hint("kitti"))
        return load_kitti(folder, split, van_is_car=van_is_car, strict=strict)

    register_detection_set(name, load, KITTI_CLASSES)


def load_kitti(
    root: str, split: str, *, van_is_car: bool = False, strict: bool = True
) -> list[Record]:
    """Dataset dicts of a split.

    Car, Pedestrian and Cyclist are the classes. Van, Person_sitting and DontCare become boxes with
    ``iscrowd`` 1 of every class that they are similar to (three for a DontCare): COCO's metric then
    ignores detections inside of them. Detectron2 leaves crowd boxes out of training; their regions
    are background. Truck, Tram and Misc are background.

    Args:
        root: folder that holds ``training``.
        split: "train" or "val".
        van_is_car: Van becomes Car instead of being ignored.
        strict: see :data:`~kd_search.data.detection.register.Load`.

    Raises:
        FileNotFoundError, ValueError: a file is missing or broken; file and line are named.
    """
    dicts = []
    stems = kitti_split(root, split)
    for stem in tqdm(stems, desc=f"reading KITTI {split}", unit="image", disable=None):
        label_file = os.path.join(root, "training", "label_2", f"{stem}.txt")
        boxes: list[Record] = []
        for number, line in read_lines(label_file, "label file"):
            where = f"{label_file}, line {number}"
            kind, box = _parse(line, where)
            boxes += _annotations(kind, box, van_is_car, strict, where)
        file_name = os.path.join(root, "training", "image_2", f"{stem}.png")
        image_id = int(stem) if stem.isdigit() else stem
        dicts.append(make_record(file_name, image_id, image_size(file_name, strict), boxes, strict))
    return dicts


def kitti_split(root: str, split: str) -> list[str]:
    """Names, without extension, of the images of a split.

    They are those of ``ImageSets/<split>.txt``. Where there are no lists, the first half of the
    label files in the order of their names is "train" and the rest is "val", a split of this
    package: compare with a paper only with the paper's lists.

    Raises:
        FileNotFoundError, ValueError: a list is missing or invalid.
    """
    if split not in ("train", "val"):
        raise ValueError(f"KITTI has the splits 'train' and 'val', not {split!r}")
    lists = {name: os.path.join(root, "ImageSets", f"{name}.txt") for name in ("train", "val")}
    label_folder = os.path.join(root, "training", "label_2")
    stems = sorted(n[: -len(".txt")] for n in os.listdir(label_folder) if n.endswith(".txt"))
    if any(os.path.isfile(path) for path in lists.values()):
        return _read_list(lists[split], set(stems))
    if not stems:
        raise FileNotFoundError(f"{label_folder}: holds no label file")
    logger.info("%s has no ImageSets/train.txt and val.txt: the images are split in halves", root)
    half = (len(stems) + 1) // 2
    return stems[:half] if split == "train" else stems[half:]


def _read_list(path: str, stems: set[str]) -> list[str]:
    lines = read_lines(path, "list of images (KITTI has both lists or none)")
    if not lines:
        raise ValueError(f"{path}: names no image")
    for number, stem in lines:
        if stem not in stems:
            raise ValueError(f"{path}, line {number}: there is no label file {stem!r}.txt")
    refuse_repeated_lines(path, lines)
    return [stem for _, stem in lines]


def _parse(line: str, where: str) -> tuple[str, list[float]]:
    parts = line.split()
    if len(parts) != _NUM_VALUES:
        raise ValueError(
            f"{where}: expected a type and {_NUM_VALUES - 1} numbers, got {len(parts)} values"
        )
    try:
        values = [float(part) for part in parts[1:]]
    except ValueError:
        raise ValueError(f"{where}: expected numbers after the type, got {line!r}") from None
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"{where}: the numbers must be finite, got {line!r}")
    return parts[0], values[3:7]


def _annotations(
    kind: str, box: list[float], van_is_car: bool, strict: bool, where: str
) -> list[Record]:
    kind = "Car" if van_is_car and kind == "Van" else kind
    if kind in _OTHERS:
        return []
    classes = (kind,) if kind in KITTI_CLASSES else _IGNORED.get(kind)
    if classes is None:
        if strict:
            raise ValueError(f"{where}: KITTI has no type {kind!r}")
        return [{"bbox": box, "category_id": -1, "iscrowd": 0, "class_name": kind}]
    crowd = int(kind not in KITTI_CLASSES)
    return [
        {"bbox": box, "category_id": KITTI_CLASSES.index(name), "iscrowd": crowd}
        for name in classes
    ]
