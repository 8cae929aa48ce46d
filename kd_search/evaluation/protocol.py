"""The evaluation of a test set: detections and annotations in, metrics and rankings out."""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from .annotations import Annotations, flatten_annotations
from .detection_metric import evaluate_detection
from .detection_set import DetectionSet
from .flat_arrays import Detections, Queries
from .search_metric import SearchResult, evaluate_search

# Best detections that are reported for each query.
NUM_MATCHES = 10


@dataclass
class Protocol:
    """What numbers depend on besides the model; reported beside them.

    ``use_gt_boxes`` says that the gallery boxes are the annotated ones: search is then a measure
    of the embeddings alone, and detection is not rated.
    """

    score_thresh: float = 0.5
    det_score_thresh: float = 0.5
    iou_thresh: float = 0.5
    top_k: Sequence[int] = (1, 5, 10)
    use_gt_boxes: bool = False

    def __post_init__(self):
        self.top_k = sorted({int(k) for k in self.top_k})
        if not self.top_k or self.top_k[0] < 1:
            raise ValueError(f"top_k must hold ranks from 1 on, not {self.top_k}")


def evaluate_detection_set(
    detection_set: DetectionSet, dataset_dicts: list[dict], protocol: Protocol
) -> tuple["OrderedDict[str, dict[str, float]]", list[dict]]:
    """Evaluate search and detection on a test set.

    Only images with ``in_gallery`` (the default) are searched and rated. The order of the images
    of ``detection_set`` does not matter.

    Returns:
        results: {"person_search": {"mAP", "top1", ..., "queries", "queries_without_match"},
            "detection": {"AP", "recall"}}, rates in percent, NaN where there is nothing to rate.
            "queries" counts those that the means are over; the others, whose person is in no
            gallery image besides their own, are "queries_without_match". Without "detection" if
            the boxes are the annotated ones.
        rankings: one dict per query, see :func:`rank_lists`.

    Raises:
        ValueError: an image or query of the dataset is not in the detection set, or the other way
            round; the line says how many.
    """
    annotations = flatten_annotations(dataset_dicts)
    position = _match_ids("image", detection_set.image_ids, annotations.image_ids)
    query_row = _match_ids(
        "query", detection_set.query_ids.tolist(), annotations.query_ids.tolist()
    )
    # The order of the dataset, so that ties do not depend on which rank saw which image.
    image_index = np.argsort(position)[detection_set.image_index]
    order = np.argsort(image_index, kind="stable")
    order = order[annotations.in_gallery[image_index[order]]]
    detections = Detections(
        boxes=detection_set.boxes[order],
        scores=detection_set.scores[order],
        image_index=image_index[order],
        embeddings=detection_set.embeddings[order],
    )
    search = evaluate_search(
        detections,
        annotations.ground_truth,
        Queries(
            embeddings=detection_set.query_embeddings[query_row],
            person_ids=annotations.query_person_ids,
            image_index=annotations.query_image_index,
        ),
        score_thresh=protocol.score_thresh,
        iou_thresh=protocol.iou_thresh,
        num_matches=max(NUM_MATCHES, protocol.top_k[-1]),
    )
    results = OrderedDict(person_search=_search_metrics(search, protocol.top_k))
    if not protocol.use_gt_boxes:
        rated = evaluate_detection(
            detections,
            annotations.ground_truth,
            score_thresh=protocol.det_score_thresh,
            iou_thresh=protocol.iou_thresh,
        )
        results["detection"] = {"AP": 100 * rated.ap, "recall": 100 * rated.recall}
    if search.num_without_match:
        logging.getLogger(__name__).warning(
            "%d of %d queries have no match in the gallery and are left out of the means",
            search.num_without_match,
            len(annotations.query_ids),
        )
    return results, rank_lists(search, detections, annotations)


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


def results_document(
    dataset_name: str, protocol: Protocol, results: dict[str, dict], rankings: list[dict]
) -> dict:
    """What is written as JSON: strict JSON has no NaN, so that a rate of nothing is null."""
    metrics = {
        task: {name: None if np.isnan(value) else value for name, value in values.items()}
        for task, values in results.items()
    }
    return {
        "dataset": dataset_name,
        "protocol": asdict(protocol),
        "metrics": metrics,
        "queries": rankings,
    }


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
