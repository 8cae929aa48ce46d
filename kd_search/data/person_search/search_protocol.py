"""CUHK-SYSU's protocol files: queries and the images of their galleries."""

import logging
from dataclasses import dataclass

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

    def take_stream(self, stream, key: str) -> SearchProtocol:
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

    def _add_query(self, image: str, box, name: str, at: str) -> None:
        box = numbers_of(box, 4, f"{at}.Query.idlocate")
        if not len(box):
            raise ValueError(f"{at}.Query.idlocate: the query has no box")
        self.images.append(image)
        self.boxes.append(box)
        self.names.append(name)

    def _add_match(self, entry: int, box, where: str) -> None:
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
