"""Checks of person search data sets."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Optional

import numpy as np
import torch
from torchvision.ops import box_iou

from kd_search.data.check import DatasetReport, Defect, box_problem, check_images
from kd_search.data.person_search.split import LoadedSplit
from kd_search.data.records import Record, non_crowd


def check_split(
    split: LoadedSplit,
    *,
    partner: Optional[LoadedSplit] = None,
    decode: bool = True,
    max_pixels: int = 50_000_000,
) -> DatasetReport:
    """Check one split, and its overlap with the other one.

    Args:
        split: the split to check, loaded with ``clip=False``.
        partner: the test split of a training split, or the other way round; only the overlap with
            it is checked.
        decode: decode every image, with a progress bar where standard error is a terminal.
        max_pixels: larger images count as unreadable.
    """
    report = DatasetReport(split.name, count_split(split), notes=list(split.notes))
    if split.ids_of_tracks:
        message = (
            f"{split.ids_of_tracks} boxes have a track_id, and none has the person_id that is "
            "read: kd-search convert --json FILE --images DIR --id-key track_id writes it"
        )
        report.defects.append(Defect("no_person_id", "annotations", message))
    report.defects += _box_defects(split)
    report.defects += _identity_defects(split)
    report.defects += _query_defects(split)
    for name in split.galleries:
        counts, defects = _check_gallery(split, name)
        report.counts.update(counts)
        report.defects += defects
    if partner is not None and split.id_space == partner.id_space:
        for original in sorted(_annotated_ids(split) & _annotated_ids(partner)):
            message = f"is in {split.name} and in {partner.name}"
            report.defects.append(Defect("id_in_train_and_test", f"id {original}", message))
    elif partner is not None:
        report.notes.append(
            f"ids not compared with {partner.name}: the numberings of people are different"
        )
    check_images(report, split, partner, decode, max_pixels)
    return report


def count_split(split: LoadedSplit) -> dict[str, int]:
    """Numbers of images, boxes, identities and queries; crowd boxes are counted separately."""
    boxes = [annotation for record in split.dicts for annotation in non_crowd(record)]
    queries = [query for query, _ in split.queries]
    return {
        "images": len(split.dicts),
        "images_without_people": sum(not non_crowd(d) for d in split.dicts),
        "cameras": len({d["camera_id"] for d in split.dicts} - {-1}),
        "boxes": len(boxes),
        "labelled_boxes": sum(a["person_id"] >= 0 for a in boxes),
        "unlabelled_boxes": sum(a["person_id"] < 0 for a in boxes),
        "crowd_boxes": sum(len(d["annotations"]) for d in split.dicts) - len(boxes),
        "identities": len({a["person_id"] for a in boxes} - {-1}),
        "queries": len(queries),
        "query_identities": len({q["person_id"] for q in queries}),
    }


def _box_defects(split: LoadedSplit) -> Iterator[Defect]:
    for record in split.dicts:
        for annotation in record["annotations"]:
            problem = box_problem(annotation["bbox"], record)
            if problem:
                yield Defect("box_" + problem[0], split.image_name(record), problem[1])


def _identity_defects(split: LoadedSplit) -> Iterator[Defect]:
    images = defaultdict(list)
    for record in split.dicts:
        in_image = Counter(a["person_id"] for a in non_crowd(record) if a["person_id"] >= 0)
        for row, count in in_image.items():
            images[row].append(record)
            if count > 1:
                message = f"id {split.id_map.original(row)} is on {count} boxes"
                yield Defect("id_twice_in_image", split.image_name(record), message)
    for row in sorted(images):
        if len(images[row]) == 1:
            message = f"is only in {split.image_name(images[row][0])}"
            yield Defect("id_in_one_image", f"id {split.id_map.original(row)}", message)


def _query_defects(split: LoadedSplit) -> Iterator[Defect]:
    galleries = defaultdict(set)
    for record in split.dicts:
        if record.get("in_gallery", True):
            for annotation in non_crowd(record):
                galleries[annotation["person_id"]].add(record["image_id"])
    for record in split.dicts:
        for query in record.get("queries", ()):
            person = f"id {split.id_map.original(query['person_id'])}"
            where = f"query {query['query_id']} ({person} in {split.image_name(record)})"
            problem = box_problem(query["bbox"], record)
            if problem:
                yield Defect("query_" + problem[0], where, problem[1])
            if not _is_annotated(query, record):
                message = "no box of this id in the image overlaps the query's box"
                yield Defect("query_not_annotated", where, message)
            if not galleries[query["person_id"]] - {record["image_id"]}:
                message = "the person is in no other gallery image"
                yield Defect("query_without_match", where, message)


def _is_annotated(query: Record, record: Record) -> bool:
    own = [a["bbox"] for a in non_crowd(record) if a["person_id"] == query["person_id"]]
    boxes = torch.tensor(own, dtype=torch.float64).reshape(-1, 4)
    box = torch.tensor([query["bbox"]], dtype=torch.float64)
    return bool((box_iou(box, boxes) >= 0.5).any())


def _check_gallery(split: LoadedSplit, name: str) -> tuple[dict[str, int], list[Defect]]:
    """Counts of one gallery of the protocol, and its queries without a match.

    Repeated images of a query's gallery, matches after an entry without a box, and the query's own
    image in its gallery are counted: evaluations treat them differently.
    """
    gallery = split.galleries[name]
    query_ids, offsets, images = (gallery[key] for key in ("query_ids", "offsets", "images"))
    matched = np.asarray(~np.isnan(gallery["boxes"]).any(axis=1))
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
            where = f"query {query_id} ({split.image_name(split.dicts[own[query_id]])})"
            message = f"gallery {name} has no match for it"
            defects.append(Defect("query_without_match", where, message))
    counts["queries"] = len(query_ids)
    return {f"{name}_{what}": count for what, count in sorted(counts.items())}, defects


def _annotated_ids(split: LoadedSplit) -> set:
    entries = (entry for d in split.dicts for entry in non_crowd(d) + d.get("queries", []))
    return {
        split.id_map.original(entry["person_id"]) for entry in entries if entry["person_id"] >= 0
    }
