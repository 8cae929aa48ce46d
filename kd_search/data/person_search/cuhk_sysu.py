"""CUHK-SYSU in the format of its release."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Optional

from kd_search.data.io.image import read_image_sizes
from kd_search.data.person_search.cuhk_sysu_mat import Box, read_images, read_people, read_pool
from kd_search.data.person_search.id_map import IDMap
from kd_search.data.person_search.search_protocol import (
    CompactGallery,
    QueryKey,
    SearchGalleries,
    SearchProtocol,
    compact_gallery,
    query_keys,
    read_search_protocol,
)
from kd_search.data.person_search.split import LoadedSplit
from kd_search.data.records import Record, person_annotation, xyxy

logger = logging.getLogger(__name__)

#: Sizes of the galleries of the release.
GALLERY_SIZES = (50, 100, 500, 1000, 2000, 4000)
#: File and variable of the galleries of subsets, by their names.
SUBSETS = {
    "occlusion": ("Occlusion.mat", "Occlusion1"),
    "resolution": ("Resolution.mat", "Test_Size"),
}


@dataclass(frozen=True)
class CUHKSYSUFiles:
    """A split of CUHK-SYSU; a :class:`~kd_search.data.person_search.split.SplitSource`.

    - A training identity is its row in Train.mat, from 0, as in tables of other programs. A test
      identity is its name in the protocol ("p123").
    - Queries and identities of the test set are those of the smallest gallery file (TestG50 in the
      release). A person in an image has an identity if its box is exactly that of a query, of a
      match in that file, or of Train.mat; all others are unlabelled.
    - ``search_galleries`` of the metadata holds every TestG<size>.mat as "G<size>", and the subsets
      "occlusion" and "resolution"; each is read on access. A query of a subset alone has the name
      of the subset under ``subset`` and is in no other gallery.
    - Boxes without area are left out and counted; other boxes are those of the file, also where
      they stick out of their image.
    - With ``clip=False``, the notes compare Person.mat with the labels.
    """

    #: Folder with annotation/ and Image/SSM/.
    root: str
    #: "train" or "test".
    split: str

    @property
    def id_space(self) -> Optional[str]:
        return "cuhk_sysu" if self.split == "test" else "cuhk_sysu rows of Train.mat"

    def load(self, *, clip: bool = True) -> LoadedSplit:
        """Read the split; see :class:`~kd_search.data.person_search.split.SplitSource`."""
        boxes = read_images(self._annotation("Images.mat"))
        pool = self._pool(boxes)
        tested = set(pool)
        chosen = pool if self.split == "test" else [name for name in boxes if name not in tested]
        labels = _Labels({name: boxes[name] for name in chosen}, set(boxes))
        image_root = os.path.join(self.root, "Image", "SSM")
        metadata: dict[str, Any] = {"cuhk_sysu_root": self.root, "image_root": image_root}
        queries: dict[str, list[Record]] = {}
        notes: list[str] = []
        if self.split == "test":
            id_map = self._read_test(chosen, labels, queries, metadata, notes)
        else:
            people = read_people(self._train_test("Train.mat"), "Train")
            for row, person in enumerate(people):
                for image, box in person.scenes:
                    labels.set(image, box, row, person.where)
            id_map = IDMap(range(len(people)))
            metadata["person_names"] = tuple(person.name for person in people)
        paths = [os.path.join(image_root, name) for name in chosen]
        dicts = self._dicts(chosen, paths, labels, queries, clip, notes)
        notes += labels.notes()
        if not clip:
            notes.append(self._compare_people(dicts))
        return LoadedSplit(dicts, id_map, metadata, notes)

    def _compare_people(self, dicts: list[Record]) -> str:
        path = self._annotation("Person.mat")
        if not os.path.isfile(path):
            return "Person.mat is missing: identities not compared with it"
        unlabelled = {
            (record["image_id"], *annotation["bbox"])
            for record in dicts
            for annotation in record["annotations"]
            if annotation["person_id"] < 0
        }
        counts = [
            sum((image, *xyxy(box)) in unlabelled for image, box in person.scenes)
            for person in read_people(path, "Person")
        ]
        return (
            f"Person.mat has {sum(counts)} of the unlabelled boxes, of "
            f"{sum(count > 0 for count in counts)} people who are neither queries nor in Train.mat"
        )

    def _annotation(self, *names: str) -> str:
        return os.path.join(self.root, "annotation", *names)

    def _train_test(self, name: str) -> str:
        return self._annotation("test", "train_test", name)

    def _pool(self, boxes: dict[str, list[Box]]) -> list[str]:
        path = self._annotation("pool.mat")
        pool = read_pool(path)
        for number, name in enumerate(pool, 1):
            if name not in boxes:
                raise ValueError(f"{path}: pool({number}): {name} is not in Images.mat")
        if not pool and self.split == "test":
            raise ValueError(f"{path}: pool names no image")
        return pool

    def _read_test(
        self,
        names: list[str],
        labels: "_Labels",
        queries: dict[str, list[Record]],
        metadata: dict[str, Any],
        notes: list[str],
    ) -> IDMap:
        """Read labels, queries and galleries of the protocol; return the id map of its people."""
        files = self._gallery_files(notes)
        sizes = list(files)
        base = read_search_protocol(*files[sizes[0]])
        ids = query_ids(base)
        subsets: dict[str, SearchProtocol] = {}
        for name, (file, key) in SUBSETS.items():
            # The first place is that of the release, the second that of some copies.
            places = [self._annotation("test", "subset", file), self._annotation("subset", file)]
            path = next(filter(os.path.isfile, places), None)
            if path is None:
                notes.append(f"without {file}: this gallery is absent")
            else:
                subsets[name] = read_search_protocol(path, key)
        extra: dict[QueryKey, tuple[str, str]] = {}
        for subset, protocol in subsets.items():
            for query, person in zip(query_keys(protocol), protocol.query_names):
                if query not in ids:
                    ids[query] = len(ids)
                    extra[query] = (subset, person)
        id_map = IDMap(base.query_names + [person for _, person in extra.values()])
        for i, query in enumerate(query_keys(base)):
            row, where = id_map.row(base.query_names[i]), base.query_at(i)
            labels.set(query[0], _box(query[1:]), row, where)
            _add_query(queries, query, i, row, labels, where)
        for query, (subset, person) in extra.items():
            where = f"{subsets[subset].where}: query in {query[0]}"
            entry = _add_query(queries, query, ids[query], id_map.row(person), labels, where)
            entry["subset"] = subset
        for match, box in zip(base.match_entries.tolist(), base.match_boxes.tolist()):
            i = int(base.offsets.searchsorted(match, side="right")) - 1
            row = id_map.row(base.query_names[i])
            labels.set(base.entry_images[match].decode(), _box(box), row, base.entry_at(match))
        if extra:
            notes.append(f"{len(extra)} queries are in a subset only")
        readers = {
            size: partial(_gallery, path, key, ids, names) for size, (path, key) in files.items()
        }
        readers[sizes[0]] = partial(compact_gallery, base, ids, names)
        for subset, protocol in subsets.items():
            readers[subset] = partial(compact_gallery, protocol, ids, names)
        metadata["search_galleries"] = SearchGalleries(readers)
        return id_map

    def _gallery_files(self, notes: list[str]) -> dict[str, tuple[str, str]]:
        """Path and variable of each gallery by its name, small ones first."""
        folder = self._train_test("")
        names = os.listdir(folder) if os.path.isdir(folder) else []
        found = sorted(
            int(match[1]) for match in map(re.compile(r"TestG(\d+)\.mat").fullmatch, names) if match
        )
        if not found:
            raise FileNotFoundError(f"{folder}: no TestG<size>.mat, such as TestG50.mat")
        missing = [f"TestG{size}.mat" for size in GALLERY_SIZES if size not in found]
        if missing:
            notes.append(f"without {', '.join(missing)}: these galleries are absent")
        if found[0] != GALLERY_SIZES[0]:
            notes.append(f"queries and identities are those of TestG{found[0]}.mat")
        return {
            f"G{size}": (os.path.join(folder, f"TestG{size}.mat"), f"TestG{size}") for size in found
        }

    def _dicts(
        self,
        names: list[str],
        paths: list[str],
        labels: "_Labels",
        queries: dict[str, list[Record]],
        clip: bool,
        notes: list[str],
    ) -> list[Record]:
        source = "pool.mat" if self.split == "test" else "Images.mat"
        sizes = read_image_sizes(paths, self._annotation(source))
        dicts: list[Record] = []
        flat = 0
        for name, path, (width, height) in zip(names, paths, sizes):
            annotations = []
            for box, row in labels.of(name):
                if clip and (box[2] <= 0 or box[3] <= 0):
                    flat += 1
                    continue
                annotations.append(person_annotation(xyxy(box), row))
            dicts.append(
                {
                    "file_name": path,
                    "image_id": name,
                    "height": height,
                    "width": width,
                    "camera_id": -1,
                    "frame_id": -1,
                    "in_gallery": True,
                    "annotations": annotations,
                }
            )
            if name in queries:
                dicts[-1]["queries"] = queries[name]
        if flat:
            notes.append(f"{flat} boxes without area are left out")
        return dicts


def query_ids(protocol: SearchProtocol) -> dict[QueryKey, int]:
    """Numbers of the queries of a protocol file, in its order.

    Raises:
        ValueError: two queries are the same box.
    """
    ids: dict[QueryKey, int] = {}
    for i, key in enumerate(query_keys(protocol)):
        if ids.setdefault(key, i) != i:
            raise ValueError(
                f"{protocol.query_at(i)}: the same box as {protocol.query_at(ids[key])}"
            )
    return ids


class _Labels:
    """Rows of the boxes of a split, which are found by exact equality."""

    def __init__(self, boxes: dict[str, list[Box]], known: set[str]) -> None:
        self._boxes = boxes
        self._known = known
        self._rows = {name: [-1] * len(entries) for name, entries in boxes.items()}
        #: Of equal boxes in an image, the first one is labelled.
        self._places = {
            name: {box: i for i, box in reversed(list(enumerate(entries)))}
            for name, entries in boxes.items()
        }
        self._counts: Counter = Counter()
        self._first: dict[str, str] = {}

    def __contains__(self, image: str) -> bool:
        return image in self._boxes

    def set(self, image: str, box: Box, row: int, where: str) -> None:
        if image not in self._known:
            raise ValueError(f"{where}: image {image} is not in Images.mat")
        if image not in self._boxes:
            self._count("are in images of the other split and are left out", where)
            return
        place = self._places[image].get(box)
        if place is None:
            self._count("are not among the boxes of Images.mat and are ignored", where)
            return
        # As in other readers of the release, the last label counts.
        if self._rows[image][place] not in (-1, row):
            self._count("replace another identity of the same box", where)
        self._rows[image][place] = row

    def of(self, image: str) -> Iterator[tuple[Box, int]]:
        return zip(self._boxes[image], self._rows[image])

    def notes(self) -> list[str]:
        return [
            f"{count} boxes with an identity {what}; the first is {self._first[what]}"
            for what, count in self._counts.items()
        ]

    def _count(self, what: str, where: str) -> None:
        self._counts[what] += 1
        self._first.setdefault(what, where)


def _gallery(path: str, key: str, ids: dict[QueryKey, int], names: list[str]) -> CompactGallery:
    logger.info("Reading %s", path)
    return compact_gallery(read_search_protocol(path, key), ids, names)


def _add_query(
    queries: dict[str, list[Record]],
    key: QueryKey,
    query_id: int,
    row: int,
    labels: _Labels,
    where: str,
) -> Record:
    image, box = key[0], key[1:]
    if image not in labels:
        raise ValueError(f"{where}: image {image} is not in pool.mat")
    if box[2] <= 0 or box[3] <= 0:
        raise ValueError(f"{where}: the box {list(box)} has no area")
    query = {"query_id": query_id, "bbox": xyxy(box), "person_id": row}
    queries.setdefault(image, []).append(query)
    return query


def _box(numbers: Iterable[float]) -> Box:
    x, y, w, h = numbers
    return x, y, w, h
