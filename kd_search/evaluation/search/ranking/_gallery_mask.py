"""Which detections each query searches, for several gallery protocols at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kd_search.evaluation.matching import expand_ranges
from kd_search.evaluation.search.galleries import Gallery, GalleryProtocol
from kd_search.evaluation.similarity import above, candidates_of_best

# Number of best detections that :meth:`GalleryMask.most_similar` ranks first for several sets.
_LOOK_AT = 256
# Detections from which the bound on their similarity is estimated.
_SAMPLE = 1024


@dataclass(frozen=True)
class SearchedSet:
    """What determines the searched detections; protocols with equal values share a set."""

    gallery: Gallery
    cameras: str
    with_own_image: bool


class GalleryMask:
    """Membership of detections in the searched sets of each query, as one bit per set.

    Args:
        protocols: with at most 64 different searched sets.
        image_index: (N,) image of each detection.
        own_image: (Q,) image of each query, -1 for none.
        searchable: (G,) bool, images of a complete gallery.
        cameras: (G,) camera of each image, -1 unknown.
    """

    def __init__(
        self,
        protocols: Sequence[GalleryProtocol],
        image_index: np.ndarray,
        own_image: np.ndarray,
        searchable: np.ndarray,
        cameras: np.ndarray,
    ):
        self.searchable, self.cameras = searchable, cameras
        self.image_index, self._own_image = image_index, own_image
        #: (Q,) camera of the image of each query, -1 without image or camera.
        self.camera_of_query = np.append(cameras, -1)[np.where(own_image >= 0, own_image, -1)]
        searched = self._searched_sets(protocols)
        self.sets = list(dict.fromkeys(searched))
        #: Set of each protocol, as an index into ``sets``.
        self.set_of = [self.sets.index(s) for s in searched]
        bits = next(n for n in (8, 16, 32, 64) if len(self.sets) <= n)
        self._dtype = np.dtype(f"uint{bits}")
        self._bit = [self._dtype.type(1 << k) for k in range(len(self.sets))]
        self.num_images = len(searchable)
        self._by_image = np.argsort(image_index, kind="stable")
        self._is_sorted = bool((np.diff(image_index) >= 0).all())
        bounds = np.arange(self.num_images + 1)
        self._image_start = np.searchsorted(image_index[self._by_image], bounds)

    def start_block(self, start: int, stop: int) -> None:
        """Switch to the queries start..stop - 1; rows below count from ``start``."""
        self._start = start
        own = self._own_image[start:stop]
        has_own = np.flatnonzero(own >= 0)
        camera = self.camera_of_query[start:stop, None]
        bits = np.zeros((stop - start, self.num_images), dtype=self._dtype)
        listed: dict[int, np.ndarray] = {}
        for bit, searched in zip(self._bit, self.sets):
            gallery = searched.gallery
            if gallery.complete:
                searching = gallery.searched_by(len(self._own_image))[start:stop]
                bits |= np.where(searching[:, None] & self.searchable, bit, self._dtype.type(0))
            if not searched.with_own_image or gallery.complete:
                bits[has_own, own[has_own]] &= ~bit
            if gallery.has_lists:
                if id(gallery) not in listed:
                    offsets = gallery.offsets[start : stop + 1]
                    rows = np.repeat(np.arange(stop - start), np.diff(offsets))
                    images = gallery.images[offsets[0] : offsets[-1]]
                    listed[id(gallery)] = rows * self.num_images + images
                bits.reshape(-1)[listed[id(gallery)]] |= bit
                if not searched.with_own_image:
                    bits[has_own, own[has_own]] &= ~bit
            if searched.cameras == "cross_camera":
                other = (self.cameras != camera) & (self.cameras >= 0) & (camera >= 0)
                bits &= np.where(other, self._dtype.type(~self._dtype.type(0)), ~bit)
        self._bits = bits
        self._junk: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def set_junk(self, k: int, rows: np.ndarray, columns: np.ndarray) -> None:
        """Take detections (J,) out of set ``k`` of the queries (J,)."""
        order = np.lexsort((columns, rows))
        self._junk[k] = rows[order], columns[order]

    def bits(self, row: int, columns: np.ndarray) -> np.ndarray:
        """(C,) unsigned: bit k says whether set k of a query holds the ascending detections."""
        member: np.ndarray = self._bits[row].take(self.image_index.take(columns))
        for k in self._junk:
            junk = self._junk_of(k, row)
            if len(junk) and len(columns):
                place = np.searchsorted(columns, junk).clip(max=len(columns) - 1)
                place = place[columns[place] == junk]
                member[place] &= ~self._bit[k]
        return member

    def is_junk(self, k: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """(C,) bool, whether detections (C,) are junk in set ``k`` of the queries (C,)."""
        if k not in self._junk:
            return np.zeros(len(columns), bool)
        count, (junk_rows, junk) = len(self.image_index), self._junk[k]
        return np.isin(rows * count + columns, junk_rows * count + junk)

    def columns_of_images(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Columns of the detections of some images, image after image, and their numbers."""
        start = self._image_start[images]
        counts = self._image_start[images + 1] - start
        places = expand_ranges(start, counts)
        return places if self._is_sorted else self._by_image[places], counts

    def count_images(self, k: int) -> np.ndarray:
        """(B,) images in set ``k`` of each query of the block."""
        return np.count_nonzero(self._bits & self._bit[k], axis=1)

    def list_position(self, gallery: Gallery, row: int, images: np.ndarray) -> np.ndarray:
        """(C,) place of images in the query's list; all others follow in order."""
        if not gallery.has_lists:
            return images
        first, last = gallery.offsets[self._start + row : self._start + row + 2]
        listed, position = np.unique(gallery.images[first:last], return_index=True)
        rest: np.ndarray = last - first + images
        if not len(listed):
            return rest
        place = np.searchsorted(listed, images).clip(max=len(listed) - 1)
        return np.where(listed[place] == images, position[place], rest)

    def most_similar(
        self, row: int, similarity: np.ndarray, sets: Sequence[int], count: int
    ) -> dict[int, np.ndarray]:
        """Find the most similar detections in several sets of a query.

        Args:
            similarity: (columns,) of the query.
            sets: indices into ``sets``.
            count: at least 1.

        Returns:
            by set (K,) columns, K at most ``count``, best first, equals in order.
        """
        total = len(self.image_index)
        if len(sets) > 1:
            # Any bound will do: sets that it leaves too few for are searched again.
            sample = similarity[:: max(1, total // _SAMPLE)]
            place = max(1, len(sample) * max(count, _LOOK_AT) // max(total, 1))
            place = min(place, len(sample))
            candidates = above(similarity, np.partition(sample, -place)[-place])
        else:
            candidates = candidates_of_best(similarity, 2 * count)
        order = (-similarity[candidates]).argsort(kind="stable")
        top, member = candidates[order], self.bits(row, candidates)[order]
        best = {}
        for k in sets:
            searching = self.sets[k].gallery.queries
            if searching is not None and not searching[self._start + row]:
                best[k] = top[:0]
                continue
            best[k] = top[(member & self._bit[k]).nonzero()[0][:count]]
            if len(best[k]) < count and len(top) < total:
                best[k] = self._most_similar_of_all(k, row, similarity, count)
        return best

    def _most_similar_of_all(
        self, k: int, row: int, similarity: np.ndarray, count: int
    ) -> np.ndarray:
        columns, _ = self.columns_of_images((self._bits[row] & self._bit[k]).nonzero()[0])
        if not self._is_sorted:
            columns = np.sort(columns)
        if k in self._junk:
            columns = columns[~np.isin(columns, self._junk_of(k, row))]
        values = similarity[columns]
        if len(columns) > 4 * count:
            near = (values >= np.partition(values, -count)[-count]).nonzero()[0]
            columns, values = columns[near], values[near]
        best: np.ndarray = columns[(-values).argsort(kind="stable")[:count]]
        return best

    def _junk_of(self, k: int, row: int) -> np.ndarray:
        rows, columns = self._junk[k]
        first, last = np.searchsorted(rows, (row, row + 1))
        return columns[first:last]

    def _searched_sets(self, protocols: Sequence[GalleryProtocol]) -> list[SearchedSet]:
        galleries = (p.gallery for p in protocols if not p.gallery.has_lists)
        whole = next((g for g in galleries if g.complete), Gallery())
        lists_own_image: dict[int, bool] = {}  # by identity of the images: there may be millions
        searched = []
        for protocol in protocols:
            gallery, own_listed = protocol.gallery, False
            if protocol.mode == "compat" and gallery.has_lists:
                key = id(gallery.images)
                if key not in lists_own_image:
                    own = self._own_image.astype(gallery.images.dtype)
                    own = np.repeat(own, np.diff(gallery.offsets))
                    lists_own_image[key] = bool((own == gallery.images).any())
                own_listed = lists_own_image[key]
            if (
                gallery.complete
                and gallery.has_lists
                and not own_listed
                and gallery.queries is None
                and protocol.cameras != "junk_same_camera"
                and self.searchable[gallery.images].all()
            ):
                # List and rest are all images but the query's own. Only the junk is the list's.
                gallery = whole
            searched.append(SearchedSet(gallery, protocol.cameras, own_listed))
        return searched
