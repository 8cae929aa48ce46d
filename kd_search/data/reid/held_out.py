"""Parts of the training set of a re-ID set: some identities held out to compare settings on."""

from collections.abc import Iterable
from functools import partial
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from kd_search.data.catalog import is_reid
from kd_search.data.person_search.held_out import PEOPLE_SHARE
from kd_search.data.records import Record
from kd_search.data.reid.market1501 import choose_queries, split_ids
from kd_search.data.reid.register import get_reid_samples, register_reid_set
from kd_search.data.reid.samples import LoadedReID, Tracklet, load_tracklets

#: Of the identities that are held out, and of their queries.
_SEED = 0
FIT, VAL = "_fit", "_val"
_KEPT = ("input_size", "junk_rule", "junk_frames", "gallery_images", "reid_root")


def register_named_parts(names: Iterable[str]) -> None:
    """Register the names that end in ``_fit`` or ``_val`` after a re-ID set; ignore others.

    A fifth of the identities of ``"<set>"`` are ``"<set>_val"``, a test set, and ``"<set>_fit"``
    are the samples of the others. Nothing is read before a part is used.
    """
    for name in names:
        source, part = name[: -len(FIT)], name[-len(FIT) :]
        if part not in (FIT, VAL) or name in DatasetCatalog.list():
            continue
        if source in DatasetCatalog.list() and is_reid(source):
            register_reid_set(name, partial(_load, source, part))


def _load(source: str, part: str) -> LoadedReID:
    samples, id_map = get_reid_samples(source)
    known = [sample for sample in samples if sample["person_id"] >= 0]
    originals = [id_map.original(sample["person_id"]) for sample in known]
    try:
        held_out = set(split_ids(originals, PEOPLE_SHARE, _SEED)[1])
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    chosen = [
        (sample, original)
        for sample, original in zip(known, originals)
        if (original in held_out) == (part == VAL)
    ]
    roles = dict.fromkeys((sample["sample_id"] for sample, _ in chosen), "train")
    if part == VAL:
        roles = _test_roles(chosen)
        if set(roles.values()) == {"gallery"}:
            raise ValueError(
                f"{source}: none of the {len(held_out)} identities that are held out was seen by "
                "two cameras: there is no query"
            )
    tracklets = [_tracklet(s, original, roles[s["sample_id"]]) for s, original in chosen]
    metadata = MetadataCatalog.get(source).as_dict()
    return load_tracklets(tracklets, source, **{k: metadata[k] for k in _KEPT if k in metadata})


def _test_roles(chosen: list[tuple[Record, Any]]) -> dict[int, str]:
    """One query of each identity and camera. Tracklets stay in the gallery, crops do not, as in
    :func:`~kd_search.data.reid.market1501.load_market1501_split`."""
    items = [(original, s["camera_id"], s["sample_id"]) for s, original in chosen]
    queries = choose_queries(items, _SEED)
    of_tracklets = any(len(s["file_names"]) > 1 for s, _ in chosen)
    role = "both" if of_tracklets else "query"
    return {number: role if number in queries else "gallery" for _, _, number in items}


def _tracklet(sample: Record, original: Any, role: str) -> Tracklet:
    boxes = sample["boxes"]
    return Tracklet(
        tuple(sample["file_names"]),
        original,
        sample["camera_id"],
        role,
        boxes=None if boxes is None else tuple(map(tuple, boxes)),
        still=sample.get("still"),
        frame_id=sample.get("frame_id"),
        group=sample["tracklet_id"],
    )
