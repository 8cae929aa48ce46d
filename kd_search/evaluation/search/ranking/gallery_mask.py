"""Which detections each query searches, for several galleries at once, as one bit per gallery."""

from dataclasses import dataclass

import numpy as np

from kd_search.evaluation.matching import expand_ranges
from kd_search.evaluation.search.galleries import Gallery


@dataclass(frozen=True)
class SearchedSet:
    """What views with the same searched detections have in common."""

    gallery: Gallery
    cameras: str
    with_own_image: bool


class SearchedColumns:
    """Membership of detections in the searched sets of each query.

    Args:
        sets: at most 64.
        image_index: (N,) image of each detection.
        num_images: G.
        own_image: (Q,) image of each query, -1 for none.
        searchable: (G,) bool, images of a complete gallery.
        cameras: (G,) camera of each image, -1 unknown.
    """

    def __init__(
        self,
        sets: list[SearchedSet],
        image_index: np.ndarray,
        num_images: int,
        own_image: np.ndarray,
        searchable: np.ndarray,
        cameras: np.ndarray,
    ):
        self.sets = sets
        self._image_index = image_index
        self._own_image = own_image
        self._searchable = searchable
        self._cameras = cameras
        bits = next(n for n in (8, 16, 32, 64) if len(sets) <= n)
        self._dtype = np.dtype(f"uint{bits}")
        #: Bit of each set.
        self.bit = [self._dtype.type(1 << k) for k in range(len(sets))]
        self.num_images = num_images
        self.num_detections = len(image_index)
        self._junk: dict[int, np.ndarray] = {}
        self._by_image = np.argsort(image_index, kind="stable")
        self._is_sorted = bool((np.diff(image_index) >= 0).all())
        self._image_start = np.searchsorted(image_index[self._by_image], np.arange(num_images + 1))

    def start_block(self, start: int, stop: int) -> None:
        """Look at the queries start..stop - 1 from here on."""
        self._start = start
        queries = np.arange(start, stop)
        own = self._own_image[start:stop]
        has_own = np.flatnonzero(own >= 0)
        bits = np.zeros((stop - start, self.num_images), dtype=self._dtype)
        listed = {}
        for k, searched in enumerate(self.sets):
            bit, gallery = self.bit[k], searched.gallery
            if gallery.complete:
                asking = gallery.searched_by(len(self._own_image))[start:stop]
                bits |= np.where(asking[:, None] & self._searchable, bit, self._dtype.type(0))
            if not searched.with_own_image or gallery.complete:
                bits[has_own, own[has_own]] &= ~bit
            if gallery.has_lists:
                if id(gallery) not in listed:
                    offsets = gallery.offsets[start : stop + 1]
                    rows = np.repeat(queries - start, np.diff(offsets))
                    images = gallery.images[offsets[0] : offsets[-1]]
                    listed[id(gallery)] = rows * self.num_images + images
                flat = bits.reshape(-1)
                flat[listed[id(gallery)]] |= bit
                if not searched.with_own_image:
                    bits[has_own, own[has_own]] &= ~bit
            if searched.cameras == "cross_camera":
                self._keep_other_cameras(bits, bit, queries)
        self._bits = bits
        self._junk = {}

    def set_junk(self, k: int, query: np.ndarray, columns: np.ndarray) -> None:
        """Take detections out of set ``k``: (J,) rows of the block, sorted, and their columns."""
        order = np.lexsort((columns, query))
        self._junk[k] = (query[order], columns[order])

    def bits(self, query: int, columns: np.ndarray) -> np.ndarray:
        """(C,) unsigned: bit k of each says whether set k of the query holds the detection.

        Args:
            query: row of the block.
            columns: (C,) ascending.
        """
        member = self._bits[query].take(self._image_index.take(columns))
        for k, junk in self._junk.items():
            unwanted = _of_query(junk, query)
            if len(unwanted) and len(columns):
                place = np.searchsorted(columns, unwanted).clip(max=len(columns) - 1)
                place = place[columns[place] == unwanted]
                member[place] &= ~self.bit[k]
        return member

    def is_junk(self, k: int, query: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """(C,) bool, whether :meth:`set_junk` took these detections out of set ``k``.

        Args:
            query: (C,) rows of the block; columns: (C,).
        """
        if k not in self._junk:
            return np.zeros(len(columns), bool)
        rows, unwanted = self._junk[k]
        count = self.num_detections
        return np.isin(query * count + columns, rows * count + unwanted)

    def asks(self, k: int, query: int) -> bool:
        """Whether the query searches set ``k`` at all."""
        asking = self.sets[k].gallery.queries
        return asking is None or bool(asking[self._start + query])

    def columns_of_set(self, k: int, query: int) -> np.ndarray:
        """Ascending columns of all detections in set ``k`` of the query."""
        wanted = self._bits[query] & self.bit[k]
        columns, _ = self.columns_of_images(wanted.nonzero()[0])
        if not self._is_sorted:
            columns = np.sort(columns)
        if k in self._junk:
            columns = columns[~np.isin(columns, _of_query(self._junk[k], query))]
        return columns

    def columns_of_images(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Columns of the detections of some images, image after image, and how many of each."""
        start = self._image_start[images]
        counts = self._image_start[images + 1] - start
        places = expand_ranges(start, counts)
        return places if self._is_sorted else self._by_image[places], counts

    def count_images(self, k: int) -> np.ndarray:
        """(B,) images in set ``k`` of each query of the block."""
        return np.count_nonzero(self._bits & self.bit[k], axis=1)

    def list_position(self, gallery: Gallery, query: int, images: np.ndarray) -> np.ndarray:
        """(C,) place of images in the query's list; after the list, all others in order."""
        if not gallery.has_lists:
            return images
        first, last = gallery.offsets[self._start + query : self._start + query + 2]
        listed, position = np.unique(gallery.images[first:last], return_index=True)
        place = np.searchsorted(listed, images).clip(max=max(len(listed) - 1, 0))
        found = listed[place] == images if len(listed) else np.zeros(len(images), bool)
        rest = last - first + images
        return np.where(found, position[place], rest) if len(listed) else rest

    def _keep_other_cameras(self, bits, bit, queries) -> None:
        camera = camera_of_queries(self._cameras, self._own_image[queries])
        other = (self._cameras != camera[:, None]) & (self._cameras >= 0) & (camera[:, None] >= 0)
        bits &= np.where(other, self._dtype.type(~self._dtype.type(0)), ~bit)


def camera_of_queries(cameras: np.ndarray, own_image: np.ndarray) -> np.ndarray:
    """(Q,) camera of the image of each query; -1 where the query has no image or no camera."""
    padded = np.append(cameras, -1)
    return padded[np.where(own_image >= 0, own_image, -1)]


def _of_query(junk: tuple[np.ndarray, np.ndarray], query: int) -> np.ndarray:
    rows, columns = junk
    first, last = np.searchsorted(rows, (query, query + 1))
    return columns[first:last]
