"""Report of the defects of a data set, and the checks that are common to all kinds of sets."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Optional, Protocol

from detectron2.utils.file_io import PathManager
from tqdm import tqdm

from kd_search.data.io.image import ImageError, read_image
from kd_search.data.records import Record, clip_box, has_area

#: Boxes may stick out by rounding errors.
_TOLERANCE = 0.01


@dataclass(frozen=True)
class Defect:
    """One defect."""

    #: box_out_of_image, box_empty, id_twice_in_image, id_in_one_image, image_missing,
    #: image_unreadable, size_mismatch, query_out_of_image, query_empty, query_not_annotated,
    #: query_without_match, id_in_train_and_test, image_in_train_and_test, unknown_class or
    #: no_person_id.
    kind: str
    #: Image, identity, query, or a part of the file.
    where: str
    #: Description.
    message: str


@dataclass
class DatasetReport:
    """Counts and defects of one split."""

    name: str
    counts: dict[str, int]
    defects: list[Defect] = field(default_factory=list)
    #: Checks that were left out, and why.
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


class Split(Protocol):
    """A set whose images can be checked."""

    name: str
    dicts: list[Record]

    def image_name(self, record: Record) -> str:
        """Name of an image for messages."""


def box_problem(bbox: list[float], record: Record) -> Optional[tuple[str, str]]:
    """("empty" or "out_of_image", message), or ``None`` for a valid box."""
    x0, y0, x1, y1 = bbox
    width, height = record["width"], record["height"]
    text = f"box x {x0:g} y {y0:g} w {x1 - x0:g} h {y1 - y0:g}"
    clipped = clip_box(bbox, width, height)
    if not has_area(bbox):
        return "empty", f"{text} has no area"
    if not has_area(clipped):
        return "empty", f"{text} has no area inside of the {width} x {height} image"
    if max(abs(a - b) for a, b in zip(bbox, clipped)) > _TOLERANCE:
        return "out_of_image", f"{text} sticks out of the {width} x {height} image"
    return None


def check_images(
    report: DatasetReport, split: Split, partner: Optional[Split], decode: bool, max_pixels: int
) -> None:
    """Add the defects of images to a report: those in both splits, and undecodable ones.

    Args:
        report: of the split.
        split: the split to check.
        partner: the other split of the set.
        decode: decode every image, with a progress bar where standard error is a terminal.
        max_pixels: larger images count as unreadable.
    """
    if partner is not None:
        report.defects += _overlap_defects(split, partner)
    if decode:
        report.defects += _image_defects(split, max_pixels)
    else:
        report.notes.append("images not decoded")


def _overlap_defects(split: Split, partner: Split) -> Iterator[Defect]:
    theirs = {os.path.realpath(record["file_name"]) for record in partner.dicts}
    for record in split.dicts:
        if os.path.realpath(record["file_name"]) in theirs:
            message = f"is in {split.name} and in {partner.name}"
            yield Defect("image_in_train_and_test", split.image_name(record), message)


def _image_defects(split: Split, max_pixels: int) -> Iterator[Defect]:
    for record in tqdm(split.dicts, desc="decoding images", unit="image", disable=None):
        where = split.image_name(record)
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
                f"the image is {width} x {height}, its entry has "
                f"{record['width']} x {record['height']}"
            )
            yield Defect("size_mismatch", where, message)
