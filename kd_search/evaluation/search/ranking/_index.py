"""What a ranking precomputes for all queries: searched sets, images of detections, and targets."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kd_search.evaluation.flat_arrays import Detections, GroundTruth, Queries
from kd_search.evaluation.matching import overlapping_pairs, search_iou_threshold
from kd_search.evaluation.search.galleries import Gallery, GalleryProtocol


@dataclass(frozen=True)
class SearchedSet:
    """What determines the searched detections; protocols with equal values share a set."""

    gallery: Gallery
    cameras: str
    with_own_image: bool


class GalleryIndex:
    """Searched sets and targets of all queries under some gallery protocols.

    Args:
        protocols: with at most 64 different searched sets.
        detections: the searched ones.
        iou_thresh: see :func:`search_iou_threshold`.
        searchable: (G,) bool, images of a complete gallery.
        cameras: (G,) camera of each image, -1 unknown.

    Attributes:
        sets, set_of: the searched sets, and the set of each protocol as an index into them.
        reranked_sets: sets of the re-ranked protocols, ascending.
        by_image, image_start: (N,) detections image after image; (G + 1,) where each starts.
        is_sorted: whether the detections are given in this order.
        tables: targets by gallery and mode.
        camera_of_query: (Q,) camera of the image of each query, -1 without image or camera.
    """

    def __init__(
        self,
        protocols: Sequence[GalleryProtocol],
        detections: Detections,
        ground_truth: GroundTruth,
        queries: Queries,
        iou_thresh: float,
        searchable: np.ndarray,
        cameras: np.ndarray,
    ):
        self.protocols, self.searchable, self.cameras = protocols, searchable, cameras
        self.image_index, self.own_image = detections.image_index, queries.image_index
        self.num_images = len(searchable)
        own = np.where(self.own_image >= 0, self.own_image, -1)
        self.camera_of_query = np.append(cameras, -1)[own]
        searched = self._searched_sets()
        self.sets = list(dict.fromkeys(searched))
        self.set_of = [self.sets.index(s) for s in searched]
        reranked = (k for k, p in zip(self.set_of, protocols) if p.reranked)
        self.reranked_sets = sorted(set(reranked))
        self.by_image = np.argsort(self.image_index, kind="stable")
        self.is_sorted = bool((np.diff(self.image_index) >= 0).all())
        bounds = np.arange(self.num_images + 1)
        self.image_start = np.searchsorted(self.image_index[self.by_image], bounds)
        self.tables: dict[tuple[Gallery, str], TargetTable] = {}
        for protocol in protocols:
            # Junk is determined without the deviations of compat mode.
            junk = {"corrected"} if protocol.cameras == "junk_same_camera" else set()
            for mode in {protocol.mode, *junk}:
                if (protocol.gallery, mode) not in self.tables:
                    self.tables[protocol.gallery, mode] = TargetTable(
                        protocol.gallery,
                        mode == "compat",
                        detections,
                        ground_truth,
                        queries,
                        iou_thresh,
                    )

    def _searched_sets(self) -> list[SearchedSet]:
        galleries = (p.gallery for p in self.protocols if not p.gallery.has_lists)
        whole = next((g for g in galleries if g.complete), Gallery())
        lists_own_image: dict[int, bool] = {}  # by identity of the images: there may be millions
        searched = []
        for protocol in self.protocols:
            gallery, own_listed = protocol.gallery, False
            if protocol.mode == "compat" and gallery.has_lists:
                key = id(gallery.images)
                if key not in lists_own_image:
                    own = self.own_image.astype(gallery.images.dtype)
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


class TargetTable:
    """Places and candidates of one gallery in one mode; see :mod:`..galleries` for the modes."""

    def __init__(
        self,
        gallery: Gallery,
        compat: bool,
        detections: Detections,
        ground_truth: GroundTruth,
        queries: Queries,
        iou_thresh: float,
    ):
        # In compat mode lists are taken as they are, with the query's own image.
        self.drops_own_image = not (compat and gallery.has_lists)
        if gallery.has_lists:
            owner, images, boxes, can_match = _listed_places(gallery, compat)
        else:
            labelled = np.flatnonzero(ground_truth.person_ids >= 0)
            owner = ground_truth.person_ids[labelled]
            images = ground_truth.image_index[labelled]
            boxes = np.asarray(ground_truth.boxes[labelled], dtype=np.float64)
            can_match = np.ones(len(labelled), bool)
        # Group rows by owner (a query, or a person) and image, in the given order.
        order = np.lexsort((images, owner))
        owner, images, boxes = owner[order], images[order], boxes[order]
        can_match = can_match[order]
        first = np.flatnonzero((np.diff(owner, prepend=-2) != 0) | (np.diff(images, prepend=-2)))
        weight = np.ones(len(owner), dtype=np.int64)
        if compat:
            boxes = whole_pixels(boxes)[first]
            owner, images, can_match = owner[first], images[first], can_match[first]
            repeats = np.diff(np.append(first, len(weight)))
            weight = repeats if gallery.has_lists else np.ones(len(first), dtype=np.int64)
        keys = np.arange(len(queries)) if gallery.has_lists else queries.person_ids
        self.start = np.searchsorted(owner, keys, side="left")
        self.count = np.searchsorted(owner, keys, side="right") - self.start
        if not gallery.has_lists:
            self.count[keys < 0] = 0
        self.images, self.weight, self.can_match = images, weight, can_match
        row, column, _ = overlapping_pairs(
            boxes,
            images,
            search_iou_threshold(boxes, iou_thresh),
            detections.boxes,
            detections.image_index,
            include_disjoint=compat,
        )
        row, self.pair_column = row[can_match[row]], column[can_match[row]]
        self.pair_start = np.searchsorted(row, np.arange(len(boxes)), side="left")
        self.pair_count = np.searchsorted(row, np.arange(len(boxes)), side="right")
        self.pair_count -= self.pair_start


def whole_pixels(boxes: np.ndarray) -> np.ndarray:
    """Cut the edges of boxes (M, 4) towards zero, as integer arrays of published code hold them.

    Edges are rounded to 1e-6 first: a sum of fractions may lie 1e-14 below a whole number.
    """
    return np.trunc(np.round(boxes, 6))


def _listed_places(
    gallery: Gallery, compat: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(query, image, box) of the entries that hold the person, and whether the box can match."""
    entry = gallery.filled
    query = np.searchsorted(gallery.offsets, entry, side="right") - 1
    images = gallery.images[entry]
    can_match = np.ones(len(entry), bool)
    if compat:
        start = gallery.offsets[query]
        # Only an entry after one without a box, which official files do not have, can be hidden.
        before = np.arange(len(entry)) - np.searchsorted(query, query, side="left")
        for row in np.flatnonzero(entry - start != before):
            can_match[row] = not (gallery.images[start[row] : entry[row]] == images[row]).any()
    return query, images, gallery.boxes, can_match
