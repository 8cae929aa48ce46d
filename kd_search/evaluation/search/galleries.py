"""Which gallery images each query searches, and where its person is in them.

A *gallery* names images: all of a test set, or a list per query as in CUHK-SYSU's protocol files. A
*gallery protocol* is one way to search a gallery: which cameras, which mode, with or without
re-ranking. The mode ``corrected`` handles irregular annotations (an image that is listed twice, the
query's own image in its list, ...) so that each image counts once, ``compat`` as the published code
of the SeqNet family; ``docs/evaluation.md`` lists each case with its source and effect.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Optional

import numpy as np

from kd_search.evaluation.flat_arrays import check_integers, check_offsets
from kd_search.evaluation.matching import expand_ranges

#: Which images are searched: all; those of other cameras than the query's (PRW's "multi-view
#: gallery"); or all, where the person's boxes in the query's own camera are neither right nor wrong
#: (the baseline of Zheng et al., CVPR 2017, after Market-1501).
CAMERAS = ("all", "cross_camera", "junk_same_camera")
MODES = ("corrected", "compat")
#: Name of the gallery of all gallery images.
WHOLE = "all"
# The gallery that papers report for CUHK-SYSU.
_USUAL_GALLERY = "G100"
_WHOLE_SIZE = -1


_NO_LISTS = functools.partial(np.zeros, 0, np.int64)


@dataclass(frozen=True, eq=False)
class Gallery:
    """Images to search, for each query; compared by identity.

    Without lists, every query searches all gallery images but its own, and the annotations give the
    places of its person. With lists (:meth:`listed`), query q searches the images of the entries
    offsets[q]:offsets[q + 1], which also give the places; with ``complete`` all other gallery
    images are searched too.
    """

    name: str = WHOLE
    offsets: np.ndarray = field(default_factory=_NO_LISTS)  # (Q + 1,) int64; empty: no lists
    images: np.ndarray = field(default_factory=_NO_LISTS)  # (E,) int; may hold an image twice
    filled: np.ndarray = field(default_factory=_NO_LISTS)  # (F,) ascending entries with the person
    boxes: np.ndarray = field(default_factory=_NO_LISTS)  # (F, 4) XYXY, absolute pixels
    complete: bool = True
    queries: Optional[np.ndarray] = None  # (Q,) bool, the queries that search it; None is all

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
        """Make a gallery from a list of entries per query.

        Args:
            boxes: (E, 4), NaN in entries without the person; or (F, 4) with ``filled``, the F
                entries (ascending) that they belong to.
            num_images: number of images of the test set.

        Raises:
            ValueError: the arrays do not fit each other or the test set; the message names the
                gallery and the array.
        """
        prefix = f"gallery {name!r}:"
        images, boxes = np.asarray(images), np.asarray(boxes)
        check_integers(f"{prefix} images", images, (None,))
        offsets = check_offsets(f"{prefix} offsets", offsets, len(images))
        rows = len(images) if filled is None else len(filled)
        if boxes.shape != (rows, 4):
            raise ValueError(f"{prefix} boxes has shape {boxes.shape}; expected ({rows}, 4)")
        unknown = np.flatnonzero((images < 0) | (images >= num_images))
        if len(unknown):
            query = int(np.searchsorted(offsets, unknown[0], side="right")) - 1
            raise ValueError(
                f"{prefix} entry {unknown[0] - offsets[query]} of query {query} names "
                f"image {images[unknown[0]]}, but the set has {num_images} images"
            )
        if filled is None:
            # Some thousands of ten million entries hold the person: keep only these.
            filled = np.flatnonzero(~np.isnan(boxes[:, 0]))
            boxes = boxes[filled]
        filled = check_integers(f"{prefix} filled", filled, (len(boxes),))
        if (np.diff(filled, prepend=-1, append=len(images)) <= 0).any():
            raise ValueError(f"{prefix} filled must ascend from 0 to {len(images) - 1}")
        boxes = boxes.astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(boxes).all(axis=1))
        if len(bad):
            raise ValueError(
                f"{prefix} the box of entry {filled[bad[0]]} is {boxes[bad[0]].tolist()}; "
                "expected four numbers, or four NaN in an entry without the person"
            )
        return cls(name, offsets, images, filled, boxes, False, queries)

    @property
    def has_lists(self) -> bool:
        return len(self.offsets) > 0

    def of_query(self, query: int) -> "Gallery":
        """The gallery of one of its queries, as that of a set with this query alone."""
        searches = None if self.queries is None else self.queries[query : query + 1]
        if not self.has_lists:
            return replace(self, queries=searches)
        start, stop = self.offsets[query : query + 2].tolist()
        inside = (self.filled >= start) & (self.filled < stop)
        return replace(
            self,
            offsets=np.array([0, stop - start]),
            images=self.images[start:stop],
            filled=self.filled[inside] - start,
            boxes=self.boxes[inside],
            queries=searches,
        )


@dataclass(frozen=True)
class GalleryProtocol:
    """One way to search a gallery, which gives one row of a table of results."""

    gallery: Gallery = field(default_factory=Gallery)
    cameras: str = "all"
    mode: str = "corrected"
    reranked: bool = False

    def __post_init__(self) -> None:
        check_choice("cameras", self.cameras, CAMERAS)
        check_choice("mode", self.mode, MODES)


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Raise ValueError, naming the setting, for a value that is not one of the known ones."""
    if value not in known:
        raise ValueError(f"{name} {value!r}; use one of {', '.join(known)}")


def galleries_from_metadata(
    search_galleries: Mapping[str, Any],
    query_ids: np.ndarray,
    num_images: int,
    names: Optional[Sequence[str]] = None,
) -> list[Gallery]:
    """Make the galleries that a protocol lists, in the order of the metadata.

    Args:
        search_galleries: name to ``query_ids`` (Q',), ``offsets`` (Q' + 1,), ``images`` (E,) and
            ``boxes`` (E, 4), as a loader puts them into the catalog. A method ``compact(name)``, as
            the loader of CUHK-SYSU has, takes precedence: its result has ``match_entries`` (F,) and
            ``match_boxes`` (F, 4) in place of ``boxes``.
        query_ids: (Q,) ids of the queries of the test set.
        num_images: number of images of the test set.
        names: which galleries; None for all.

    Returns:
        Galleries over all Q queries; those that a protocol does not list search nothing there.

    Raises:
        ValueError: an array is missing or does not fit, or a query is not in the test set; the
            message names the gallery.
    """
    row_of = {int(query_id): row for row, query_id in enumerate(query_ids)}
    galleries = []
    for name in search_galleries if names is None else names:
        arrays = _arrays_of(search_galleries, name)
        ids = check_integers(f"gallery {name!r}: query_ids", arrays.pop("query_ids"), (None,))
        unknown = [int(i) for i in ids if int(i) not in row_of]
        if unknown:
            raise ValueError(f"gallery {name!r}: query {unknown[0]} is not in the test set")
        if len(np.unique(ids)) != len(ids):
            raise ValueError(f"gallery {name!r}: query_ids holds an id twice")
        listed = Gallery.listed(name, **arrays, num_images=num_images)
        if len(listed.offsets) != len(ids) + 1:
            raise ValueError(
                f"gallery {name!r}: {len(listed.offsets)} offsets for {len(ids)} queries"
            )
        rows = np.array([row_of[int(i)] for i in ids], dtype=np.int64)
        galleries.append(_reorder(listed, rows, len(query_ids)))
    return galleries


def headline_gallery(name: str, listed: Sequence[str]) -> str:
    """Resolve ``Protocol.gallery`` for a set with these lists.

    Raises:
        ValueError: the set has no such gallery.
    """
    if name == "auto":
        if len(listed) == 1:
            return listed[0]
        return _USUAL_GALLERY if _USUAL_GALLERY in listed else WHOLE
    if name != WHOLE and name not in listed:
        raise ValueError(f"gallery {name!r} is not one of the set's: {', '.join([WHOLE, *listed])}")
    return name


def listed_names(names: Sequence[str], sizes: Sequence[int]) -> list[str]:
    """Select the lists that a table of these sizes needs, of all that a protocol has.

    Raises:
        ValueError: a size is not among them.
    """
    sized = names_by_size(names)
    if not len(sizes) or not sized:
        return list(names)
    missing = [size for size in sizes if size != _WHOLE_SIZE and size not in sized]
    if missing:
        have = ", ".join(map(str, sized))
        raise ValueError(
            f"gallery size {missing[0]}: the protocol lists {have}; -1 is the whole pool"
        )
    wanted = {sized[size] for size in sizes if size != _WHOLE_SIZE}
    if _WHOLE_SIZE in sizes:
        # Compat mode takes the positives of the whole pool from the smallest list.
        wanted.add(next(iter(sized.values())))
    return [name for name in names if name in wanted or gallery_size(name) is None]


def table_protocols(
    galleries: Sequence[Gallery],
    image_cameras: np.ndarray,
    *,
    sizes: Sequence[int],
    cameras: Sequence[str],
    modes: Sequence[str],
    reranked: Sequence[bool],
) -> tuple[list[GalleryProtocol], list[str]]:
    """Make the gallery protocols of a table, and notes about rows that the set cannot give.

    Args:
        galleries: the lists of the protocol, if any.
        image_cameras: (G,) camera of each image, -1 unknown.
        sizes, cameras, modes, reranked: the values to combine; see :class:`TableOptions`.
    """
    notes = []
    wanted = list(cameras)
    unknown = int((image_cameras < 0).sum())
    known = np.unique(image_cameras[image_cameras >= 0])
    if len(known) < 2 and wanted != ["all"]:
        notes.append(
            f"the images are of {len(known)} known cameras: no rows for "
            f"{', '.join(c for c in wanted if c != 'all')}"
        )
        wanted = ["all"]
    elif wanted != ["all"] and unknown:
        notes.append(f"{unknown} images of unknown camera are in no cross-camera gallery")
    protocols = [
        GalleryProtocol(gallery, camera, mode, again)
        for mode in modes
        for gallery in _table_galleries(galleries, sizes, mode)
        for camera in wanted
        for again in reranked
    ]
    return protocols, notes


def _table_galleries(
    galleries: Sequence[Gallery], sizes: Sequence[int], mode: str
) -> list[Gallery]:
    """Sizes ascending, other lists of all queries, the whole pool, the lists of subsets."""
    full = {g.name: g for g in galleries if g.queries is None}
    sized = [(size, full[name]) for size, name in names_by_size(full).items()]
    other = [g for name, g in full.items() if gallery_size(name) is None]
    whole = [complete_gallery(sized[0][1]) if mode == "compat" and sized else Gallery()]
    if len(sizes) and sized:
        whole = whole if _WHOLE_SIZE in sizes else []
        sized = [(size, gallery) for size, gallery in sized if size in sizes]
    subsets = [g for g in galleries if g.queries is not None]
    return [*(gallery for _, gallery in sized), *other, *whole, *subsets]


def complete_gallery(listed: Gallery, name: str = WHOLE) -> Gallery:
    """All gallery images as published code searches them: a list of a protocol, then the others."""
    return replace(listed, name=name, complete=True)


def gallery_size(name: str) -> Optional[int]:
    """100 of "G100"; None for a name of another form."""
    return int(name[1:]) if name[:1] == "G" and name[1:].isdigit() else None


def names_by_size(names: Iterable[str]) -> dict[int, str]:
    """Size to name of the galleries that are named by their size, ascending."""
    sizes = {gallery_size(name): name for name in names}
    return {size: sizes[size] for size in sorted(s for s in sizes if s is not None)}


def _arrays_of(search_galleries: Mapping[str, Any], name: str) -> dict[str, np.ndarray]:
    if hasattr(search_galleries, "compact"):
        compact = search_galleries.compact(name)
        arrays = {key: getattr(compact, key) for key in ("query_ids", "offsets", "images")}
        return {**arrays, "boxes": compact.match_boxes, "filled": compact.match_entries}
    keys = ("query_ids", "offsets", "images", "boxes")
    for key in keys:
        if key not in search_galleries[name]:
            raise ValueError(f"gallery {name!r}: {key} is missing")
    return {key: search_galleries[name][key] for key in keys}


def _reorder(gallery: Gallery, rows: np.ndarray, num_queries: int) -> Gallery:
    """Bring lists of the queries ``rows`` into the order of all queries of the test set."""
    if np.array_equal(rows, np.arange(num_queries)):
        return gallery
    counts = np.zeros(num_queries, dtype=np.int64)
    counts[rows] = np.diff(gallery.offsets)
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
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        images=gallery.images[entries],
        filled=place[gallery.filled][order],
        boxes=gallery.boxes[order],
        queries=None if searching.all() else searching,
    )
