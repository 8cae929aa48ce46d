"""MOTChallenge folders as person search sets."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Callable, Optional

import numpy as np
from detectron2.data import MetadataCatalog

from kd_search.data.io.image import read_image_size, read_image_sizes
from kd_search.data.person_search.id_map import OriginalID
from kd_search.data.person_search.mot_sequence import (
    Sequence,
    find_sequences,
    read_ground_truth,
    read_sequence,
)
from kd_search.data.person_search.register import load_content, register_split
from kd_search.data.person_search.search_protocol import CompactGallery, SearchGalleries
from kd_search.data.person_search.split import LoadedSplit
from kd_search.data.records import clip_box, is_crowd, xyxy

#: Classes of people that the benchmark ignores: on a vehicle, static (sitting, standing for long),
#: distractor (a poster, a statue), reflection.
_PEOPLE_LIKE = (2, 7, 8, 12)
#: Parsers of the options that are no strings.
_PARSERS: dict[str, Callable[[str], Any]] = {
    "queries": lambda value: {"yes": True, "no": False}[value.lower()],
    "sequences": lambda value: tuple(part for part in value.split(",") if part),
    "classes": lambda value: tuple(map(int, value.split(","))),
    "gallery_gap": int,
    "frame_step": int,
    "min_visibility": float,
    "query_visibility": float,
}


@dataclass(frozen=True)
class MOTFiles:
    """Sequences of a MOTChallenge folder; a :class:`~.split.SplitSource`.

    Sequences are cameras (``camera_id`` counts them in the order of their names), and an identity
    is "<sequence>/<id>", because ids are unique in their sequence only. A box is

    - a person with an identity if its class is in ``classes``, its flag (column 7) is not 0 and its
      visibility is at least ``min_visibility``;
    - an ignored region (``iscrowd`` 1: neither trained on nor searched) if it is of these classes
      but flagged 0 or less visible, or of the other classes of people (2 on a vehicle, 7 static, 8
      distractor, 12 reflection), which the benchmark ignores too;
    - left out otherwise (vehicles, occluders); counted.

    Frames that are not on disk are left out, with their rows, and counted. Boxes are converted to
    coordinates from 0 and clipped to the image.

    Queries are those of ``query_info``, or of ``query_info.txt`` in ``root`` where that exists.
    Otherwise each identity of each sequence has one: its first box with ``query_visibility`` and a
    match, that is, the person is in another sequence or at least ``gallery_gap`` frames away. The
    gallery has every frame but the query's and nearer ones of its sequence,
    ``search_galleries["gap<frames>"]``; it is left out where ``frame_step`` is not smaller.
    """

    #: Folder of the sequences, or the one whose train/ holds them.
    root: str
    #: Whether it is a test set, with queries.
    queries: bool = False
    #: Names, with or without the detector; empty for all.
    sequences: tuple[str, ...] = ()
    classes: tuple[int, ...] = (1,)
    #: 0.3 is what MMTracking trains re-identification with (mot2reid).
    min_visibility: float = 0.3
    query_visibility: float = 0.8
    #: Frames; 25 are a second of most sequences.
    gallery_gap: int = 25
    #: Use every n-th frame only, starting with number 1.
    frame_step: int = 1
    #: Query file in PRW's form; frames as "<folder>/img1/000001".
    query_info: Optional[str] = None

    @property
    def id_space(self) -> Optional[str]:
        return "motchallenge"

    def __post_init__(self) -> None:
        for name in ("gallery_gap", "frame_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{self.root}: {name} must be 1 or more")
        for name in ("min_visibility", "query_visibility"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{self.root}: {name} must be between 0 and 1")

    def load(self, *, clip: bool = True) -> LoadedSplit:
        """Read the split; see :class:`~kd_search.data.person_search.split.SplitSource`."""
        folders, notes = find_sequences(self.root, tuple(self.sequences))
        content: dict[str, Any] = {"images": [], "annotations": []}
        cameras: dict[int, str] = {}
        counts: Counter = Counter()
        candidates: list[_Sighting] = []
        for number, folder in enumerate(folders):
            sequence = read_sequence(folder)
            own_id = sequence.info.camera_id
            camera_id = number if own_id is None else own_id
            cameras[camera_id] = sequence.name
            self._add_frames(content, sequence, camera_id, counts)
            candidates += self._add_boxes(content, sequence, counts)
        if not content["images"]:
            raise ValueError(f"{self.root}: its {len(folders)} sequences hold no frame")
        query_info = None
        if self.queries:
            path = os.path.join(self.root, "query_info.txt")
            query_info = self.query_info or (path if os.path.isfile(path) else None)
        metadata = {"mot_root": self.root, "camera_names": cameras}
        loaded = load_content(content, self.root, self.root, query_info, metadata, clip=clip)
        notes += [f"{count} {what}" for what, count in counts.items() if count]
        if self.queries and query_info is None:
            self._add_queries(loaded, candidates, clip, notes)
        loaded.notes = notes
        return loaded

    def _add_frames(
        self, content: dict[str, Any], sequence: Sequence, camera_id: int, counts: Counter
    ) -> None:
        missing = (sequence.info.length or 0) - len(sequence.frames)
        counts["frames of seqinfo.ini are not on disk and are left out"] += max(missing, 0)
        numbers = [number for number in sequence.frames if (number - 1) % self.frame_step == 0]
        paths = [sequence.frames[number] for number in numbers]
        for number, path, (width, height) in zip(numbers, paths, _sizes(sequence, paths)):
            content["images"].append(
                {
                    "id": _image_id(sequence, number),
                    "file_name": os.path.relpath(path, self.root),
                    "width": width,
                    "height": height,
                    "camera_id": camera_id,
                    "frame_id": number,
                }
            )

    def _add_boxes(
        self, content: dict[str, Any], sequence: Sequence, counts: Counter
    ) -> list["_Sighting"]:
        sightings = []
        for row in read_ground_truth(sequence.folder).tolist():
            frame, number, (x, y, w, h) = int(row[0]), int(row[1]), row[2:6]
            flag, kind, visibility = row[6], int(row[7]), row[8]
            if frame not in sequence.frames:
                counts["boxes are in frames that are not on disk and are left out"] += 1
                continue
            if (frame - 1) % self.frame_step:
                continue
            wanted = kind in self.classes
            if not wanted and kind not in _PEOPLE_LIKE:
                counts["boxes are of other classes and are left out"] += 1
                continue
            entry: dict[str, Any] = {
                "image_id": _image_id(sequence, frame),
                "bbox": [x - 1, y - 1, w, h],
                "person_id": None,
            }
            content["annotations"].append(entry)
            if not (wanted and flag != 0 and visibility >= self.min_visibility):
                entry["iscrowd"] = 1
                if not wanted:
                    counts["boxes show people of other classes and are ignored regions"] += 1
                elif flag == 0:
                    counts["boxes are flagged 0 and are ignored regions"] += 1
                else:
                    counts[f"boxes are less visible than {self.min_visibility:g} and ignored"] += 1
            elif number >= 0:
                shared = sequence.info.shared_ids
                entry["person_id"] = number if shared else f"{sequence.name}/{number}"
                sightings.append(
                    _Sighting(entry["person_id"], sequence.name, frame, visibility, entry)
                )
        return sightings

    def _add_queries(
        self, loaded: LoadedSplit, sightings: list["_Sighting"], clip: bool, notes: list[str]
    ) -> None:
        chosen, without = choose_queries(sightings, self.query_visibility, self.gallery_gap)
        if not chosen:
            raise ValueError(
                f"{self.root}: no query: no person has a visibility of {self.query_visibility:g} "
                f"in a frame and another frame at least {self.gallery_gap} frames away; lower "
                "query_visibility or gallery_gap"
            )
        if without:
            notes.append(f"{without} people in a sequence have no query")
        index = {record["image_id"]: i for i, record in enumerate(loaded.dicts)}
        for query_id, sighting in enumerate(chosen):
            record = loaded.dicts[index[sighting.entry["image_id"]]]
            box = xyxy(sighting.entry["bbox"])
            if clip:
                box = clip_box(box, record["width"], record["height"])
            row = loaded.id_map.row(sighting.person_id)
            query = {"query_id": query_id, "bbox": box, "person_id": row}
            record.setdefault("queries", []).append(query)
        if self.gallery_gap > self.frame_step:
            readers = {f"gap{self.gallery_gap}": lambda: _gap_gallery(loaded, self.gallery_gap)}
            loaded.metadata["search_galleries"] = SearchGalleries(readers)


def register_motchallenge(name: str, root: str, **options: Any) -> None:
    """Register a MOTChallenge folder under a name for ``DATASETS.TRAIN`` or ``DATASETS.TEST``.

    Nothing is read before the set is used.

    Args:
        name: a name that is not registered.
        root: folder of the sequences, or the one whose train/ holds them.
        options: fields of :class:`MOTFiles`; a test set needs ``queries=True``.
    """
    files = MOTFiles(root, **options)
    register_split(name, lambda: files)
    MetadataCatalog.get(name).set(mot_root=root)


def parse_motchallenge_entry(entry: Iterable[str]) -> tuple[str, str, dict[str, Any]]:
    """Arguments of :func:`register_motchallenge` from the strings of a config file.

    Args:
        entry: name, folder, and any number of ``"option=value"`` with the fields of
            :class:`MOTFiles`; lists are separated by commas, ``queries`` is ``yes`` or ``no``.

    Raises:
        ValueError: the entry has another form; the line has the expected one.
    """
    entry = list(entry)
    if len(entry) < 2 or not all(isinstance(part, str) for part in entry):
        raise ValueError(f"{entry} must be [name, folder] and options such as 'queries=yes'")
    name, root, *settings = entry
    known = {f.name for f in fields(MOTFiles)} - {"root"}
    options: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key not in known:
            raise ValueError(f"{setting!r} must be option=value, with one of {sorted(known)}")
        try:
            options[key] = _PARSERS.get(key, str)(value)
        except (KeyError, ValueError):
            raise ValueError(f"{key}={value}: not a value of this option") from None
    return name, root, options


@dataclass(frozen=True)
class _Sighting:
    """A person with an identity in a frame."""

    person_id: OriginalID
    sequence: str
    frame: int
    visibility: float
    entry: dict[str, Any]


def choose_queries(
    sightings: Iterable[_Sighting], visibility: float, gap: int
) -> tuple[list[_Sighting], int]:
    """First box of each identity in each sequence that is visible enough and has a match.

    Returns:
        The queries in the order of sequences, then ids, and the number of identities in sequences
        without one.
    """
    people: dict[OriginalID, list[_Sighting]] = defaultdict(list)
    for sighting in sightings:
        people[sighting.person_id].append(sighting)
    chosen, without = [], 0
    for seen in people.values():
        frames: dict[str, list[int]] = defaultdict(list)
        for sighting in seen:
            frames[sighting.sequence].append(sighting.frame)
        for sequence, numbers in frames.items():
            first, last = min(numbers), max(numbers)
            candidates = [
                s
                for s in seen
                if s.sequence == sequence
                and s.visibility >= visibility
                and (len(frames) > 1 or s.frame - first >= gap or last - s.frame >= gap)
            ]
            if candidates:
                chosen.append(min(candidates, key=lambda s: s.frame))
            else:
                without += 1
    texts = {s.person_id: str(s.person_id) for s in chosen}
    chosen.sort(
        key=lambda s: (s.sequence, int(texts[s.person_id].rpartition("/")[2]), texts[s.person_id])
    )
    return chosen, without


def _gap_gallery(loaded: LoadedSplit, gap: int) -> CompactGallery:
    dicts = loaded.dicts
    sequences = np.array([record["image_id"].rpartition("/")[0] for record in dicts])
    frames = np.array([record["frame_id"] for record in dicts])
    boxes = [
        {a["person_id"]: a["bbox"] for a in record["annotations"] if not is_crowd(a)}
        for record in dicts
    ]
    holders: dict[int, list[int]] = defaultdict(list)
    for i, people in enumerate(boxes):
        for row in people:
            holders[row].append(i)
    index = {id(record): i for i, record in enumerate(dicts)}
    queries = [(query, index[id(record)]) for query, record in loaded.queries]
    images: list[np.ndarray] = []
    matches: list[int] = []
    match_boxes: list[list[float]] = []
    counts: list[int] = []
    for query, own in queries:
        near = (sequences == sequences[own]) & (np.abs(frames - frames[own]) < gap)
        near[own] = True
        kept = np.flatnonzero(~near)
        holding = np.array([i for i in holders[query["person_id"]] if not near[i]], np.int64)
        matches += (np.searchsorted(kept, holding) + sum(counts)).tolist()
        match_boxes += [boxes[i][query["person_id"]] for i in holding]
        images.append(kept.astype(np.int32))
        counts.append(len(kept))
    return CompactGallery(
        query_ids=np.array([query["query_id"] for query, _ in queries], dtype=np.int64),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        images=np.concatenate(images),
        match_entries=np.array(matches, dtype=np.int64),
        match_boxes=np.array(match_boxes, dtype=np.float64).reshape(-1, 4),
    )


def _image_id(sequence: Sequence, frame: int) -> str:
    return f"{sequence.name}/{frame:06d}"


def _sizes(sequence: Sequence, paths: list[str]) -> list[tuple[int, int]]:
    """Sizes of the frames: that of ``seqinfo.ini`` if it is there and the first frame has it."""
    if not paths:
        return []
    size = (sequence.info.width, sequence.info.height)
    if None in size:
        return read_image_sizes(paths, sequence.folder)
    found = read_image_size(paths[0])
    if found != size:
        raise ValueError(
            f"{sequence.folder}: seqinfo.ini has {size[0]} x {size[1]}, {paths[0]} is "
            f"{found[0]} x {found[1]}"
        )
    return [found] * len(paths)
