"""Checks of plain detection sets."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Optional

from detectron2.structures import BoxMode

from kd_search.data.check import DatasetReport, Defect, box_problem, check_images
from kd_search.data.detection.register import known_classes, load_detection_set
from kd_search.data.records import Record, is_crowd, non_crowd


@dataclass
class DetectionSplit:
    """A plain detection set as it is on disk: boxes neither clipped nor left out."""

    name: str
    dicts: list[Record]
    #: Names of the classes, in the order of ``category_id``.
    classes: list[str]

    @classmethod
    def from_name(cls, name: str) -> "DetectionSplit":
        """Split of a registered name, with every box as XYXY.

        Raises:
            FileNotFoundError, ValueError: it is missing, broken or not registered.
        """
        dicts = []
        for number, record in enumerate(load_detection_set(name, strict=False), 1):
            if "width" not in record or "height" not in record:
                raise ValueError(f"{name}: image {number} has no width or height")
            annotations = [
                {**a, "bbox": BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS)}
                for a in record.get("annotations", ())
            ]
            dicts.append({**record, "annotations": annotations})
        return cls(name, dicts, known_classes(name) or [])

    @cached_property
    def _folder(self) -> str:
        return os.path.commonpath([os.path.dirname(d["file_name"]) for d in self.dicts])

    def image_name(self, record: Record) -> str:
        """Name of an image, relative to the folder of all images."""
        return os.path.relpath(record["file_name"], self._folder or os.curdir)


def check_detection_split(
    split: DetectionSplit,
    *,
    partner: Optional[DetectionSplit] = None,
    decode: bool = True,
    max_pixels: int = 50_000_000,
) -> DatasetReport:
    """Check one set, and its overlap with the other one.

    Kinds of defects: ``box_out_of_image``, ``box_empty``, ``unknown_class``, ``image_missing``,
    ``image_unreadable``, ``size_mismatch``, ``image_in_train_and_test``.

    Args:
        split: the set to check.
        partner: the test set of a training set, or the other way round; only the overlap with it
            is checked.
        decode: decode every image, with a progress bar where standard error is a terminal.
        max_pixels: larger images count as unreadable.
    """
    report = DatasetReport(split.name, count_detection_split(split))
    report.defects += _annotation_defects(split)
    check_images(report, split, partner, decode, max_pixels)
    if not split.classes:
        report.notes.append("classes not checked: the set does not name them")
    return report


def count_detection_split(split: DetectionSplit) -> dict[str, int]:
    """Numbers of images and boxes, all and by class.

    Crowd boxes count as ignored ones and not by class; a region that is ignored for several classes
    counts once.
    """
    boxes = [a for d in split.dicts for a in non_crowd(d)]
    ignored = {
        (index, tuple(a["bbox"]))
        for index, d in enumerate(split.dicts)
        for a in d["annotations"]
        if is_crowd(a)
    }
    by_class = Counter(annotation["category_id"] for annotation in boxes)
    return {
        "images": len(split.dicts),
        "images_without_objects": sum(not non_crowd(d) for d in split.dicts),
        "boxes": len(boxes),
        "ignored_boxes": len(ignored),
        "classes": len(split.classes),
        **{f"class {name}": by_class[index] for index, name in enumerate(split.classes)},
    }


def _annotation_defects(split: DetectionSplit) -> Iterator[Defect]:
    for record in split.dicts:
        where = split.image_name(record)
        seen = set()
        for annotation in record["annotations"]:
            category = annotation["category_id"]
            if split.classes and not 0 <= category < len(split.classes):
                name = annotation.get("class_name", category)
                yield Defect("unknown_class", where, f"{name!r} is no class of this set")
            # A region that is ignored for several classes has an annotation of each.
            key = (tuple(annotation["bbox"]), is_crowd(annotation))
            if record["width"] and (key not in seen or not key[1]):
                problem = box_problem(annotation["bbox"], record)
                if problem:
                    yield Defect("box_" + problem[0], where, problem[1])
            seen.add(key)
