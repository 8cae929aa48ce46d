"""ImageNet's object detection set (ILSVRC DET): one XML file in VOC's format per image.

    <root>/Data/DET/{train,val}/<image>.JPEG
    <root>/Annotations/DET/{train,val}/<image>.xml
    <root>/ImageSets/DET/val.txt               lines "<image> <index>"
    <root>/ImageSets/DET/train.txt             the same; or train_1.txt ... train_200.txt, whose
                                               lines are "<image> <1, 0 or -1>"
    <root>/devkit/data/map_det.txt             lines "<WNID> <index> <name>", the classes

<image> may have a folder in it. The classes come from the development kit of the challenge, not
from this package.
"""

import logging
import os
import re
from typing import Optional

from tqdm import tqdm

from kd_search.data.detection.register import register_detection_set
from kd_search.data.detection.voc_xml import read_voc_xml
from kd_search.data.io.files import (
    datasets_folder,
    datasets_hint,
    first_repeat,
    read_lines,
    refuse_repeated_lines,
    require_file,
    require_paths,
)
from kd_search.data.records import Record, image_size, make_record

logger = logging.getLogger(__name__)

_CLASS_LINE = re.compile(r"(n\d{8})\s+(\d+)\s+(\S.*)")
_CLASS_LIST = re.compile(r"train_(\d+)\.txt")
_MAP_FILE = os.path.join("devkit", "data", "map_det.txt")


def register_ilsvrc_det(
    name: str, split: str, root: Optional[str] = None, *, first_pixel: int = 1
) -> None:
    """Register a split of ILSVRC DET.

    Args:
        name: name for ``DATASETS``.
        split: "train" or "val".
        root: folder that holds ``Data`` and ``devkit``; ``None`` takes
            ``$DETECTRON2_DATASETS/ILSVRC`` on first use.
        first_pixel: see :func:`load_ilsvrc_det`.
    """

    def find() -> str:
        folder = root or datasets_folder("ILSVRC")
        require_paths(name, [folder], datasets_hint("ILSVRC"))
        return folder

    def load(strict: bool) -> list[Record]:
        return load_ilsvrc_det(find(), split, first_pixel=first_pixel, strict=strict)

    register_detection_set(name, load, lambda: [text for _, text in read_det_classes(find())])


def read_det_classes(root: str) -> list[tuple[str, str]]:
    """WNID and name of every class, in the order of their indices.

    Raises:
        FileNotFoundError: ``devkit/data/map_det.txt`` is missing.
        ValueError: it has another form; the line is named.
    """
    path = os.path.join(root, _MAP_FILE)
    hint = "it is part of the ILSVRC development kit (see docs/datasets.md)"
    classes: list[tuple[str, str]] = []
    for number, line in read_lines(path, "list of classes", hint):
        match = _CLASS_LINE.fullmatch(line)
        if not match or int(match[2]) != len(classes) + 1:
            raise ValueError(
                f"{path}, line {number}: expected '<WNID> {len(classes) + 1} <name>', got {line!r}"
            )
        classes.append((match[1], match[3]))
    if not classes or first_repeat(wnid for wnid, _ in classes):
        raise ValueError(f"{path}: names no class, or a WNID twice")
    return classes


def load_ilsvrc_det(
    root: str, split: str, *, first_pixel: int = 1, strict: bool = True
) -> list[Record]:
    """Dataset dicts of a split; ``image_id`` counts the images in the order of the list, from 1.

    A training image without XML file has no object of the 200 classes (readme of the development
    kit). Images with partial labels are used like any other, and the few validation images that the
    challenge skips for single classes are not skipped.

    Args:
        root: folder that holds ``Data`` and ``devkit``.
        split: "train" or "val".
        first_pixel: number of the leftmost and topmost pixel in the XML files. VOC counts from 1,
            and the kit states only that the files have VOC's format; a box that starts before the
            first pixel is clipped.
        strict: see :data:`~kd_search.data.detection.register.Load`.

    Raises:
        FileNotFoundError, ValueError: a file is missing or broken; file and line are named.
    """
    if split not in ("train", "val"):
        raise ValueError(f"ILSVRC DET has the splits 'train' and 'val', not {split!r}")
    rows = {wnid: row for row, (wnid, _) in enumerate(read_det_classes(root))}
    images = _list_images(root, split)
    dicts, negatives = [], 0
    for image_id, image in enumerate(
        tqdm(images, desc=f"reading ILSVRC DET {split}", unit="image", disable=None), 1
    ):
        file_name = os.path.join(root, "Data", "DET", split, f"{image}.JPEG")
        xml_file = os.path.join(root, "Annotations", "DET", split, f"{image}.xml")
        if split == "train" and not os.path.isfile(xml_file):
            negatives += 1
            boxes: list[Record] = []
            size = image_size(file_name, strict)
        else:
            boxes, size = _read_boxes(xml_file, rows, first_pixel, strict)
            if strict:
                require_file(file_name, what="image file")
        dicts.append(make_record(file_name, image_id, size, boxes, strict))
    if negatives == len(images):
        folder = os.path.join(root, "Annotations", "DET", split)
        raise FileNotFoundError(f"{folder}: holds no XML file of the listed images")
    if negatives:
        logger.info("%d images of ILSVRC DET %s have no XML file: no objects", negatives, split)
    return dicts


def _read_boxes(
    xml_file: str, rows: dict[str, int], first_pixel: int, strict: bool
) -> tuple[list[Record], tuple[int, int]]:
    """Boxes of an image, and its width and height."""
    found = read_voc_xml(xml_file)
    boxes: list[Record] = []
    for item in found.objects:
        x0, y0, x1, y1 = item.box
        # The last pixel belongs to the box.
        box = [x0 - first_pixel, y0 - first_pixel, x1 - first_pixel + 1, y1 - first_pixel + 1]
        if strict and item.name not in rows:
            raise ValueError(f"{xml_file}, line {item.line}: {item.name!r} is not in {_MAP_FILE}")
        boxes.append({"bbox": box, "category_id": rows.get(item.name, -1), "iscrowd": 0})
        if item.name not in rows:
            boxes[-1]["class_name"] = item.name
    return boxes, (found.width, found.height)


def _list_images(root: str, split: str) -> list[str]:
    folder = os.path.join(root, "ImageSets", "DET")
    whole = os.path.join(folder, f"{split}.txt")
    if split == "train" and not os.path.isfile(whole):
        names = os.listdir(folder) if os.path.isdir(folder) else []
        lists = [(int(match[1]), name) for name in names if (match := _CLASS_LIST.fullmatch(name))]
        if not lists:
            raise FileNotFoundError(
                f"{folder}: neither train.txt nor train_1.txt ... lists the training images"
            )
        paths = [os.path.join(folder, name) for _, name in sorted(lists)]
        # An image is in the lists of several classes.
        return list(dict.fromkeys(image for path in paths for _, image in _read_list(path)))
    images = _read_list(whole)
    refuse_repeated_lines(whole, images)
    return [image for _, image in images]


def _read_list(path: str) -> list[tuple[int, str]]:
    images = []
    for number, line in read_lines(path, "list of images"):
        parts = line.split()
        if len(parts) != 2 or not re.fullmatch(r"-?\d+", parts[1]):
            raise ValueError(f"{path}, line {number}: expected '<image> <index>', got {line!r}")
        if os.path.isabs(parts[0]) or ".." in parts[0].split("/"):
            raise ValueError(f"{path}, line {number}: {parts[0]} lies outside of the data set")
        images.append((number, parts[0]))
    if not images:
        raise ValueError(f"{path}: names no image")
    return images
