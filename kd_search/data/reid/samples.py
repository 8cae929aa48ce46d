"""Samples of re-ID sets: tracklets of one frame or more, in the form that all loaders return."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Optional

from kd_search.data.person_search.coco_json import build_id_map
from kd_search.data.person_search.id_map import IDMap, OriginalID
from kd_search.data.records import Record

#: Height and width that crops of people are resized to.
PERSON_SIZE = (256, 128)


@dataclass(frozen=True)
class Tracklet:
    """Frames of an identity in one camera; a single image is a tracklet of one frame."""

    #: Image of each frame, in the order of time.
    file_names: tuple[str, ...]
    #: As in the files; ``None`` for a distractor, which matches no query.
    person_id: Optional[OriginalID]
    #: -1 where it is not known.
    camera_id: int
    #: "train", "query", "gallery", or "both" for a query that is also in the gallery.
    role: str
    #: XYXY in absolute pixels of each frame's image; ``None`` where the image is the crop.
    boxes: Optional[tuple[tuple[float, ...], ...]] = None
    #: Image that replaces the first frame in settings with single images.
    still: Optional[str] = None
    #: Number of the (first) frame in its video; ``None`` where it is not known.
    frame_id: Optional[int] = None
    #: Key that several samples of one tracklet share; ``None`` makes each its own.
    group: Any = None


@dataclass
class LoadedReID:
    """A re-ID set in memory."""

    #: Dataset dicts, see :func:`load_tracklets`.
    samples: list[Record]
    #: Rows of exactly the identities of this set.
    id_map: IDMap
    #: Metadata besides ``person_ids``.
    metadata: dict[str, Any] = field(default_factory=dict)
    #: Rules that the loader applied, with counts.
    notes: list[str] = field(default_factory=list)


def require_split(split: str, root: str) -> None:
    """Check the name of a split.

    Raises:
        ValueError: it is neither "train" nor "test".
    """
    if split not in ("train", "test"):
        raise ValueError(f"{root}: the split {split!r} is neither 'train' nor 'test'")


def load_tracklets(
    tracklets: Iterable[Tracklet],
    where: str,
    *,
    id_map: Optional[IDMap] = None,
    input_size: tuple[int, int] = PERSON_SIZE,
    notes: Iterable[str] = (),
    **metadata: Any,
) -> LoadedReID:
    """Dataset dicts of tracklets.

    Args:
        tracklets: in the order of the samples.
        where: file or folder, for messages.
        id_map: rows of the original ids; ``None`` builds that of exactly these tracklets.
        input_size: height and width that such crops are usually resized to.
        notes: of the loader.
        metadata: of the set; ``junk_rule`` is "camera" by default.

    Returns:
        One dict per tracklet: ``sample_id`` (its place), ``file_names``, ``boxes`` (XYXY absolute
        pixels, or ``None`` where the images are the crops), ``person_id`` (row, or -1),
        ``camera_id`` (-1 unknown), ``tracklet_id``, ``role``, and where they are known ``still``
        and ``frame_id``.

    Raises:
        ValueError: there is none, or its ids are invalid.
    """
    tracklets = list(tracklets)
    if not tracklets:
        raise ValueError(f"{where}: no sample there")
    if id_map is None:
        id_map = build_id_map((tracklet.person_id for tracklet in tracklets), where)
    groups: dict[Any, int] = {}
    samples = []
    for number, tracklet in enumerate(tracklets):
        key = ("alone", number) if tracklet.group is None else ("group", tracklet.group)
        sample: Record = {
            "sample_id": number,
            "file_names": list(tracklet.file_names),
            "boxes": None if tracklet.boxes is None else [list(box) for box in tracklet.boxes],
            "person_id": id_map.row(tracklet.person_id),
            "camera_id": tracklet.camera_id,
            "tracklet_id": groups.setdefault(key, len(groups)),
            "role": tracklet.role,
        }
        if tracklet.still is not None:
            sample["still"] = tracklet.still
        if tracklet.frame_id is not None:
            sample["frame_id"] = tracklet.frame_id
        samples.append(sample)
    metadata = {"junk_rule": "camera", "gallery_images": "first", **metadata}
    return LoadedReID(samples, id_map, {"input_size": tuple(input_size), **metadata}, list(notes))
