"""The evaluation of a test set: detections and annotations in, metrics and rankings out."""

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Optional

import numpy as np

from kd_search.evaluation.flat_arrays import AnyPath, Detections
from kd_search.evaluation.query_results import bootstrap_intervals
from kd_search.evaluation.search.detection_metric import evaluate_detection
from kd_search.evaluation.search.galleries import (
    GalleryProtocol,
    headline_gallery,
    listed_names,
    table_protocols,
)
from kd_search.evaluation.search.predictions import DetectionSet, load_detections
from kd_search.evaluation.search.protocol import Protocol, TableOptions
from kd_search.evaluation.search.protocol_table import ProtocolTable, rate_names, table_rows
from kd_search.evaluation.search.ranking import RankingResult
from kd_search.evaluation.search.test_set import Annotations, DatasetDicts, PreparedSet
from kd_search.utils.files import write_json

#: Name of the file of per-query results in the output folder of an evaluation.
RESULTS_FILE = "person_search_results.json"
# Best detections to report for each query.
NUM_MATCHES = 10


@dataclass
class Evaluation:
    """Results of an evaluation.

    Attributes:
        results: {"person_search": {"mAP", "top1", ..., "queries", "queries_without_match"},
            "detection": {"AP", "recall"}, "open_set": see :meth:`RankingResult.open_set`}, rates in
            percent, NaN where there is nothing to rate. Few queries have no "open_set".
            "queries" counts those that the means are over, "queries_without_match" the others,
            whose person is in no gallery image besides their own. Without "detection" if the boxes
            are the annotated ones.
        intervals: metric of "person_search" to the ends of its 95 % bootstrap interval.
        rankings: one dict per query, see :func:`rank_lists`.
        table: every protocol, or None.
        protocol: of ``results``, with the gallery by name.
    """

    results: "OrderedDict[str, dict[str, float]]"
    intervals: dict[str, tuple[float, float]]
    rankings: list[dict[str, Any]]
    table: Optional[ProtocolTable]
    protocol: Protocol


def evaluate_detection_set(
    detection_set: DetectionSet,
    dataset_dicts: DatasetDicts,
    protocol: Protocol,
    *,
    search_galleries: Optional[Mapping[str, Any]] = None,
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
        ValueError: an image or query of the dataset is not in the detection set, or vice versa; the
            message has their number. Or the protocol needs what the set does not have.
    """
    lists = search_galleries or {}
    name = headline_gallery(protocol.gallery, list(lists))
    names = [] if table is None else listed_names(list(lists), table.gallery_sizes)
    data = PreparedSet(detection_set, dataset_dicts, lists, {name, *names} & set(lists))
    headline = GalleryProtocol(data.gallery(name), "all", protocol.mode)
    subsets = {g.name: g.queries for g in data.galleries if g.queries is not None}
    protocols: list[GalleryProtocol] = []
    notes: list[str] = []
    if table is not None:
        listed = [gallery for gallery in data.galleries if gallery.name in names]
        protocols, notes = table_protocols(
            listed,
            data.annotations.image_cameras,
            sizes=table.gallery_sizes,
            cameras=table.cameras,
            modes=table.modes,
            reranked=(False, True) if table.cbgm else (False,),
        )
    num_matches = max(NUM_MATCHES, protocol.top_k[-1])
    settings = protocol.ranking_settings(num_matches, table.cbgm_k1 if table else 1)
    boxes = "ground_truth" if protocol.use_gt_boxes else "detected"
    passes = [(boxes, detection_set, [headline, *protocols])]
    if table is not None and detection_set.has_gt_boxes and not protocol.use_gt_boxes:
        passes.append(("ground_truth", detection_set.on_gt_boxes(), protocols))
    ranked: list[RankingResult] = []
    rows: list[dict[str, Any]] = []
    for boxes, found, chosen in passes:
        contexts = None
        if table is not None and table.cbgm:
            try:
                contexts = data.contexts(
                    found, table.cbgm_k2, protocol.score_thresh, given_boxes=boxes == "ground_truth"
                )
            except ValueError as error:
                notes.append(f"{boxes} boxes are not re-ranked: {error}")
                chosen = [p for p in chosen if not p.reranked]
        first = len(ranked)
        ranked += data.rank(found, chosen, settings, contexts=contexts)
        if table is not None:
            # The headline comes first and has no row.
            rows += table_rows(ranked[max(first, 1) :], boxes, table, protocol, subsets)
        settings = replace(settings, num_matches=0)
    rated = None
    if not protocol.use_gt_boxes:
        rated = evaluate_detection(
            data.flatten(detection_set, gallery_only=True),
            data.annotations.ground_truth,
            score_thresh=protocol.det_score_thresh,
            iou_thresh=protocol.iou_thresh,
        )
    evaluation = summarise_search(
        ranked[0],
        data.flatten(detection_set),
        data.annotations,
        replace(protocol, gallery=name),
        detection=None if rated is None else {"AP": 100 * rated.ap, "recall": 100 * rated.recall},
        options=table or TableOptions(),
    )
    if table is not None:
        evaluation.table = ProtocolTable(protocol.top_k, rows, notes)
    return evaluation


def summarise_search(
    search: RankingResult,
    detections: Detections,
    annotations: Annotations,
    protocol: Protocol,
    *,
    detection: Optional[dict[str, float]] = None,
    options: TableOptions = TableOptions(),  # noqa: B008  not changed
) -> Evaluation:
    """Metrics, intervals and rankings of a ranked test set, without a table.

    Args:
        search: results of all queries; its matches are rows of ``detections``.
        protocol: with the gallery by name.
        detection: metrics of the detections.
        options: resamples and seed of the intervals.
    """
    results = OrderedDict(person_search=search.metrics(protocol.top_k))
    if detection is not None:
        results["detection"] = detection
    if open_set := search.open_set():
        results["open_set"] = open_set
    if search.num_without_match:
        logging.getLogger(__name__).warning(
            "%d of %d queries have no gallery, or no match in it, and are left out of the means",
            search.num_without_match,
            len(annotations.query_ids),
        )
    rates = search.rates(protocol.top_k)[search.num_gt > 0]
    intervals = {}
    if len(rates) and options.bootstrap:
        low, high = bootstrap_intervals(rates, options.bootstrap, options.seed)
        ends = zip(low.tolist(), high.tolist())
        intervals = dict(zip(rate_names(protocol.top_k), ends))
    rankings = rank_lists(search, detections, annotations)
    return Evaluation(results, intervals, rankings, None, protocol)


def rank_lists(
    search: RankingResult, detections: Detections, annotations: Annotations
) -> list[dict[str, Any]]:
    """Convert per-query results to plain types, ready for JSON.

    Returns:
        One dict per query: query_id, image_id, person_id, bbox (of the query), AP (percent; None
        if the person is in no gallery image), first_hit_rank (from 1; None if nothing right was
        found), num_gt, num_found, and matches: the ten best detections, best first, each with
        image_id, bbox, score, similarity, correct. Boxes are absolute pixels, XYXY.
    """
    rankings = []
    for query in range(len(search.ap)):
        matches = [
            {
                "image_id": annotations.image_ids[detections.image_index[row]],
                "bbox": detections.boxes[row].tolist(),
                "score": float(detections.scores[row]),
                "similarity": float(search.match_similarity[query, rank]),
                "correct": bool(search.match_correct[query, rank]),
            }
            for rank, row in enumerate(search.match_index[query, :NUM_MATCHES])
            if row >= 0
        ]
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


def results_document(dataset_name: Optional[str], evaluation: Evaluation) -> dict[str, Any]:
    """Make the content of the results file; NaN becomes null, as strict JSON has no NaN."""
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


def write_evaluation(
    output_dir: AnyPath, dataset_name: Optional[str], evaluation: Evaluation
) -> None:
    """Write the per-query results and, if there is one, the table of protocols."""
    document = results_document(dataset_name, evaluation)
    write_json(os.path.join(output_dir, RESULTS_FILE), document, sealed=True)
    if evaluation.table is not None:
        evaluation.table.write(output_dir, dataset_name)


def evaluate_detections_file(
    path: AnyPath,
    dataset_dicts: DatasetDicts,
    *,
    search_galleries: Optional[Mapping[str, Any]] = None,
    output_dir: Optional[AnyPath] = None,
    table: Optional[TableOptions] = None,
    **protocol: Any,
) -> "OrderedDict[str, dict[str, float]]":
    """Evaluate saved detections as :class:`PersonSearchEvaluator` does.

    Args:
        path: file of :func:`save_detections`.
        dataset_dicts: annotations of the same test set.
        search_galleries: the lists of its protocol, from the metadata of the set.
        output_dir: where to write the per-query results and the table; None writes nothing.
        table: which protocols to put into a table.
        protocol: fields of :class:`Protocol`; by default ``use_gt_boxes`` is that of the file.

    Returns:
        ``results`` of :func:`evaluate_detection_set`.
    """
    detections, metadata = load_detections(path)
    settings = Protocol(**{"use_gt_boxes": bool(metadata.get("use_gt_boxes")), **protocol})
    try:
        evaluation = evaluate_detection_set(
            detections, dataset_dicts, settings, search_galleries=search_galleries, table=table
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if output_dir is not None:
        write_evaluation(output_dir, metadata.get("dataset"), evaluation)
    return evaluation.results
