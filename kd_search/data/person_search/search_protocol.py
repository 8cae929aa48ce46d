"""Search protocols: CUHK-SYSU's files, and galleries that are read on access."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Callable

import numpy as np
from detectron2.utils.file_io import PathManager

from kd_search.data.io.mat import check_mat_version, numbers_of, read_mat, struct_entries, text_of
from kd_search.data.io.mat_stream import (
    OtherLayoutError,
    is_empty_at,
    iterate_structs,
    numbers_at,
    struct_cells,
    texts_at,
)

logger = logging.getLogger(__name__)

_QUERY = ("imname", "idlocate", "idname")
_GALLERY = ("imname", "idlocate")


@dataclass
class SearchProtocol:
    """Content of one protocol file; boxes are XYWH in absolute pixels, as in the file."""

    #: File and variable, for messages.
    where: str
    #: Image, box (Q, 4) and person of each query.
    query_images: list[str]
    query_boxes: np.ndarray
    query_names: list[str]
    #: (Q + 1,) int64; entries ``offsets[q]:offsets[q + 1]`` are the gallery of query q.
    offsets: np.ndarray
    #: (E,) bytes; image of each entry.
    entry_images: np.ndarray
    #: (M,) int64; the entries that have a box, ascending, and the boxes (M, 4).
    match_entries: np.ndarray
    match_boxes: np.ndarray

    def query_at(self, query: int) -> str:
        """Name of a query for messages."""
        return f"{self.where}({query + 1}).Query"

    def entry_at(self, entry: int) -> str:
        """Name of a gallery entry for messages."""
        query = int(np.searchsorted(self.offsets, entry, side="right")) - 1
        return f"{self.where}({query + 1}).Gallery({entry - int(self.offsets[query]) + 1})"


def read_search_protocol(path: str, key: str) -> SearchProtocol:
    """Read a file whose variable is a struct array with the fields ``Query`` and ``Gallery``.

    ``Query`` is one struct with ``imname``, ``idlocate`` (x, y, w, h) and ``idname``, ``Gallery`` a
    struct array with ``imname`` and ``idlocate``, which is empty where the person is not in the
    image. Other fields are ignored.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no MAT-file or has another structure; the line has file and entry.
    """
    check_mat_version(path)
    where = f"{path}: {key}"
    try:
        with PathManager.open(path, "rb") as stream:
            return _Collector(where).take_stream(stream, key)
    except OtherLayoutError:
        logger.debug("Reading %s with scipy", path)
    return _Collector(where).take_array(read_mat(path, key))


class _Collector:
    """Builds a :class:`SearchProtocol`, query by query."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.images: list[str] = []
        self.boxes: list[np.ndarray] = []
        self.names: list[str] = []
        self.counts: list[int] = []
        self.entry_images: list[np.ndarray] = []
        self.match_entries: list[int] = []
        self.match_boxes: list[np.ndarray] = []
        self.entries = 0

    def take_stream(self, stream: BinaryIO, key: str) -> SearchProtocol:
        for number, entry in enumerate(iterate_structs(stream, key), 1):
            at = f"{self.where}({number})"
            if "Query" not in entry or "Gallery" not in entry:
                raise OtherLayoutError
            self._add_query(*_query_cells(entry["Query"], at), at)
            matrix = entry["Gallery"]
            begins, sizes = _columns(matrix, _GALLERY)
            for i in np.flatnonzero(sizes[1]).tolist():
                if not is_empty_at(matrix, begins[1][i], sizes[1][i]):
                    box = numbers_at(matrix, begins[1][i], sizes[1][i])
                    self._add_match(i, box, f"{at}.Gallery({i + 1}).idlocate")
            self._add_entries(texts_at(matrix, begins[0], sizes[0]))
        return self._done()

    def take_array(self, array: np.ndarray) -> SearchProtocol:
        for at, entry in struct_entries(array, ("Query", "Gallery"), self.where):
            queries = list(struct_entries(entry["Query"], _QUERY, f"{at}.Query"))
            if len(queries) != 1:
                raise ValueError(f"{at}.Query: expected one query, got {len(queries)}")
            query = queries[0][1]
            self._add_query(
                text_of(query["imname"], f"{at}.Query.imname"),
                query["idlocate"],
                text_of(query["idname"], f"{at}.Query.idname"),
                at,
            )
            images = []
            for i, (where, item) in enumerate(
                struct_entries(entry["Gallery"], _GALLERY, f"{at}.Gallery")
            ):
                images.append(text_of(item["imname"], f"{where}.imname").encode())
                if np.asarray(item["idlocate"]).size:
                    self._add_match(i, item["idlocate"], f"{where}.idlocate")
            self._add_entries(np.array(images, dtype=bytes))
        return self._done()

    def _add_query(self, image: str, box: Any, name: str, at: str) -> None:
        box = numbers_of(box, 4, f"{at}.Query.idlocate")
        if not len(box):
            raise ValueError(f"{at}.Query.idlocate: the query has no box")
        self.images.append(image)
        self.boxes.append(box)
        self.names.append(name)

    def _add_match(self, entry: int, box: Any, where: str) -> None:
        self.match_entries.append(self.entries + entry)
        self.match_boxes.append(numbers_of(box, 4, where))

    def _add_entries(self, images: np.ndarray) -> None:
        self.entry_images.append(images)
        self.counts.append(len(images))
        self.entries += len(images)

    def _done(self) -> SearchProtocol:
        if not self.images:
            raise ValueError(f"{self.where}: holds no query")
        return SearchProtocol(
            where=self.where,
            query_images=self.images,
            query_boxes=np.array(self.boxes),
            query_names=self.names,
            offsets=np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64),
            entry_images=np.concatenate(self.entry_images),
            match_entries=np.array(self.match_entries, dtype=np.int64),
            match_boxes=np.array(self.match_boxes).reshape(-1, 4),
        )


def _query_cells(matrix: bytes, at: str) -> tuple[str, np.ndarray, str]:
    begins, sizes = _columns(matrix, _QUERY)
    if len(begins[0]) != 1:
        raise ValueError(f"{at}.Query: expected one query, got {len(begins[0])}")
    image, name = (texts_at(matrix, begins[i], sizes[i])[0].decode("utf-8") for i in (0, 2))
    return image, numbers_at(matrix, int(begins[1][0]), int(sizes[1][0])), name


def _columns(matrix: bytes, wanted: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Starts and sizes of the cells of the wanted fields, (F, n) each."""
    fields, begins, sizes = struct_cells(matrix)
    try:
        columns = [fields.index(name) for name in wanted]
    except ValueError:
        raise OtherLayoutError from None
    return begins[:, columns].T, sizes[:, columns].T


# Galleries ---------------------------------------------------------------------------------------

#: Key of a query in protocol files: image and box (x, y, w, h).
QueryKey = tuple[str, float, float, float, float]


@dataclass
class CompactGallery:
    """One gallery; only the entries that contain the person have a box."""

    query_ids: np.ndarray  # (Q,) int64
    offsets: np.ndarray  # (Q + 1,) int64
    images: np.ndarray  # (E,) int32, index among the dataset dicts
    match_entries: np.ndarray  # (M,) int64, ascending
    match_boxes: np.ndarray  # (M, 4) float64, XYXY

    def expand(self) -> dict[str, np.ndarray]:
        """The arrays of :data:`~kd_search.data.person_search.split.Galleries`."""
        boxes = np.full((len(self.images), 4), np.nan)
        boxes[self.match_entries] = self.match_boxes
        return {
            "query_ids": self.query_ids.copy(),
            "offsets": self.offsets.copy(),
            "images": self.images.astype(np.int64),
            "boxes": boxes,
        }


class SearchGalleries(Mapping):
    """Mapping from the names of galleries to their arrays, which are read on first access.

    Galleries are kept in a compact form (4 bytes an entry); each access makes new arrays of
    :data:`~kd_search.data.person_search.split.Galleries` (40 bytes an entry, 464 MB for CUHK-SYSU's
    largest gallery), so keep these only while they are needed.

    Args:
        readers: function that reads each gallery, in the order of the names.
    """

    def __init__(self, readers: Mapping[str, Callable[[], CompactGallery]]) -> None:
        self._readers = dict(readers)
        self._compact: dict[str, CompactGallery] = {}

    def __getitem__(self, name: str) -> dict[str, np.ndarray]:
        return self.compact(name).expand()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    # Compared by identity: equality would compare hundreds of megabytes.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"SearchGalleries({', '.join(self)})"

    def compact(self, name: str) -> CompactGallery:
        """A gallery without the rows of entries that have no box.

        Raises:
            KeyError: there is no such gallery.
            ValueError: its file does not match the data set; the line has the file and the entry.
        """
        if name not in self._compact:
            self._compact[name] = self._readers[name]()
        return self._compact[name]


def compact_gallery(
    protocol: SearchProtocol, queries: Mapping[QueryKey, int], image_names: Sequence[str]
) -> CompactGallery:
    """Convert the queries and images of a protocol file to the indices of a data set.

    Args:
        protocol: content of the file.
        queries: query ids of the data set.
        image_names: names of the images of the data set, in the order of its dataset dicts.

    Raises:
        ValueError: a query or image of the file is not in the data set; the line has the file and
            the entry.
    """
    query_ids = np.zeros(len(protocol.query_images), np.int64)
    for i, key in enumerate(query_keys(protocol)):
        if key not in queries:
            raise ValueError(
                f"{protocol.query_at(i)}: box {list(key[1:])} in {key[0]} is no query of the set"
            )
        query_ids[i] = queries[key]
    images = _indices(protocol, image_names)
    boxes = protocol.match_boxes.copy()
    boxes[:, 2:] += boxes[:, :2]
    _warn(protocol)
    return CompactGallery(query_ids, protocol.offsets, images, protocol.match_entries, boxes)


def query_keys(protocol: SearchProtocol) -> list[QueryKey]:
    """Keys of the queries of a protocol file."""
    return [
        (image, float(x), float(y), float(w), float(h))
        for image, (x, y, w, h) in zip(protocol.query_images, protocol.query_boxes.tolist())
    ]


def _indices(protocol: SearchProtocol, image_names: Sequence[str]) -> np.ndarray:
    names = np.array([name.encode() for name in image_names], dtype=bytes)
    order = np.argsort(names, kind="stable")
    places = np.searchsorted(names, protocol.entry_images, sorter=order)
    images = order[np.minimum(places, len(names) - 1)].astype(np.int32)
    unknown = np.flatnonzero(names[images] != protocol.entry_images)
    if len(unknown):
        name = protocol.entry_images[unknown[0]].decode("utf-8", "replace")
        raise ValueError(
            f"{protocol.entry_at(unknown[0])}: image {name} is not in the set; {len(unknown)} "
            "entries of the file have such images"
        )
    return images


def _warn(protocol: SearchProtocol) -> None:
    matched = np.zeros(len(protocol.entry_images), bool)
    matched[protocol.match_entries] = True
    counts = np.diff(np.concatenate([[0], np.cumsum(matched)])[protocol.offsets])
    if (counts == 0).any():
        first = int(np.flatnonzero(counts == 0)[0])
        logger.warning(
            "%d of %d queries have no match in their gallery, the first is %s",
            int((counts == 0).sum()),
            len(counts),
            protocol.query_at(first),
        )
    flat = (protocol.match_boxes[:, 2:] <= 0).any(axis=1)
    if flat.any():
        entry = int(protocol.match_entries[np.flatnonzero(flat)[0]])
        logger.warning(
            "%d boxes of the gallery have no area, the first is %s: these matches cannot be found",
            int(flat.sum()),
            protocol.entry_at(entry),
        )
