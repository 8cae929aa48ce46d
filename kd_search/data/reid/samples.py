"""What the loader of every re-ID format gives: samples, tracklets of one frame or more."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Optional

from kd_search.data.person_search.id_map import IDMap, OriginalID

#: Height and width that crops of people are resized to.
PERSON_SIZE = (256, 128)

ROLES = ("train", "query", "gallery", "both")


@dataclass(frozen=True)
class Tracklet:
    """Frames of one thing in one camera, as a loader finds them; a single image is one of one."""

    #: Image of each frame, in time.
    file_names: tuple[str, ...]
    #: As in the files; ``None`` for a distractor, which no query looks for.
    person_id: Optional[OriginalID]
    #: -1 where it is not known.
    camera_id: int
    #: "train", "query", "gallery", or "both" for a query that is searched among the others, too.
    role: str
    #: XYXY in absolute pixels of each frame's image; ``None`` where the image is the crop.
    boxes: Optional[tuple[tuple[float, float, float, float], ...]] = None
    #: Image that stands for it where one frame is asked for, instead of its first frame.
    still: Optional[str] = None
    #: Number of the (first) frame in its video; ``None`` where it is not known.
    frame_id: Optional[int] = None
    #: Number that several samples of one tracklet share; ``None`` gives each its own.
    group: Any = None


@dataclass
class LoadedReID:
    """A re-ID set in memory."""

    #: Dataset dicts, see :func:`load_tracklets`.
    samples: list[dict[str, Any]]
    #: Rows of exactly the identities of this set.
    id_map: IDMap
    #: What goes into the metadata besides ``person_ids``.
    metadata: dict[str, Any] = field(default_factory=dict)
    #: Counted rules that the loader applied.
    notes: list[str] = field(default_factory=list)


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
        input_size: height and width that the field resizes such crops to.
        notes: of the loader.
        metadata: of the set; ``junk_rule`` is "camera" unless it is given.

    Returns:
        One dict per tracklet: ``sample_id`` (its place), ``file_names``, ``boxes`` (XYXY absolute
        pixels, or ``None`` where the images are the crops), ``person_id`` (row, or -1),
        ``camera_id`` (-1 unknown), ``tracklet_id``, ``role``, and where they are known ``still``
        and ``frame_id``.

    Raises:
        ValueError: there is none, or its ids do not fit together.
    """
    tracklets = list(tracklets)
    if not tracklets:
        raise ValueError(f"{where}: no sample there")
    if id_map is None:
        try:
            id_map = IDMap(tracklet.person_id for tracklet in tracklets)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    groups: dict[Any, int] = {}
    samples = []
    for number, tracklet in enumerate(tracklets):
        key = ("alone", number) if tracklet.group is None else ("group", tracklet.group)
        sample = {
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
