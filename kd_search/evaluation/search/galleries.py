"""Which gallery images each query searches, and where its person is in them.

A *gallery* names images: all of a test set, or a list per query as CUHK-SYSU's protocol files have
it. A *view* is one way of searching a gallery: which cameras, which mode, re-ranked or not. The two
modes differ in what is done about the oddities of the field's files:

=====================================  ============================  ==============================
situation                              ``corrected``                 ``compat`` (the peers' code)
=====================================  ============================  ==============================
an image is listed twice               counts once                   counts as often as it is listed
                                                                     with a box, is searched once
the person is in an image twice        either box will do            only the first box
the query's own image is listed        neither searched nor counted  searched and counted
an image is listed without a box,      counts, and can be found      counts, but cannot be found:
then again with one                                                  only its first entry matters
annotated boxes                        as they are                   cut to whole pixels
an annotated box without area          is matched by nothing         is matched by every detection
equal similarities in one image        the first as given is right   the last as given is right
equal similarities in the ranking      the first as given leads      the last in the list leads
=====================================  ============================  ==============================

``docs/evaluation.md`` says where each of them comes from and how much it moves.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Optional

import numpy as np

from kd_search.evaluation.flat_arrays import check_integers
from kd_search.evaluation.matching import expand_ranges

#: Which images a view searches: all; only those of other cameras than the query's (PRW's
#: "multi-view gallery"); or all, where the person's boxes in the query's own camera are neither
#: right nor wrong (the baseline of Zheng et al., CVPR 2017, after Market-1501).
CAMERAS = ("all", "cross_camera", "junk_same_camera")
MODES = ("corrected", "compat")
#: Name of the gallery of all gallery images.
WHOLE = "all"


@dataclass(frozen=True, eq=False)
class Gallery:
    """Images to search, for each query. Compared by identity; see the class methods to make one.

    Without lists (``offsets`` None) every query searches all gallery images but its own, and its
    person is where the annotations say. With lists, query q searches the images of the entries
    offsets[q]:offsets[q + 1], and its person is where they say; with ``complete`` all other gallery
    images are searched too.
    """

    name: str
    offsets: Optional[np.ndarray] = None  # (Q + 1,) int64
    images: Optional[np.ndarray] = None  # (E,) int; an image may be listed twice
    filled: Optional[np.ndarray] = None  # (F,) int64 ascending, entries that hold the person
    boxes: Optional[np.ndarray] = None  # (F, 4) XYXY, absolute pixels
    complete: bool = True
    queries: Optional[np.ndarray] = None  # (Q,) bool, the queries that search it; None is all

    @classmethod
    def whole(cls, name: str = WHOLE) -> "Gallery":
        """All gallery images, positives from the annotations."""
        return cls(name)

    @classmethod
    def listed(
        cls,
        name: str,
        offsets: np.ndarray,
        images: np.ndarray,
        boxes: np.ndarray,
        *,
        num_images: int,
        filled: Optional[np.ndarray] = None,
        queries: Optional[np.ndarray] = None,
    ) -> "Gallery":
        """A list of entries per query.

        Args:
            boxes: (E, 4), NaN where nobody is; or (F, 4) with ``filled``, the F entries (ascending)
                that they belong to.

        Raises:
            ValueError: the arrays do not fit each other or the test set; the line names the
                gallery and the array.
        """
        offsets = check_integers(f"gallery {name!r}: offsets", offsets, (None,))
        images, boxes = np.asarray(images), np.asarray(boxes)
        check_integers(f"gallery {name!r}: images", images, (None,))
        rows = len(images) if filled is None else len(filled)
        if boxes.shape != (rows, 4):
            raise ValueError(
                f"gallery {name!r}: boxes has shape {boxes.shape}; expected ({rows}, 4)"
            )
        if (
            not len(offsets)
            or offsets[0] != 0
            or offsets[-1] != len(images)
            or (np.diff(offsets) < 0).any()
        ):
            raise ValueError(f"gallery {name!r}: offsets must ascend from 0 to {len(images)}")
        strangers = np.flatnonzero((images < 0) | (images >= num_images))
        if len(strangers):
            query = int(np.searchsorted(offsets, strangers[0], side="right")) - 1
            raise ValueError(
                f"gallery {name!r}: entry {strangers[0] - offsets[query]} of query {query} names "
                f"image {images[strangers[0]]}, but the set has {num_images} images"
            )
        if filled is None:
            # Ten million entries, of which some thousands hold the person: only these are kept.
            filled = np.flatnonzero(~np.isnan(boxes[:, 0]))
            boxes = boxes[filled]
        filled = check_integers(f"gallery {name!r}: filled", filled, (len(boxes),))
        if (np.diff(filled, prepend=-1, append=len(images)) <= 0).any():
            raise ValueError(f"gallery {name!r}: filled must ascend from 0 to {len(images) - 1}")
        boxes = boxes.astype(np.float64)
        if not np.isfinite(boxes).all():
            entry = int(np.flatnonzero(~np.isfinite(boxes).all(axis=1))[0])
            raise ValueError(
                f"gallery {name!r}: the box of entry {filled[entry]} is {boxes[entry].tolist()}; "
                "expected four numbers, or four NaN where nobody is"
            )
        return cls(name, offsets, images, filled, boxes, False, queries)

    @property
    def has_lists(self) -> bool:
        return self.offsets is not None

    def searched_by(self, num_queries: int) -> np.ndarray:
        """(Q,) bool, the queries that search this gallery."""
        return np.ones(num_queries, bool) if self.queries is None else self.queries


@dataclass(frozen=True)
class View:
    """One way of searching: every row of a table of results says which."""

    gallery: Gallery
    cameras: str = "all"
    mode: str = "corrected"
    reranked: bool = False

    def __post_init__(self):
        if self.cameras not in CAMERAS:
            raise ValueError(f"cameras {self.cameras!r}; use one of {', '.join(CAMERAS)}")
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r}; use one of {', '.join(MODES)}")


def galleries_from_metadata(
    search_galleries: Mapping[str, Mapping[str, np.ndarray]],
    query_ids: np.ndarray,
    num_images: int,
    names: Optional[Sequence[str]] = None,
) -> list[Gallery]:
    """The galleries that a protocol lists, in the order of the metadata.

    Args:
        search_galleries: name to ``query_ids`` (Q',), ``offsets`` (Q' + 1,), ``images`` (E,) and
            ``boxes`` (E, 4), as a loader puts them into the catalog. Where it has a method
            ``compact(name)``, as the loader of CUHK-SYSU has, that is asked instead: an object
            with ``match_entries`` (F,) and ``match_boxes`` (F, 4) in place of ``boxes``.
        query_ids: (Q,) ids of the queries of the test set.
        num_images: G, images of the test set.
        names: which galleries; None for all.

    Returns:
        Galleries over all Q queries; those that a protocol does not list search nothing there.

    Raises:
        ValueError: an array is missing or does not fit, or a query is not in the test set; the
            line names the gallery.
    """
    row_of = {int(query_id): row for row, query_id in enumerate(query_ids)}
    galleries = []
    for name in search_galleries if names is None else names:
        arrays = _arrays_of(search_galleries, name)
        ids = check_integers(f"gallery {name!r}: query_ids", arrays.pop("query_ids"), (None,))
        strangers = [int(i) for i in ids if int(i) not in row_of]
        if strangers:
            raise ValueError(f"gallery {name!r}: query {strangers[0]} is not in the test set")
        if len(np.unique(ids)) != len(ids):
            raise ValueError(f"gallery {name!r}: query_ids holds an id twice")
        listed = Gallery.listed(name, **arrays, num_images=num_images)
        if len(listed.offsets) != len(ids) + 1:
            raise ValueError(
                f"gallery {name!r}: {len(listed.offsets)} offsets for {len(ids)} queries"
            )
        rows = np.array([row_of[int(i)] for i in ids], dtype=np.int64)
        galleries.append(_spread(listed, rows, len(query_ids)))
    return galleries


def complete_gallery(listed: Gallery, name: str = WHOLE) -> Gallery:
    """The whole pool as the peers search it: a list of a protocol, then all other images."""
    return replace(listed, name=name, complete=True)


def gallery_size(name: str) -> Optional[int]:
    """100 of "G100"; None of a name of another kind."""
    return int(name[1:]) if name[:1] == "G" and name[1:].isdigit() else None


def smallest(names: Iterable[str]) -> Optional[str]:
    """The name of the smallest size, the one that the peers take for the whole pool's positives."""
    sized = [name for name in names if gallery_size(name) is not None]
    return min(sized, key=gallery_size, default=None)


def _arrays_of(search_galleries: Mapping, name: str) -> dict[str, np.ndarray]:
    if hasattr(search_galleries, "compact"):
        compact = search_galleries.compact(name)
        arrays = {key: getattr(compact, key) for key in ("query_ids", "offsets", "images")}
        return {**arrays, "boxes": compact.match_boxes, "filled": compact.match_entries}
    arrays = search_galleries[name]
    keys = ("query_ids", "offsets", "images", "boxes")
    missing = [key for key in keys if key not in arrays]
    if missing:
        raise ValueError(f"gallery {name!r}: {missing[0]} is missing")
    return {key: arrays[key] for key in keys}


def _spread(gallery: Gallery, rows: np.ndarray, num_queries: int) -> Gallery:
    """The same lists in the order of the test set's queries; ``rows`` are those of the lists."""
    if np.array_equal(rows, np.arange(num_queries)):
        return gallery
    counts = np.zeros(num_queries, dtype=np.int64)
    counts[rows] = np.diff(gallery.offsets)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    source = np.zeros(num_queries, dtype=np.int64)
    source[rows] = gallery.offsets[:-1]
    # Old entry numbers in the new order.
    entries = expand_ranges(source, counts)
    place = np.empty(len(entries), dtype=np.int64)
    place[entries] = np.arange(len(entries))
    order = np.argsort(place[gallery.filled])
    searching = np.zeros(num_queries, bool)
    searching[rows] = True
    return replace(
        gallery,
        offsets=offsets,
        images=gallery.images[entries],
        filled=place[gallery.filled][order],
        boxes=gallery.boxes[order],
        queries=None if searching.all() else searching,
    )
