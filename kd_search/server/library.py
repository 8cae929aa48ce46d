"""The gallery as the server uses it, from several threads and while others write to it."""

import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from kd_search.gallery import Filter, Gallery, GalleryError, Hit
from kd_search.gallery.database import StaleError
from kd_search.gallery.marks import Marks
from kd_search.gallery.ranking import ranked
from kd_search.gallery.scenes import read_scene
from kd_search.utils.pictures import ImageError
from kd_search.visualization.drawing import crop, fit, jpeg_bytes

from .errors import ApiError
from .listing import Listing

#: Seconds between looks whether somebody has written to the gallery, and between readings of the
#: list of all files.
_REFRESH, _RELIST = 1.0, 15.0
#: Largest width and height of a picture, in pixels; of people, with a margin around them.
SIZES = {"small": (720, 720), "large": (2000, 2000), "person": (320, 640)}
_MARGIN = 0.12
_CACHED_BYTES = 64_000_000


@dataclass(frozen=True)
class Scene:
    """A picture or a frame of a video."""

    hit: Hit
    #: Everybody in it.
    people: Sequence[Hit]
    #: Ids of somebody in the picture before and after it at the same camera.
    previous: Optional[str]
    next: Optional[str]


class Library:
    """A gallery for many requests at once."""

    def __init__(self, gallery: Gallery, calibration: Optional[Mapping[str, Any]], max_pixels: int):
        """
        Args:
            gallery: open.
            calibration: of the network's manifest.
            max_pixels: pictures with more are not read.
        """
        self._gallery, self._calibration, self._max_pixels = gallery, calibration, max_pixels
        self._lock = threading.RLock()
        #: One picture is decoded at a time: together they could fill the memory.
        self._decoding = threading.Lock()
        self._pictures: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._listing, self._listed = Listing(gallery.files), time.monotonic()
        self._refreshed, self._changed = time.monotonic(), False

    def __len__(self) -> int:
        with self._open() as gallery:
            return len(gallery)

    @property
    def listing(self) -> Listing:
        """What is in the gallery; while others write to it, as it was some seconds ago."""
        with self._open() as gallery:
            if self._changed and time.monotonic() - self._listed > _RELIST:
                self._changed = False
                self._listing, self._listed = Listing(gallery.files), time.monotonic()
            return self._listing

    def search(
        self,
        embeddings: Sequence[np.ndarray],
        marks: Marks,
        where: Optional[Filter],
        *,
        top_k: int,
        per: str,
        without: Collection[str],
    ) -> list[dict[str, Any]]:
        """See :func:`kd_search.gallery.ranking.ranked`; those of ``without`` may be gone."""
        with self._open() as gallery:
            known = [hit_id for hit_id in without if self._hit(gallery, hit_id) is not None]
            return ranked(
                gallery,
                embeddings,
                marks,
                self._calibration,
                where,
                top_k=top_k,
                per=per,
                without=known,
            )

    def gone(self, hit_ids: Collection[str]) -> list[str]:
        """Those of the ids with which nobody is in the gallery (any more)."""
        with self._open() as gallery:
            return [hit_id for hit_id in hit_ids if self._hit(gallery, hit_id) is None]

    def person(self, hit_id: str) -> tuple[Hit, np.ndarray]:
        """Somebody in the gallery, and their embedding (D,).

        Raises:
            ApiError: nobody has that id.
        """
        with self._open() as gallery:
            return self._known(gallery, hit_id), gallery.embedding(hit_id)

    def ids_of(self, sha256: str) -> list[str]:
        """Ids of the people in the pictures with that content."""
        with self._open() as gallery:
            return gallery.ids_of(sha256)

    def scene(self, hit_id: str) -> Scene:
        """The picture of somebody, with everybody else in it, and its neighbours in time.

        Raises:
            ApiError: nobody has that id.
        """
        with self._open() as gallery:
            hit, listing = self._known(gallery, hit_id), self.listing
            place = listing.place(int(hit_id.partition(".")[0]), hit.camera)
            if place is None:  # indexed since the list was read
                return Scene(hit, [hit], None, None)
            frames = self._frames(gallery, place)
            index = next((i for i, people in enumerate(frames) if _shows(people, hit)), None)
            if index is None:
                return Scene(hit, [hit], None, None)
            found: list[Optional[str]] = []
            for step in (-1, 1):
                inside = 0 <= index + step < len(frames)
                people = frames[index + step] if inside else []
                for other in () if inside else listing.same_camera(place, step):
                    others = self._frames(gallery, other)
                    if others:  # all of it may have been removed
                        people = others[min(step, 0)]
                        break
                found.append(people[0].id if people else None)
            return Scene(hit, frames[index], *found)

    def picture(self, hit_id: str, size: str) -> bytes:
        """JPEG of the picture of somebody, or of them alone (``size`` "person").

        Raises:
            ApiError: nobody has that id, or the file is gone or was changed.
        """
        with self._open() as gallery:
            hit = self._known(gallery, hit_id)
            cached = self._pictures.get((hit_id, size))
            if cached is not None:
                self._pictures.move_to_end((hit_id, size))
                return cached
        try:
            pixels = self.read(hit)
        except ImageError:
            message = "its file is gone, was changed or cannot be read"
            raise ApiError(410, "file", message) from None
        if size == "person":
            pixels = _with_margin(pixels, hit.box)
        limit = SIZES[size]
        if pixels.shape[1] > limit[0] or pixels.shape[0] > limit[1] or size == "person":
            pixels = np.asarray(fit(pixels, *limit))
        content = jpeg_bytes(pixels, 85)
        with self._lock:
            self._pictures[hit_id, size] = content
            while sum(map(len, self._pictures.values())) > _CACHED_BYTES:
                self._pictures.popitem(last=False)
        return content

    def read(self, hit: Hit) -> np.ndarray:
        """(H, W, 3) uint8 RGB: as :func:`read_scene`, one at a time and within the limit."""
        with self._decoding:
            return read_scene(hit, self._max_pixels)

    # -- inside ----------------------------------------------------------------------------------

    @contextmanager
    def _open(self) -> Iterator[Gallery]:
        """The gallery, with what was written since; one thread at a time."""
        with self._lock:
            now = time.monotonic()
            if now - self._refreshed > _REFRESH:
                try:
                    changed = self._gallery.refresh()
                except (OSError, GalleryError) as error:
                    raise GalleryUnreadableError(str(error)) from error
                self._refreshed = now
                if changed:
                    # Somebody may have been forgotten, and numbers of people stay.
                    self._pictures.clear()
                    self._changed = True
            try:
                yield self._gallery
            except GalleryError as error:
                raise GalleryUnreadableError(str(error)) from error

    @staticmethod
    def _hit(gallery: Gallery, hit_id: str) -> Optional[Hit]:
        for _ in range(2):
            try:
                return gallery.hit(hit_id)
            except StaleError:  # its file was changed since the gallery was read
                gallery.refresh()
            except GalleryError:
                return None
        return None

    def _known(self, gallery: Gallery, hit_id: str) -> Hit:
        hit = self._hit(gallery, hit_id)
        if hit is None:
            raise ApiError(404, "person", f"nobody in the gallery has the id {hit_id} (any more)")
        return hit

    def _frames(self, gallery: Gallery, place: int) -> list[list[Hit]]:
        """The people of each frame of a video in the order of time, or of a picture."""
        frames: dict[Optional[int], list[Hit]] = {}
        for hit_id in gallery.ids_of(self._listing.sha256(place)):
            hit = gallery.hit(hit_id)
            frames.setdefault(hit.frame, []).append(hit)
        return [frames[number] for number in sorted(frames, key=lambda n: -1 if n is None else n)]


class GalleryUnreadableError(Exception):
    """The gallery was damaged or removed while it was served; the message is for the log alone."""


def _shows(people: Sequence[Hit], hit: Hit) -> bool:
    return any(other.id == hit.id for other in people)


def _with_margin(pixels: np.ndarray, box: Sequence[float]) -> np.ndarray:
    x0, y0, x1, y1 = box
    x, y = _MARGIN * (x1 - x0), _MARGIN * (y1 - y0)
    part = crop(pixels, (x0 - x, y0 - y, x1 + x, y1 + y))
    return pixels if part is None else np.ascontiguousarray(part)
