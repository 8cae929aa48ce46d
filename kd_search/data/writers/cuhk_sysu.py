"""Writer of CUHK-SYSU's own format."""

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import numpy as np
from tqdm import tqdm

from kd_search.data.person_search.cuhk_sysu import GALLERY_SIZES, SUBSETS
from kd_search.data.person_search.split import LoadedSplit
from kd_search.data.records import Record, is_crowd, non_crowd
from kd_search.data.writers.common import (
    ImageFolder,
    cell_array,
    people_are_joint,
    refuse_outside_gallery,
    subset_note,
    write_id_file,
    write_mat,
    xywh,
)

#: Image and box (None: the person is not in it) of a gallery entry.
Entry = tuple[str, Optional[Sequence[float]]]


def write_cuhk_sysu(
    folder: Path,
    train: Optional[LoadedSplit],
    test: Optional[LoadedSplit],
    *,
    images: Optional[ImageFolder] = None,
    gallery_sizes: Sequence[int] = (),
    seed: int = 0,
) -> list[str]:
    """Write Images.mat, Person.mat, pool.mat, Train.mat, TestG<size>.mat and ``Image/SSM/``.

    Without ``gallery_sizes``, the galleries of the test set are written unchanged; if it has none,
    new ones are made in the sizes of the release that the set has enough images for. Like those of
    the release, a new gallery has first every box of the person in other images, then images
    without the person, drawn from ``seed``, the size and the number of the query.

    The format has neither cameras nor crowds, and test people without a query have no identity;
    these are counted in the notes.

    Returns:
        Notes on what the format cannot represent.

    Raises:
        ValueError: an image is outside of the gallery, or a gallery cannot have its size.
    """
    images = images or ImageFolder()
    splits = [split for split in (train, test) if split is not None]
    for split in splits:
        refuse_outside_gallery(split, "CUHK-SYSU")
    names = _image_names(splits)
    persons = _person_names(train, test)
    notes: list[str] = []
    entries: list[tuple[str, list[Record]]] = []
    people: dict[str, list[Entry]] = defaultdict(list)
    for split in splits:
        of_split = persons[0] if split is train else persons[1]
        for record in tqdm(split.dicts, desc=f"{split.name} images", disable=None):
            name = names[id(record)]
            images.put(record["file_name"], folder / "Image" / "SSM" / name)
            boxes = non_crowd(record)
            entries.append((name, boxes))
            for annotation in boxes:
                if annotation["person_id"] >= 0:
                    person = of_split[annotation["person_id"]]
                    people[person].append((name, annotation["bbox"]))
    root = folder / "annotation"
    write_mat(root / "Images.mat", "Img", _images_struct(entries))
    write_mat(root / "Person.mat", "Person", _people_struct(list(people.items())))
    pool = [names[id(record)] for record in test.dicts] if test is not None else []
    write_mat(root / "pool.mat", "pool", cell_array(pool))
    if train is not None:
        rows = [(person, people.get(person, [])) for person in persons[0]]
        cells = cell_array([_people_struct([row]) for row in rows])
        write_mat(root / "test" / "train_test" / "Train.mat", "Train", cells)
    if test is not None:
        notes += _write_protocols(root / "test", test, names, persons[1], gallery_sizes, seed)
        if any(a["person_id"] >= 0 for r in test.dicts for a in r["annotations"]):
            notes += _lost_identities(test)
    crowds = sum(is_crowd(a) for s in splits for r in s.dicts for a in r["annotations"])
    if crowds:
        notes.append(f"{crowds} crowd boxes are left out: CUHK-SYSU has none")
    cameras = {r.get("camera_id", -1) for s in splits for r in s.dicts} - {-1}
    if cameras:
        notes.append("cameras and frame numbers are left out: CUHK-SYSU has none")
    return notes + write_id_file(folder, train, test, persons)


class _GalleryMaker:
    """Makes galleries: every box of the person in other images first, then other images.

    Args:
        test: the test set.
        names: name of each image.
        seed: of the choice, with the size and the number of the query.
    """

    def __init__(self, test: LoadedSplit, names: Sequence[str], seed: int) -> None:
        self._test, self._names, self._seed = test, names, seed
        self._index = {id(record): i for i, record in enumerate(test.dicts)}
        self._boxes: dict[int, list[tuple[int, Sequence[float]]]] = defaultdict(list)
        for i, record in enumerate(test.dicts):
            for annotation in non_crowd(record):
                self._boxes[annotation["person_id"]].append((i, annotation["bbox"]))

    def make(self, query: Record, record: Record, size: int) -> list[Entry]:
        """Gallery of a query in the image ``record``.

        Raises:
            ValueError: the person has more boxes than the size, or there are too few other images.
        """
        own = self._index[id(record)]
        matches = [(i, box) for i, box in self._boxes[query["person_id"]] if i != own]
        others = np.setdiff1d(np.arange(len(self._names)), [own, *(i for i, _ in matches)])
        missing = size - len(matches)
        if not 0 <= missing <= len(others):
            raise ValueError(
                f"{self._test.name}: query {query['query_id']} cannot have a gallery of {size}: "
                f"the person is on {len(matches)} boxes, and not in {len(others)} images"
            )
        rng = np.random.default_rng([self._seed, size, query["query_id"]])
        drawn = rng.choice(others, missing, replace=False)
        return [(self._names[i], box) for i, box in matches] + [
            (self._names[i], None) for i in drawn
        ]


def _write_protocols(
    folder: Path,
    test: LoadedSplit,
    names: dict[int, str],
    persons: Sequence[str],
    sizes: Sequence[int],
    seed: int,
) -> list[str]:
    if not test.queries:
        raise ValueError(f"{test.name}: holds no query: there is nothing to search")
    ordered = [names[id(record)] for record in test.dicts]
    notes = []
    if test.galleries and not sizes:
        for name in test.galleries:
            if name in SUBSETS:
                file, key = SUBSETS[name]
                path = folder / "subset" / file
            elif name[:1] == "G" and name[1:].isdecimal():
                path, key = folder / "train_test" / f"Test{name}.mat", f"Test{name}"
            else:
                notes.append(f"gallery {name} is left out: CUHK-SYSU has no such gallery")
                continue
            rows = _known_gallery(test, ordered, name)
            write_mat(path, key, _protocol_struct(rows, names, persons))
        return notes
    most = len(test.dicts) - 1
    sizes = list(sizes) or [size for size in GALLERY_SIZES if size <= most] or [most]
    maker = _GalleryMaker(test, ordered, seed)
    for size in sizes:
        rows = [
            (query, record, maker.make(query, record, size))
            for query, record in tqdm(test.queries, desc=f"gallery of {size}", disable=None)
        ]
        path = folder / "train_test" / f"TestG{size}.mat"
        write_mat(path, f"TestG{size}", _protocol_struct(rows, names, persons))
    return notes + subset_note(test)


def _known_gallery(
    test: LoadedSplit, names: Sequence[str], name: str
) -> list[tuple[Record, Record, list[Entry]]]:
    gallery = test.galleries[name]
    queries = {query["query_id"]: (query, record) for query, record in test.queries}
    rows = []
    for i, query_id in enumerate(gallery["query_ids"].tolist()):
        part = slice(*gallery["offsets"][i : i + 2])
        entries = [
            (names[image], None if np.isnan(box).any() else box.tolist())
            for image, box in zip(gallery["images"][part].tolist(), gallery["boxes"][part])
        ]
        rows.append((*queries[query_id], entries))
    return rows


def _lost_identities(test: LoadedSplit) -> list[str]:
    searched = {query["person_id"] for query, _ in test.queries}
    lost = [
        a["person_id"]
        for record in test.dicts
        for a in record["annotations"]
        if a["person_id"] >= 0 and a["person_id"] not in searched
    ]
    if not lost:
        return []
    return [
        f"{len(lost)} test boxes of {len(set(lost))} people without a query lose their identity"
    ]


def _image_names(splits: list[LoadedSplit]) -> dict[int, str]:
    """Name of the image of each dict, by its ``id()``."""
    records = [record for split in splits for record in split.dicts]
    names = [os.path.basename(record["file_name"]) for record in records]
    if len(set(names)) < len(names):
        names = [f"s{i}{os.path.splitext(name)[1]}" for i, name in enumerate(names, 1)]
    return {id(record): name for record, name in zip(records, names)}


def _person_names(
    train: Optional[LoadedSplit], test: Optional[LoadedSplit]
) -> tuple[list[str], list[str]]:
    """Names of the people of both splits in row order; different people have different names."""
    names: list[list[str]] = []
    for split in (train, test):
        ids = [] if split is None else split.id_map.to_list()
        own = None if split is None else split.metadata.get("person_names")
        names.append(list(own or [i if isinstance(i, str) else f"p{i}" for i in ids]))
    if not people_are_joint(train, test) and set(names[0]) & set(names[1]):
        first = len(names[0]) + 1
        return (
            [f"p{i}" for i in range(1, first)],
            [f"p{i}" for i in range(first, first + len(names[1]))],
        )
    return names[0], names[1]


def _struct(rows: list[Record], fields: tuple[str, ...]) -> np.ndarray:
    """A 1 x n struct array."""
    array = np.empty((1, len(rows)), dtype=[(field, object) for field in fields])
    for i, row in enumerate(rows):
        for field in fields:
            array[field][0, i] = row[field]
    return array


def _located(box: Optional[Sequence[float]]) -> np.ndarray:
    """x, y, w, h in the smallest type of the release, or MATLAB's empty matrix."""
    if box is None:
        return np.zeros((0, 0))
    values = np.array([xywh(box)], dtype=np.float64)
    small = values.astype(np.uint16)
    return small if (small == values).all() else values


def _images_struct(entries: list[tuple[str, list[Record]]]) -> np.ndarray:
    rows = []
    for name, annotations in entries:
        boxes = [{"idlocate": _located(a["bbox"]), "ishard": np.uint8(0)} for a in annotations]
        box = _struct(boxes, ("idlocate", "ishard"))
        rows.append({"imname": name, "nAppear": np.uint16(len(boxes)), "box": box})
    return _struct(rows, ("imname", "nAppear", "box"))


def _people_struct(people: list[tuple[str, list[Entry]]]) -> np.ndarray:
    rows = []
    for person, boxes in people:
        scene = _struct(_entries(boxes), ("imname", "idlocate", "ishard"))
        rows.append({"idname": person, "nAppear": np.uint16(len(boxes)), "scene": scene})
    return _struct(rows, ("idname", "nAppear", "scene"))


def _protocol_struct(
    rows: list[tuple[Record, Record, list[Entry]]],
    names: dict[int, str],
    persons: Sequence[str],
) -> np.ndarray:
    written = []
    for query, record, entries in rows:
        query_entry: Record = {
            "imname": names[id(record)],
            "idlocate": _located(query["bbox"]),
            "ishard": np.uint8(0),
            "idname": persons[query["person_id"]],
        }
        written.append(
            {
                "Query": _struct([query_entry], ("imname", "idlocate", "ishard", "idname")),
                "Gallery": _struct(_entries(entries), ("imname", "idlocate", "ishard")),
            }
        )
    return _struct(written, ("Query", "Gallery"))


def _entries(entries: Sequence[Entry]) -> list[Record]:
    return [
        {
            "imname": name,
            "idlocate": _located(box),
            "ishard": np.zeros((0, 0)) if box is None else np.uint8(0),
        }
        for name, box in entries
    ]
