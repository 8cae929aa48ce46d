"""The evaluation of a re-ID test set: embeddings in, metrics and rankings out."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Optional

import numpy as np

from kd_search.evaluation.flat_arrays import check_top_k
from kd_search.evaluation.reid.embeddings import ReIDEmbeddings
from kd_search.evaluation.reid.metric import JunkRule, ReIDResult, evaluate_reid

#: Best entries to report for each query.
NUM_MATCHES = 10


@dataclass
class ReIDProtocol:
    """What the numbers depend on besides the model; reported beside them.

    Attributes:
        settings: some of :data:`SETTINGS`; the first gives the headline numbers.
        metric, ap_rule, junk: see :func:`evaluate_reid`.
        top_k: ranks of the reported accuracies.
    """

    settings: Sequence[str] = ("video-to-video",)
    metric: str = "cosine"
    ap_rule: str = "market"
    junk: JunkRule = field(default_factory=JunkRule)
    top_k: Sequence[int] = (1, 5, 10)

    def __post_init__(self) -> None:
        self.settings = list(dict.fromkeys(self.settings))
        if not self.settings:
            raise ValueError("settings is empty: nothing would be evaluated")
        self.top_k = check_top_k(self.top_k)


@dataclass
class ReIDEvaluation:
    """Results of an evaluation.

    Attributes:
        results: {"reid": {"mAP", "top1", ..., "queries", "queries_without_match"}}, rates in
            percent, of the first setting. Several settings are also there by name: "reid_i2i",
            "reid_i2v", "reid_v2i", "reid_v2v". "queries" counts those that the means are over,
            "queries_without_match" the others.
        rankings: setting to one dict per query, see :func:`rank_entries`.
    """

    results: "OrderedDict[str, dict[str, float]]"
    rankings: dict[str, list[dict[str, Any]]]
    protocol: ReIDProtocol


def evaluate_reid_embeddings(embeddings: ReIDEmbeddings, protocol: ReIDProtocol) -> ReIDEvaluation:
    """Evaluate every setting of a protocol.

    Raises:
        ValueError: a setting or rule is unknown, there are no embeddings of a setting, or none of
            its queries has a match.
    """
    results: OrderedDict[str, dict[str, float]] = OrderedDict()
    rankings = {}
    for setting in protocol.settings:
        query_rows, gallery_rows = embeddings.rows_of(setting)
        result = evaluate_reid(
            embeddings.select(query_rows),
            embeddings.select(gallery_rows),
            metric=protocol.metric,
            ap_rule=protocol.ap_rule,
            junk=protocol.junk,
            num_matches=NUM_MATCHES,
        )
        try:
            metrics = result.metrics(protocol.top_k)
        except ValueError as error:
            raise ValueError(f"{setting}: {error}") from None
        results.setdefault("reid", metrics)
        if len(protocol.settings) > 1:
            of_query, _, of_gallery = setting.partition("-to-")
            results[f"reid_{of_query[0]}2{of_gallery[0]}"] = dict(metrics)
        rankings[setting] = rank_entries(result, embeddings, query_rows, gallery_rows)
    return ReIDEvaluation(results, rankings, protocol)


def rank_entries(
    result: ReIDResult, embeddings: ReIDEmbeddings, query_rows: np.ndarray, gallery_rows: np.ndarray
) -> list[dict[str, Any]]:
    """Convert per-query results to plain types, ready for JSON.

    Returns:
        One dict per query: sample_id, person_id, camera_id, AP (percent; None without a match),
        first_hit_rank (from 1; None without a match), num_gt, and matches: the ten best entries,
        best first, each with sample_id, person_id, camera_id, similarity (cosine, or minus the
        distance), correct.
    """
    rankings = []
    for query, row in enumerate(query_rows):
        matches = [
            {
                **_identity(embeddings, gallery_rows[entry]),
                "similarity": float(similarity),
                "correct": bool(correct),
            }
            for entry, similarity, correct in zip(
                result.match_index[query],
                result.match_similarity[query],
                result.match_correct[query],
            )
            if entry >= 0
        ]
        num_gt = int(result.num_gt[query])
        rankings.append(
            {
                **_identity(embeddings, row),
                "AP": 100 * float(result.ap[query]) if num_gt else None,
                "first_hit_rank": int(result.first_hit_rank[query]) or None,
                "num_gt": num_gt,
                "matches": matches,
            }
        )
    return rankings


def reid_document(dataset_name: Optional[str], evaluation: ReIDEvaluation) -> dict[str, Any]:
    """Make the content of the results file."""
    return {
        "dataset": dataset_name,
        "protocol": asdict(evaluation.protocol),
        "metrics": evaluation.results,
        "queries": evaluation.rankings,
    }


def _identity(embeddings: ReIDEmbeddings, row: int) -> dict[str, int]:
    names = ("sample_id", "person_id", "camera_id")
    return {name: int(getattr(embeddings, f"{name}s")[row]) for name in names}
