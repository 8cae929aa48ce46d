"""The evaluation of a test set: detections and annotations in, metrics and rankings out."""

import logging
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Optional

import numpy as np

from kd_search.evaluation.confidence import bootstrap_intervals
from kd_search.evaluation.flat_arrays import (
    Detections,
    Queries,
)
from kd_search.evaluation.search.annotations import (
    Annotations,
    flatten_annotations,
)
from kd_search.evaluation.search.cbgm import (
    Contexts,
    contexts_of_detections,
    contexts_of_given_boxes,
)
from kd_search.evaluation.search.detection_metric import evaluate_detection
from kd_search.evaluation.search.galleries import (
    MODES,
    WHOLE,
    Gallery,
    View,
    galleries_from_metadata,
)
from kd_search.evaluation.search.metric import (
    SearchResult,
    check_embeddings,
    search_result,
)
from kd_search.evaluation.search.predictions import DetectionSet
from kd_search.evaluation.search.protocol_table import (
    ProtocolTable,
    TableOptions,
    listed_names,
    subsets_of_galleries,
    table_rows,
    table_views,
)
from kd_search.evaluation.search.ranking.engine import search_views

# Best detections that are reported for each query.
NUM_MATCHES = 10
#: Cosine, or cosine times the score of the detection (NAE, SeqNet).
SIMILARITIES = ("cosine", "score_weighted")
# The gallery that the field reports for CUHK-SYSU.
_USUAL_GALLERY = "G100"


@dataclass
class Protocol:
    """What the headline numbers depend on besides the model; reported beside them.

    ``use_gt_boxes`` says that the gallery boxes are the annotated ones: search is then a measure
    of the embeddings alone, and detection is not rated. ``gallery`` is the name of a list of the
    set's protocol or "all"; "auto" is G100 where the set lists it, as the field reports it, the
    only list where there is one, and "all" elsewhere. ``mode`` is one of :data:`MODES`,
    ``similarity`` of :data:`SIMILARITIES`.
    """

    score_thresh: float = 0.5
    det_score_thresh: float = 0.5
    iou_thresh: float = 0.5
    top_k: Sequence[int] = (1, 5, 10)
    use_gt_boxes: bool = False
    gallery: str = "auto"
    mode: str = "corrected"
    similarity: str = "cosine"

    def __post_init__(self):
        if self.similarity not in SIMILARITIES:
            raise ValueError(
                f"similarity {self.similarity!r}; use one of {', '.join(SIMILARITIES)}"
            )
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r}; use one of {', '.join(MODES)}")
        self.top_k = sorted({int(k) for k in self.top_k})
        if not self.top_k or self.top_k[0] < 1:
            raise ValueError(f"top_k must hold ranks from 1 on, not {self.top_k}")


@dataclass
class Evaluation:
    """All that an evaluation finds out.

    Attributes:
        results: {"person_search": {"mAP", "top1", ..., "queries", "queries_without_match"},
            "detection": {"AP", "recall"}}, rates in percent, NaN where there is nothing to rate.
            "queries" counts those that the means are over; the others, whose person is in no
            gallery image besides their own, are "queries_without_match". Without "detection" if
            the boxes are the annotated ones.
        intervals: metric of "person_search" to the ends of its 95 % bootstrap interval.
        rankings: one dict per query, see :func:`rank_lists`.
        table: every protocol, or None.
        protocol: of ``results``, with the gallery by name.
    """

    results: "OrderedDict[str, dict[str, float]]"
    intervals: dict[str, tuple[float, float]]
    rankings: list[dict]
    table: Optional[ProtocolTable]
    protocol: Protocol


def evaluate_detection_set(
    detection_set: DetectionSet,
    dataset_dicts: list[dict],
    protocol: Protocol,
    *,
    search_galleries: Optional[Mapping[str, Mapping]] = None,
    table: Optional[TableOptions] = None,
) -> Evaluation:
    """Evaluate search and detection on a test set.

    Only images with ``in_gallery`` (the default) are searched and rated, besides those that a
    gallery lists by name. The order of the images of ``detection_set`` does not matter. All
    protocols share one pass over the similarities.

    Args:
        search_galleries: the lists of the set's protocol, see :func:`galleries_from_metadata`.
        table: which protocols to put into the table; None makes no table.

    Raises:
        ValueError: an image or query of the dataset is not in the detection set, or the other way
            round; the line says how many. Or the protocol asks for what the set does not have.
    """
    lists = search_galleries or {}
    name = headline_gallery(protocol.gallery, list(lists))
    names = [] if table is None else listed_names(list(lists), table.gallery_sizes)
    data = PreparedSet(detection_set, dataset_dicts, lists, {name, *names} & set(lists))
    headline = View(data.gallery(name), "all", protocol.mode)
    views, notes = [headline], []
    if table is not None:
        inside = [gallery for gallery in data.galleries if gallery.name in names]
        more, notes = table_views(inside, table, data.annotations.image_cameras)
        views += more
    num_matches = max(NUM_MATCHES, protocol.top_k[-1])
    boxes = "ground_truth" if protocol.use_gt_boxes else "detected"
    found, rows = data.search(detection_set, boxes, views, protocol, table, notes, num_matches)
    if table is not None and detection_set.has_gt_boxes and not protocol.use_gt_boxes:
        given = detection_set.on_gt_boxes()
        rows += data.search(given, "ground_truth", views, protocol, table, notes, 0)[1]
    search = search_result(found)
    results = OrderedDict(person_search=_search_metrics(search, protocol.top_k))
    detections = data.flatten(detection_set)
    if not protocol.use_gt_boxes:
        rated = evaluate_detection(
            detections.select(data.annotations.in_gallery[detections.image_index]),
            data.annotations.ground_truth,
            score_thresh=protocol.det_score_thresh,
            iou_thresh=protocol.iou_thresh,
        )
        results["detection"] = {"AP": 100 * rated.ap, "recall": 100 * rated.recall}
    if search.num_without_match:
        logging.getLogger(__name__).warning(
            "%d of %d queries have no match in the gallery and are left out of the means",
            search.num_without_match,
            len(data.annotations.query_ids),
        )
    return Evaluation(
        results,
        _intervals(search, protocol.top_k, table or TableOptions()),
        rank_lists(search, detections, data.annotations),
        ProtocolTable(protocol.top_k, rows, notes) if table is not None else None,
        Protocol(**{**asdict(protocol), "gallery": headline.gallery.name}),
    )


def headline_gallery(name: str, listed: Sequence[str]) -> str:
    """Name of the gallery that :class:`Protocol` means, of a set with these lists.

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


class PreparedSet:
    """A test set and what was found in it, matched by id, in the order of the test set."""

    def __init__(
        self,
        detection_set: DetectionSet,
        dataset_dicts: list[dict],
        search_galleries: Mapping,
        names: Collection[str],
    ):
        """
        Args:
            search_galleries: the lists of the set's protocol.
            names: the ones to read.
        """
        self.annotations = flatten_annotations(dataset_dicts)
        self._position = _match_ids("image", detection_set.image_ids, self.annotations.image_ids)
        row = _match_ids(
            "query", detection_set.query_ids.tolist(), self.annotations.query_ids.tolist()
        )
        self.queries = Queries(
            embeddings=detection_set.query_embeddings[row],
            person_ids=self.annotations.query_person_ids,
            image_index=self.annotations.query_image_index,
        )
        self.galleries = galleries_from_metadata(
            search_galleries,
            self.annotations.query_ids,
            len(self.annotations.image_ids),
            [name for name in search_galleries if name in names],
        )

    def gallery(self, name: str) -> Gallery:
        """A gallery by name."""
        if name == WHOLE:
            return Gallery.whole()
        return next(gallery for gallery in self.galleries if gallery.name == name)

    def flatten(self, detections: DetectionSet) -> Detections:
        """Rows in the order of the dataset, so that ties do not depend on which rank saw which."""
        image_index = np.argsort(self._position)[detections.image_index]
        order = np.argsort(image_index, kind="stable")
        if not self.galleries:
            # Nobody searches the others.
            order = order[self.annotations.in_gallery[image_index[order]]]
        return Detections(
            boxes=detections.boxes[order],
            scores=detections.scores[order],
            image_index=image_index[order],
            embeddings=detections.embeddings[order],
        )

    def search(self, detection_set, boxes, views, protocol, table, notes, num_matches):
        """Result of the first view, with ``num_matches`` matches, and the rows of the others."""
        contexts = None
        if any(view.reranked for view in views):
            try:
                contexts = self._contexts(detection_set, boxes, protocol, table)
            except ValueError as error:
                notes.append(f"{boxes} boxes are not re-ranked: {error}")
                views = [view for view in views if not view.reranked]
        flat = self.flatten(detection_set)
        check_embeddings(flat, self.queries)
        # Without rankings to report, the headline's view need not be searched again.
        first = 0 if num_matches else 1
        results = search_views(
            flat,
            self.annotations.ground_truth,
            self.queries,
            views[first:],
            score_thresh=protocol.score_thresh,
            iou_thresh=protocol.iou_thresh,
            num_matches=num_matches,
            image_cameras=self.annotations.image_cameras,
            searchable=self.annotations.in_gallery,
            contexts=contexts,
            k1=table.cbgm_k1 if table else 1,
            weight_by_score=protocol.similarity == "score_weighted",
        )
        if len(views) == 1:
            return results[0], []
        rows = table_rows(
            results[1 - first :],
            boxes,
            table,
            top_k=protocol.top_k,
            subsets=subsets_of_galleries(self.galleries),
            num_detections=int((flat.scores >= protocol.score_thresh).sum()),
            score_thresh=protocol.score_thresh,
            iou_thresh=protocol.iou_thresh,
            similarity=protocol.similarity,
        )
        return results[0], rows

    def _contexts(self, detection_set, boxes, protocol, table) -> Contexts:
        where = (self.annotations.query_boxes, self._position[self.queries.image_index])
        if boxes == "ground_truth":
            return contexts_of_given_boxes(
                detection_set, *where, self.annotations.query_ids, k2=table.cbgm_k2
            )
        return contexts_of_detections(
            detection_set, *where, k2=table.cbgm_k2, score_thresh=protocol.score_thresh
        )


def rank_lists(
    search: SearchResult, detections: Detections, annotations: Annotations
) -> list[dict]:
    """Per-query results as plain types, ready for JSON.

    Returns:
        One dict per query: query_id, image_id, person_id, bbox (of the query), AP (percent; None
        if the person is in no gallery image), first_hit_rank (from 1; None if nothing right was
        found), num_gt, num_found, and matches: the ten best detections, best first, each with
        image_id, bbox, score, similarity, correct. Boxes are absolute pixels, XYXY.
    """
    rankings = []
    for query in range(len(search.ap)):
        matches = []
        for rank, row in enumerate(search.match_index[query, :NUM_MATCHES]):
            if row < 0:
                break
            matches.append(
                {
                    "image_id": annotations.image_ids[detections.image_index[row]],
                    "bbox": detections.boxes[row].tolist(),
                    "score": float(detections.scores[row]),
                    "similarity": float(search.match_similarity[query, rank]),
                    "correct": bool(search.match_correct[query, rank]),
                }
            )
        num_gt = int(search.num_gt[query])
        rankings.append(
            {
                "query_id": int(annotations.query_ids[query]),
                "image_id": annotations.image_ids[annotations.query_image_index[query]],
                "person_id": int(annotations.query_person_ids[query]),
                "bbox": annotations.query_boxes[query].tolist(),
                "AP": 100 * float(search.ap[query]) if num_gt else None,
                "first_hit_rank": int(search.first_hit_rank[query]) or None,
                "num_gt": num_gt,
                "num_found": int(search.num_found[query]),
                "matches": matches,
            }
        )
    return rankings


def results_document(dataset_name: Optional[str], evaluation: Evaluation) -> dict:
    """What is written as JSON: strict JSON has no NaN, so that a rate of nothing is null."""
    metrics = {
        task: {name: None if np.isnan(value) else value for name, value in values.items()}
        for task, values in evaluation.results.items()
    }
    return {
        "dataset": dataset_name,
        "protocol": asdict(evaluation.protocol),
        "metrics": metrics,
        "intervals": {name: list(ends) for name, ends in evaluation.intervals.items()},
        "queries": evaluation.rankings,
    }


def _intervals(
    search: SearchResult, top_k: Sequence[int], options: TableOptions
) -> dict[str, tuple[float, float]]:
    counted = search.num_gt > 0
    if not counted.any() or not options.bootstrap:
        return {}
    ranks = search.first_hit_rank
    hits = [(ranks >= 1) & (ranks <= k) for k in top_k]
    values = 100 * np.stack([search.ap, *hits], axis=1)[counted]
    low, high = bootstrap_intervals(values, options.bootstrap, options.seed)
    names = ["mAP", *(f"top{k}" for k in top_k)]
    return {name: (float(a), float(b)) for name, a, b in zip(names, low, high)}


def _search_metrics(search: SearchResult, top_k: Sequence[int]) -> dict[str, float]:
    metrics = {"mAP": 100 * search.mean_ap()}
    metrics.update({f"top{k}": 100 * search.top_k_accuracy(k) for k in top_k})
    metrics["queries"] = search.num_queries
    metrics["queries_without_match"] = search.num_without_match
    return metrics


def _match_ids(what: str, have: list, want: list) -> np.ndarray:
    """Position in ``have`` of every entry of ``want``; both hold each id once."""
    position = {value: index for index, value in enumerate(have)}
    missing = [value for value in want if value not in position]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(want)} {what} ids of the dataset have no detections "
            f"(the first is {missing[0]!r}); was the whole test set run?"
        )
    if len(have) != len(want):
        strangers = sorted(set(have) - set(want), key=str)
        raise ValueError(
            f"{len(strangers)} {what} ids of the detections are not in the dataset "
            f"(the first is {strangers[0]!r}); is it another test set?"
        )
    return np.array([position[value] for value in want], dtype=np.int64)
