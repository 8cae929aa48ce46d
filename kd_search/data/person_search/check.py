"""Finds what is wrong with a person search data set before training does."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Optional

import numpy as np
from detectron2.utils.file_io import PathManager
from tqdm import tqdm

from kd_search.data.io.image import ImageError, read_image
from kd_search.data.person_search.coco_json import clip_box
from kd_search.data.person_search.id_map import IDMap
from kd_search.data.person_search.register import (
    get_person_search_dicts,
    locate_split,
    registered_id_space,
)
from kd_search.data.person_search.split import Galleries, SplitSource

#: Boxes may stick out by rounding.
_TOLERANCE = 0.01


@dataclass(frozen=True)
class Defect:
    """One thing that is wrong."""

    #: What, in one of the words below: box_out_of_image, box_empty, id_twice_in_image,
    #: id_in_one_image, image_missing, image_unreadable, size_mismatch, query_out_of_image,
    #: query_empty, query_not_annotated, query_without_match, id_in_train_and_test,
    #: image_in_train_and_test.
    kind: str
    #: Image, identity or query that it concerns.
    where: str
    #: The finding in words.
    message: str


@dataclass
class DatasetReport:
    """Counts and defects of one split."""

    name: str
    counts: dict[str, int]
    defects: list[Defect] = field(default_factory=list)
    #: What was not checked, and why.
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.defects

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {"ok": self.ok, "defects_by_kind": self.by_kind(), **asdict(self)}

    def by_kind(self) -> dict[str, int]:
        return dict(Counter(defect.kind for defect in self.defects))

    def __str__(self) -> str:
        lines = [f"{self.name}"]
        lines += [f"  {key.replace('_', ' '):<28}{value:>9}" for key, value in self.counts.items()]
        lines += [f"  {d.kind:<24} {d.where}: {d.message}" for d in self.defects]
        lines += [f"  note: {note}" for note in self.notes]
        found = ", ".join(f"{count} {kind}" for kind, count in self.by_kind().items())
        lines.append(f"{len(self.defects)} defects: {found}" if found else "no defect found")
        return "\n".join(lines)


@dataclass(frozen=True)
class Split:
    """A split as it is on disk: boxes neither clipped nor left out."""

    name: str
    dicts: list[dict[str, Any]]
    id_map: IDMap
    image_root: str = ""
    id_space: Optional[str] = None
    #: Galleries of the protocol, where the set has some.
    galleries: Optional[Galleries] = None
    #: What the loader found worth saying.
    notes: tuple[str, ...] = ()

    @classmethod
    def from_files(cls, name: str, files: SplitSource, id_space: Optional[str] = None) -> "Split":
        loaded = files.load(clip=False)
        more = files.check(loaded) if hasattr(files, "check") else []
        return cls(
            name,
            loaded.dicts,
            loaded.id_map,
            files.image_root,
            id_space,
            loaded.galleries,
            tuple(loaded.notes + more),
        )

    @classmethod
    def from_name(cls, name: str) -> "Split":
        """Split of a registered name.

        Raises:
            FileNotFoundError, ValueError: it is missing, broken or not registered.
        """
        files = locate_split(name)
        id_space = registered_id_space(name)
        if files is None:
            return cls(name, *get_person_search_dicts(name), id_space=id_space)
        return cls.from_files(name, files, id_space)

    def short(self, record: dict[str, Any]) -> str:
        """Name of an image, relative to the image folder where it is known."""
        name = record["file_name"]
        return os.path.relpath(name, self.image_root) if self.image_root else name


def check_split(
    split: Split,
    *,
    partner: Optional[Split] = None,
    decode: bool = True,
    max_pixels: int = 50_000_000,
) -> DatasetReport:
    """Check one split, and its overlap with the other one.

    Args:
        split: the split to check.
        partner: the test split of a training split, or the other way round; only the overlap with
            it is checked.
        decode: decode every image, with a progress bar where standard error is a terminal.
        max_pixels: larger images count as unreadable.
    """
    report = DatasetReport(split.name, count_split(split), notes=list(split.notes))
    report.defects += _box_defects(split)
    report.defects += _identity_defects(split)
    report.defects += _query_defects(split)
    for name in split.galleries or ():
        counts, defects = _check_gallery(split, name)
        report.counts.update(counts)
        report.defects += defects
    if partner is not None:
        report.defects += _overlap_defects(split, partner)
        if split.id_space != partner.id_space:
            report.notes.append(
                f"ids not compared with {partner.name}: the two files number people differently"
            )
    if decode:
        report.defects += image_defects(split, max_pixels)
    else:
        report.notes.append("images not decoded")
    return report


def count_split(split: Split) -> dict[str, int]:
    """Numbers of images, boxes, identities and queries; crowd boxes count only as such."""
    boxes = [a for d in split.dicts for a in _people(d)]
    queries = [q for d in split.dicts for q in d.get("queries", ())]
    return {
        "images": len(split.dicts),
        "images_without_people": sum(not _people(d) for d in split.dicts),
        "cameras": len({d["camera_id"] for d in split.dicts} - {-1}),
        "boxes": len(boxes),
        "labelled_boxes": sum(a["person_id"] >= 0 for a in boxes),
        "unlabelled_boxes": sum(a["person_id"] < 0 for a in boxes),
        "crowd_boxes": sum(len(d["annotations"]) for d in split.dicts) - len(boxes),
        "identities": len({a["person_id"] for a in boxes} - {-1}),
        "queries": len(queries),
        "query_identities": len({q["person_id"] for q in queries}),
    }


def _people(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [a for a in record["annotations"] if not a.get("iscrowd", 0)]


def box_problem(bbox: list[float], record: dict[str, Any]) -> Optional[tuple[str, str]]:
    """("empty" or "out_of_image", message), or ``None`` for a sound box."""
    x0, y0, x1, y1 = bbox
    width, height = record["width"], record["height"]
    text = f"box x {x0:g} y {y0:g} w {x1 - x0:g} h {y1 - y0:g}"
    clipped = clip_box(bbox, width, height)
    if x1 <= x0 or y1 <= y0:
        return "empty", f"{text} has no area"
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        return "empty", f"{text} has no area inside of the {width} x {height} image"
    if max(abs(a - b) for a, b in zip(bbox, clipped)) > _TOLERANCE:
        return "out_of_image", f"{text} sticks out of the {width} x {height} image"
    return None


def _box_defects(split: Split) -> Iterator[Defect]:
    for record in split.dicts:
        for annotation in record["annotations"]:
            problem = box_problem(annotation["bbox"], record)
            if problem:
                yield Defect("box_" + problem[0], split.short(record), problem[1])


def _identity_defects(split: Split) -> Iterator[Defect]:
    images = defaultdict(list)
    for record in split.dicts:
        in_image = Counter(a["person_id"] for a in _people(record) if a["person_id"] >= 0)
        for row, count in in_image.items():
            images[row].append(record)
            if count > 1:
                message = f"id {split.id_map.original(row)} is on {count} boxes"
                yield Defect("id_twice_in_image", split.short(record), message)
    for row in sorted(images):
        if len(images[row]) == 1:
            message = f"is only in {split.short(images[row][0])}"
            yield Defect("id_in_one_image", f"id {split.id_map.original(row)}", message)


def _query_defects(split: Split) -> Iterator[Defect]:
    galleries = defaultdict(set)
    for record in split.dicts:
        if record.get("in_gallery", True):
            for annotation in _people(record):
                galleries[annotation["person_id"]].add(record["image_id"])
    for record in split.dicts:
        for query in record.get("queries", ()):
            person = f"id {split.id_map.original(query['person_id'])}"
            where = f"query {query['query_id']} ({person} in {split.short(record)})"
            problem = box_problem(query["bbox"], record)
            if problem:
                yield Defect("query_" + problem[0], where, problem[1])
            if not any(
                a["person_id"] == query["person_id"] and _iou(a["bbox"], query["bbox"]) >= 0.5
                for a in _people(record)
            ):
                message = "no box of this id in the image overlaps the query's box"
                yield Defect("query_not_annotated", where, message)
            if not galleries[query["person_id"]] - {record["image_id"]}:
                message = "the person is in no other gallery image"
                yield Defect("query_without_match", where, message)


def _check_gallery(split: Split, name: str) -> tuple[dict[str, int], list[Defect]]:
    """Counts of one gallery of the protocol, and its queries that have no match there.

    An image that a query's gallery lists twice, a match behind an entry without a box, and the
    query's own image in its gallery are counted: evaluations treat them differently.
    """
    gallery = split.galleries[name]
    query_ids, offsets, images = (gallery[key] for key in ("query_ids", "offsets", "images"))
    matched = ~np.isnan(gallery["boxes"]).any(axis=1)
    own = {q["query_id"]: i for i, d in enumerate(split.dicts) for q in d.get("queries", ())}
    counts: Counter = Counter()
    defects = []
    for i, query_id in enumerate(query_ids.tolist()):
        part = slice(offsets[i], offsets[i + 1])
        found = matched[part]
        counts["entries"] += len(found)
        counts["matches"] += int(found.sum())
        counts["repeated_images"] += len(found) - len(np.unique(images[part]))
        counts["late_matches"] += 0 if found.all() else int(found[found.argmin() :].sum())
        counts["queries_with_own_image"] += int((images[part] == own[query_id]).any())
        if not found.any():
            where = f"query {query_id} ({split.short(split.dicts[own[query_id]])})"
            message = f"gallery {name} has no match for it"
            defects.append(Defect("query_without_match", where, message))
    counts["queries"] = len(query_ids)
    return {f"{name}_{what}": count for what, count in sorted(counts.items())}, defects


def _overlap_defects(split: Split, partner: Split) -> Iterator[Defect]:
    if split.id_space == partner.id_space:
        ours, theirs = _annotated_ids(split), _annotated_ids(partner)
        for original in split.id_map.to_list():
            if original in ours and original in theirs:
                message = f"is in {split.name} and in {partner.name}"
                yield Defect("id_in_train_and_test", f"id {original}", message)
    theirs = {os.path.realpath(record["file_name"]) for record in partner.dicts}
    for record in split.dicts:
        if os.path.realpath(record["file_name"]) in theirs:
            message = f"is in {split.name} and in {partner.name}"
            yield Defect("image_in_train_and_test", split.short(record), message)


def _annotated_ids(split: Split) -> set:
    rows = {entry["person_id"] for d in split.dicts for entry in _people(d) + d.get("queries", [])}
    return {split.id_map.original(row) for row in rows if row >= 0}


def image_defects(split: Split, max_pixels: int) -> Iterator[Defect]:
    for record in tqdm(split.dicts, desc="decoding images", unit="image", disable=None):
        where = split.short(record)
        if not PathManager.exists(record["file_name"]):
            yield Defect("image_missing", where, f"{record['file_name']} does not exist")
            continue
        try:
            height, width = read_image(record["file_name"], max_pixels=max_pixels).shape[:2]
        except ImageError as error:
            yield Defect("image_unreadable", where, str(error))
            continue
        if (width, height) != (record["width"], record["height"]):
            message = (
                f"the image is {width} x {height}, its entry says "
                f"{record['width']} x {record['height']}"
            )
            yield Defect("size_mismatch", where, message)


def _iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    area_a, area_b = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (area_a + area_b - width * height)
