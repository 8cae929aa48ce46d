"""Re-ID sets of the annotated people of a person search set."""

from collections.abc import Iterable
from typing import Any, Callable, Optional

from detectron2.data import DatasetCatalog

from kd_search.data.catalog import is_person_search, is_reid
from kd_search.data.person_search.id_map import OriginalID
from kd_search.data.person_search.register import get_person_search_dicts
from kd_search.data.records import Record, non_crowd
from kd_search.data.reid.register import register_reid_set
from kd_search.data.reid.samples import LoadedReID, Tracklet, load_tracklets

_SUFFIX = "_crops"


def reid_crops_of(name: str) -> str:
    """Register the crops of a person search set as ``"<name>_crops"``, and return that name.

    Samples are the ground-truth boxes, cut from the original images when they are loaded.
    Identities have the rows of the person search set, so that a re-ID network trained on the crops
    and a person search network have the same classes. Nothing is read before the set is used.

    - In a training set, people without an identity and ignored boxes are left out.
    - In a set with queries, every box of a gallery image is in the gallery, people without an
      identity as distractors. A query is its person's box in its image, with the role "both"; if no
      box is annotated, or the image is not in the gallery, it is a sample of its own with the role
      "query".

    Args:
        name: a registered person search set; a set of crops is registered once.
    """
    crops = name + _SUFFIX
    if crops not in DatasetCatalog.list():
        register_reid_set(crops, lambda: _load(name))
    return crops


def register_named_crops(names: Iterable[str]) -> None:
    """Register the names that end in ``_crops`` after a person search set; ignore others."""
    for name in names:
        source = name[: -len(_SUFFIX)]
        if not name.endswith(_SUFFIX) or name in DatasetCatalog.list():
            continue
        if source in DatasetCatalog.list() and is_person_search(source) and not is_reid(source):
            reid_crops_of(source)


def _load(name: str) -> LoadedReID:
    dicts, id_map = get_person_search_dicts(name)
    is_test = any(record.get("queries") for record in dicts)
    tracklets: list[Tracklet] = []
    left_out = 0
    for record in dicts:
        people = non_crowd(record)
        if is_test:
            tracklets += _test_crops(record, people, id_map.original)
            continue
        known = [person for person in people if person["person_id"] >= 0]
        left_out += len(people) - len(known)
        for person in known:
            original = id_map.original(person["person_id"])
            tracklets.append(_crop(record, person["bbox"], original, "train"))
    notes = [f"{left_out} boxes without an identity are left out"] if left_out else []
    cameras = {record.get("camera_id", -1) for record in dicts} - {-1}
    # With a single camera, all matches of every query would be junk.
    junk_rule = "camera" if len(cameras) > 1 else "none"
    return load_tracklets(
        tracklets, name, id_map=id_map, notes=notes, crops_of=name, junk_rule=junk_rule
    )


def _test_crops(
    record: Record, people: list[Record], original_of: Callable[[int], OriginalID]
) -> list[Tracklet]:
    waiting = {query["person_id"]: query for query in record.get("queries", ())}
    found = []
    for person in people if record.get("in_gallery", True) else ():
        row = person["person_id"]
        original = original_of(row) if row >= 0 else None
        is_query = row >= 0 and waiting.pop(row, None) is not None
        found.append(_crop(record, person["bbox"], original, "both" if is_query else "gallery"))
    for row, query in waiting.items():
        original = original_of(row) if row >= 0 else None
        found.append(_crop(record, query["bbox"], original, "query"))
    return found


def _crop(record: Record, box: Any, original: Optional[OriginalID], role: str) -> Tracklet:
    boxes = (tuple(map(float, box)),)
    camera_id = int(record.get("camera_id", -1))
    return Tracklet((record["file_name"],), original, camera_id, role, boxes=boxes)
