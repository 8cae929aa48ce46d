"""Galleries of a search protocol, compact in memory and read on access."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Callable

import numpy as np

from kd_search.data.person_search.search_protocol import SearchProtocol

logger = logging.getLogger(__name__)

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
