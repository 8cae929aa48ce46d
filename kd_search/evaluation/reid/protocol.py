"""The evaluation of a re-ID test set: embeddings in, metrics and rankings out."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Optional

from kd_search.evaluation.reid.arrays import JunkRule
from kd_search.evaluation.reid.embeddings import ReIDEmbeddings
from kd_search.evaluation.reid.metric import (
    ReIDResult,
    evaluate_reid,
)

#: Best entries that are reported for each query.
NUM_MATCHES = 10


@dataclass
class ReIDProtocol:
    """What the numbers depend on besides the model; reported beside them.

    ``settings`` are some of :data:`SETTINGS`; the first gives the headline numbers. The other
    fields are those of :func:`evaluate_reid`.
    """

    settings: Sequence[str] = ("video-to-video",)
    metric: str = "cosine"
    ap_rule: str = "market"
    junk: JunkRule = field(default_factory=JunkRule)
    top_k: Sequence[int] = (1, 5, 10)

    def __post_init__(self):
        self.settings = list(dict.fromkeys(self.settings))
        if not self.settings:
            raise ValueError("settings is empty: nothing would be evaluated")
        self.top_k = sorted({int(k) for k in self.top_k})
        if not self.top_k or self.top_k[0] < 1:
            raise ValueError(f"top_k must hold ranks from 1 on, not {self.top_k}")


@dataclass
class ReIDEvaluation:
    """All that an evaluation finds out.

    ``results`` is {"reid": {"mAP", "top1", ..., "queries", "queries_without_match"}}, rates in
    percent, of the first setting. With several settings each is there under its own name, too:
    "reid_i2i", "reid_i2v", "reid_v2i" or "reid_v2v". "queries" counts those that the means are
    over, "queries_without_match" the others. ``rankings`` has one dict per query and setting, see
    :func:`rank_entries`.
    """

    results: "OrderedDict[str, dict[str, float]]"
    rankings: dict[str, list[dict[str, Any]]]
    protocol: ReIDProtocol


def short_name(setting: str) -> str:
    """ "i2v" of "image-to-video"."""
    query, _, gallery = setting.partition("-to-")
    return f"{query[0]}2{gallery[0]}"


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
            metrics = _metrics(result, protocol.top_k)
        except ValueError as error:
            raise ValueError(f"{setting}: {error}") from None
        results.setdefault("reid", metrics)
        if len(protocol.settings) > 1:
            results[f"reid_{short_name(setting)}"] = dict(metrics)
        rankings[setting] = rank_entries(result, embeddings, query_rows, gallery_rows)
    return ReIDEvaluation(results, rankings, protocol)


def rank_entries(
    result: ReIDResult, embeddings: ReIDEmbeddings, query_rows, gallery_rows
) -> list[dict[str, Any]]:
    """Per-query results as plain types, ready for JSON.

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
    """What is written as JSON."""
    return {
        "dataset": dataset_name,
        "protocol": asdict(evaluation.protocol),
        "metrics": evaluation.results,
        "queries": evaluation.rankings,
    }


def _metrics(result: ReIDResult, top_k: Sequence[int]) -> dict[str, float]:
    metrics: dict[str, float] = {"mAP": 100 * result.mean_ap()}
    metrics.update({f"top{k}": 100 * result.top_k_accuracy(k) for k in top_k})
    metrics["queries"] = result.num_queries
    metrics["queries_without_match"] = result.num_without_match
    return metrics


def _identity(embeddings: ReIDEmbeddings, row: int) -> dict[str, int]:
    return {
        "sample_id": int(embeddings.sample_ids[row]),
        "person_id": int(embeddings.person_ids[row]),
        "camera_id": int(embeddings.camera_ids[row]),
    }
