"""Where each query's person is, and which detections would be right there, for one gallery."""

from dataclasses import dataclass

import numpy as np

from kd_search.evaluation.flat_arrays import (
    Detections,
    GroundTruth,
    Queries,
)
from kd_search.evaluation.matching import (
    expand_ranges,
    overlapping_pairs,
    search_iou_threshold,
)
from kd_search.evaluation.search.galleries import Gallery


@dataclass
class Targets:
    """The places of the people of some queries, and the detections at each place.

    A place is an image that holds the query's person; several boxes of the person in it are one
    place, of which any will do. Places are sorted by query and image, detections by place.
    """

    query: np.ndarray  # (T,) row of the query, counted from the first of the block
    image: np.ndarray  # (T,)
    weight: np.ndarray  # (T,) how often the place counts; more than 1 only in compat mode
    is_seen: np.ndarray  # (T,) bool, whether anything can be right there; False only in compat mode
    pair_target: np.ndarray  # (P,) place of each candidate
    pair_column: np.ndarray  # (P,) the detection, as an index into the given ones

    def select(self, keep: np.ndarray) -> "Targets":
        """The places of this mask (T,)."""
        pairs = keep[self.pair_target]
        number = np.cumsum(keep) - 1
        return Targets(
            self.query[keep],
            self.image[keep],
            self.weight[keep],
            self.is_seen[keep],
            number[self.pair_target[pairs]],
            self.pair_column[pairs],
        )


class TargetTable:
    """Positives of a gallery in one mode; see :mod:`.galleries` for what the modes do.

    Args:
        gallery: with lists, the person is where they say; else where the annotations say.
        compat: the mode.
        detections: those that are searched.
        ground_truth: annotated people of the gallery images.
        queries: whose people they are.
        iou_thresh: see :func:`search_iou_threshold`.
    """

    def __init__(
        self,
        gallery: Gallery,
        compat: bool,
        detections: Detections,
        ground_truth: GroundTruth,
        queries: Queries,
        iou_thresh: float,
    ):
        self._own_image = queries.image_index
        # In compat mode the lists are taken as they are, with the query's own image.
        self.drops_own_image = not (compat and gallery.has_lists)
        if gallery.has_lists:
            owner, images, boxes, is_seen = _listed_places(gallery, compat)
        else:
            labelled = np.flatnonzero(ground_truth.person_ids >= 0)
            owner = ground_truth.person_ids[labelled]
            images = ground_truth.image_index[labelled]
            boxes = np.asarray(ground_truth.boxes[labelled], dtype=np.float64)
            is_seen = np.ones(len(labelled), bool)
        # Rows of one owner (a query, or a person) together, image by image, as given.
        order = np.lexsort((images, owner))
        owner, images, boxes = owner[order], images[order], boxes[order]
        is_seen = is_seen[order]
        first = np.flatnonzero((np.diff(owner, prepend=-2) != 0) | (np.diff(images, prepend=-2)))
        weight = np.ones(len(owner), dtype=np.int64)
        if compat:
            boxes = whole_pixels(boxes)[first]
            owner, images, is_seen = owner[first], images[first], is_seen[first]
            repeats = np.diff(np.append(first, len(weight)))
            weight = repeats if gallery.has_lists else np.ones(len(first), dtype=np.int64)
        keys = np.arange(len(queries)) if gallery.has_lists else queries.person_ids
        self._start = np.searchsorted(owner, keys, side="left")
        self._count = np.searchsorted(owner, keys, side="right") - self._start
        if not gallery.has_lists:
            self._count[keys < 0] = 0
        self._images, self._weight, self._is_seen = images, weight, is_seen
        row, column, _ = overlapping_pairs(
            boxes,
            images,
            search_iou_threshold(boxes, iou_thresh),
            detections.boxes,
            detections.image_index,
            without_touching=compat,
        )
        row, self._pair_column = row[is_seen[row]], column[is_seen[row]]
        self._pair_start = np.searchsorted(row, np.arange(len(boxes)), side="left")
        self._pair_count = np.searchsorted(row, np.arange(len(boxes)), side="right")
        self._pair_count -= self._pair_start

    def of_block(self, start: int, stop: int) -> Targets:
        """Places of the queries start..stop - 1."""
        count = self._count[start:stop]
        rows = expand_ranges(self._start[start:stop], count)
        query = np.repeat(np.arange(stop - start), count)
        if self.drops_own_image:
            others = self._images[rows] != self._own_image[start:stop][query]
            rows, query = rows[others], query[others]
        image = self._images[rows]
        new = (np.diff(query, prepend=-1) != 0) | (np.diff(image, prepend=-1) != 0)
        place = np.cumsum(new) - 1
        pairs = expand_ranges(self._pair_start[rows], self._pair_count[rows])
        return Targets(
            query[new],
            image[new],
            self._weight[rows[new]],
            self._is_seen[rows[new]],
            np.repeat(place, self._pair_count[rows]),
            self._pair_column[pairs],
        )


def whole_pixels(boxes: np.ndarray) -> np.ndarray:
    """Boxes (M, 4) XYXY as the peers' integer arrays hold them: each edge cut towards zero.

    Edges are rounded to 1e-6 first: an edge that is a sum of fractions may lie 1e-14 below the
    whole number that it is.
    """
    return np.trunc(np.round(boxes, 6))


def _listed_places(
    gallery: Gallery, compat: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(query, image, box) of the entries that hold the person, and whether the box is looked at."""
    entry, boxes = gallery.filled, gallery.boxes
    query = np.searchsorted(gallery.offsets, entry, side="right") - 1
    images = gallery.images[entry]
    is_seen = np.ones(len(entry), bool)
    if compat:
        start = gallery.offsets[query]
        # Where only entries with a box come before, as in the official files, none hides another.
        before = np.arange(len(entry)) - np.searchsorted(query, query, side="left")
        for row in np.flatnonzero(entry - start != before):
            is_seen[row] = not (gallery.images[start[row] : entry[row]] == images[row]).any()
    return query, images, boxes, is_seen
