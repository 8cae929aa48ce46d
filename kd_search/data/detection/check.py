"""Finds what is wrong with a plain detection set before training does."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Optional

from detectron2.structures import BoxMode

from kd_search.data.detection.register import known_classes, load_detection_set
from kd_search.data.person_search.check import DatasetReport, Defect, box_problem, image_defects


@dataclass(frozen=True)
class DetectionSplit:
    """A plain detection set as it is on disk: boxes neither clipped nor left out."""

    name: str
    dicts: list[dict[str, Any]]
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

    def short(self, record: dict[str, Any]) -> str:
        """Name of an image, relative to the folder that all images lie in."""
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
    if partner is not None:
        report.defects += _overlap_defects(split, partner)
    if decode:
        report.defects += image_defects(split, max_pixels)
    else:
        report.notes.append("images not decoded")
    if not split.classes:
        report.notes.append("classes not checked: the set does not name them")
    return report


def count_detection_split(split: DetectionSplit) -> dict[str, int]:
    """Numbers of images and boxes, all and by class.

    Crowd boxes count as ignored ones and not by class; a place that is ignored for several classes
    counts once.
    """
    boxes = [a for d in split.dicts for a in _objects(d)]
    ignored = {
        (index, tuple(a["bbox"]))
        for index, d in enumerate(split.dicts)
        for a in d["annotations"]
        if a.get("iscrowd", 0)
    }
    counts = {
        "images": len(split.dicts),
        "images_without_objects": sum(not _objects(d) for d in split.dicts),
        "boxes": len(boxes),
        "ignored_boxes": len(ignored),
        "classes": len(split.classes),
    }
    by_class = [0] * len(split.classes)
    for annotation in boxes:
        if 0 <= annotation["category_id"] < len(by_class):
            by_class[annotation["category_id"]] += 1
    return {**counts, **{f"class {n}": count for n, count in zip(split.classes, by_class)}}


def _objects(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [a for a in record["annotations"] if not a.get("iscrowd", 0)]


def _annotation_defects(split: DetectionSplit) -> Iterator[Defect]:
    for record in split.dicts:
        where = split.short(record)
        seen = set()
        for annotation in record["annotations"]:
            category = annotation["category_id"]
            if split.classes and not 0 <= category < len(split.classes):
                name = annotation.get("class_name", category)
                yield Defect("unknown_class", where, f"{name!r} is no class of this set")
            # A place that is ignored for several classes is there once for each of them.
            key = (tuple(annotation["bbox"]), annotation.get("iscrowd", 0))
            if record["width"] and (key not in seen or not key[1]):
                problem = box_problem(annotation["bbox"], record)
                if problem:
                    yield Defect("box_" + problem[0], where, problem[1])
            seen.add(key)


def _overlap_defects(split: DetectionSplit, partner: DetectionSplit) -> Iterator[Defect]:
    theirs = {os.path.realpath(record["file_name"]) for record in partner.dicts}
    for record in split.dicts:
        if os.path.realpath(record["file_name"]) in theirs:
            message = f"is in {split.name} and in {partner.name}"
            yield Defect("image_in_train_and_test", split.short(record), message)
