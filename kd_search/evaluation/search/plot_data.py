"""Data of the plots of an evaluation: curves, camera pairs, distances."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from kd_search.evaluation.flat_arrays import Detections
from kd_search.evaluation.matching import overlapping_pairs
from kd_search.evaluation.search.galleries import WHOLE, GalleryProtocol
from kd_search.evaluation.search.predictions import DetectionSet
from kd_search.evaluation.search.protocol import Protocol
from kd_search.evaluation.search.ranking import RankingResult
from kd_search.evaluation.search.test_set import PreparedSet
from kd_search.evaluation.similarity import Similarity

RECALL_LEVELS = np.linspace(0, 1, 101)


@dataclass
class CameraPairs:
    """mAP (percent) of queries of one camera among the images of another."""

    cameras: list[int]
    mean_ap: np.ndarray  # (C, C) row: camera of the query; NaN where no query has a match there
    num_queries: np.ndarray  # (C, C) queries that the mean is over


@dataclass
class Distances:
    """Histograms of the cosine distance 1 - cos of pairs of query and detection."""

    edges: np.ndarray  # (B + 1,)
    same: np.ndarray  # (B,) detections of the query's person
    different: np.ndarray  # (B,) detections of another person of known identity
    num_queries: int


def cmc_curve(rows: Sequence[Mapping[str, Any]], max_rank: int = 50) -> np.ndarray:
    """(max_rank,) percent of the queries with a hit among the first k, of per-query results.

    Queries whose person is in no gallery image are left out.

    Raises:
        ValueError: no query is left.
    """
    ranks = np.array([row["first_hit_rank"] or 0 for row in rows if row["AP"] is not None])
    if not len(ranks):
        raise ValueError("no query has a match in the gallery: there is no CMC")
    counts = np.bincount(ranks[(ranks >= 1) & (ranks <= max_rank)], minlength=max_rank + 1)[1:]
    curve: np.ndarray = 100 * np.cumsum(counts) / len(ranks)
    return curve


def precision_recall_curve(
    data: PreparedSet, detections: DetectionSet, protocol: Protocol
) -> np.ndarray:
    """Mean over the queries of the precision at :data:`RECALL_LEVELS`, in percent.

    The precision of a query at a recall is the highest that it has at that recall or above, 0
    beyond the recall that it reaches (the interpolation of PASCAL VOC, only for plots).

    Raises:
        ValueError: no query has a match in the gallery.
    """
    result = _rank(data, detections, protocol)
    total, counted = np.zeros(len(RECALL_LEVELS)), np.flatnonzero(result.num_gt > 0)
    if not len(counted):
        raise ValueError("no query has a match in the gallery: there is no precision and recall")
    bounds = np.searchsorted(result.hit_query, np.arange(len(result.num_gt) + 1))
    for query in counted:
        counts = np.sort(result.hit_count[bounds[query] : bounds[query + 1]])
        hits = np.arange(1, len(counts) + 1)
        precision = np.maximum.accumulate((hits / counts)[::-1])[::-1]
        place = np.searchsorted(hits / result.num_gt[query] + 1e-12, RECALL_LEVELS)
        total += np.append(precision, 0)[place]
    curve: np.ndarray = 100 * total / len(counted)
    return curve


def open_set_curve(
    data: PreparedSet, detections: DetectionSet, protocol: Protocol
) -> tuple[np.ndarray, np.ndarray]:
    """See :meth:`RankingResult.open_set_curve`.

    Raises:
        ValueError: fewer than two queries have a match in the gallery.
    """
    alarms, missed = _rank(data, detections, protocol, num_matches=1).open_set_curve()
    if not len(alarms):
        raise ValueError("fewer than two queries have a match: there is no open-set curve")
    return alarms, missed


def camera_pairs(data: PreparedSet, detections: DetectionSet, protocol: Protocol) -> CameraPairs:
    """Search the images of each camera separately.

    Raises:
        ValueError: the images are of fewer than two known cameras.
    """
    of_image = data.annotations.image_cameras
    cameras = np.unique(of_image[of_image >= 0])
    if len(cameras) < 2:
        raise ValueError(f"the images are of {len(cameras)} known cameras: there are no pairs")
    of_query = of_image[data.queries.image_index]
    means = np.full((len(cameras), len(cameras)), np.nan)
    numbers = np.zeros(means.shape, dtype=np.int64)
    for column, camera in enumerate(cameras):
        inside = (of_image == camera) & data.annotations.in_gallery
        result = _rank(data, detections, protocol, inside)
        for row, asked in enumerate(cameras):
            counted = (of_query == asked) & (result.num_gt > 0)
            numbers[row, column] = counted.sum()
            if counted.any():
                means[row, column] = 100 * result.ap[counted].mean()
    return CameraPairs(cameras.tolist(), means, numbers)


def distances(
    data: PreparedSet,
    detections: DetectionSet,
    protocol: Protocol,
    *,
    num_bins: int = 80,
    max_queries: int = 500,
) -> Distances:
    """Count cosine distances of queries to detections of the same and of other people.

    A detection is of the person whose annotated box it overlaps most, with IoU of at least
    ``protocol.iou_thresh``. Other detections, those of people without identity, and the query's own
    image are left out. Of more queries, ``max_queries`` at equal steps are taken.
    """
    flat = data.flatten(detections)
    flat = flat.select(flat.scores >= protocol.score_thresh)
    person = person_of(flat, data, protocol.iou_thresh)
    count = min(max_queries, len(data.queries))
    chosen = np.unique(np.linspace(0, len(data.queries) - 1, count).round()).astype(int)
    edges = np.linspace(0, 2, num_bins + 1)
    same, different = np.zeros(num_bins, np.int64), np.zeros(num_bins, np.int64)
    assert flat.embeddings is not None  # of a DetectionSet
    similarity = Similarity(flat.embeddings)
    for start, rows in similarity.blocks(data.queries.embeddings[chosen]):
        for query, row in zip(chosen[start : start + len(rows)], rows):
            wanted = data.queries.person_ids[query]
            usable = (person >= 0) & (flat.image_index != data.queries.image_index[query])
            distance = 1 - row[: len(flat)]
            for counts, mask in ((same, person == wanted), (different, person != wanted)):
                counts += np.histogram(distance[usable & mask].clip(0, 2), edges)[0]
    return Distances(edges, same, different, len(chosen))


def _rank(
    data: PreparedSet,
    detections: DetectionSet,
    protocol: Protocol,
    searchable: Optional[np.ndarray] = None,
    num_matches: int = 0,
) -> RankingResult:
    """Search the protocol's gallery, or only some images."""
    name = WHOLE if searchable is not None or protocol.gallery == "auto" else protocol.gallery
    protocols = [GalleryProtocol(data.gallery(name), "all", protocol.mode)]
    settings = protocol.ranking_settings(num_matches)
    return data.rank(detections, protocols, settings, searchable=searchable)[0]


def person_of(flat: Detections, data: PreparedSet, iou_thresh: float) -> np.ndarray:
    """(N,) id of the annotated person whose box each detection overlaps most; -1 for none."""
    truth = data.annotations.ground_truth
    thresholds = np.full(len(truth), iou_thresh)
    gt, detection, overlap = overlapping_pairs(
        truth.boxes, truth.image_index, thresholds, flat.boxes, flat.image_index
    )
    order = np.argsort(overlap, kind="stable")
    person = np.full(len(flat), -1)
    # In ascending overlap: the last value written is that of the greatest.
    person[detection[order]] = truth.person_ids[gt[order]]
    return person
