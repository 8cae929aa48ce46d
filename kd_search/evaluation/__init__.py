"""Evaluation of person search and re-ID: metrics on flat arrays, and Detectron2's evaluators."""

from kd_search.evaluation.flat_arrays import Contexts, Detections, GroundTruth, Queries
from kd_search.evaluation.reid.embeddings import (
    ReIDEmbeddings,
    load_reid_embeddings,
    save_reid_embeddings,
)
from kd_search.evaluation.reid.evaluator import ReIDEvaluator
from kd_search.evaluation.reid.metric import JunkRule, ReIDResult, ReIDSet, evaluate_reid
from kd_search.evaluation.reid.protocol import ReIDProtocol, evaluate_reid_embeddings
from kd_search.evaluation.search.detection_metric import (
    DetectionResult,
    average_precision,
    evaluate_detection,
)
from kd_search.evaluation.search.evaluate import (
    Evaluation,
    evaluate_detection_set,
    evaluate_detections_file,
)
from kd_search.evaluation.search.evaluator import PersonSearchEvaluator
from kd_search.evaluation.search.galleries import CAMERAS, MODES, Gallery, GalleryProtocol
from kd_search.evaluation.search.predictions import DetectionSet, load_detections, save_detections
from kd_search.evaluation.search.protocol import Protocol, TableOptions
from kd_search.evaluation.search.protocol_table import ProtocolTable
from kd_search.evaluation.search.ranking import RankingResult, RankingSettings, rank_gallery
from kd_search.evaluation.search.test_set import Annotations, flatten_annotations

__all__ = [
    "CAMERAS",
    "MODES",
    "Annotations",
    "Contexts",
    "DetectionResult",
    "DetectionSet",
    "Detections",
    "Evaluation",
    "Gallery",
    "GalleryProtocol",
    "GroundTruth",
    "JunkRule",
    "PersonSearchEvaluator",
    "Protocol",
    "ProtocolTable",
    "Queries",
    "RankingResult",
    "RankingSettings",
    "ReIDEmbeddings",
    "ReIDEvaluator",
    "ReIDProtocol",
    "ReIDResult",
    "ReIDSet",
    "TableOptions",
    "average_precision",
    "evaluate_detection",
    "evaluate_detection_set",
    "evaluate_detections_file",
    "evaluate_reid",
    "evaluate_reid_embeddings",
    "flatten_annotations",
    "load_detections",
    "load_reid_embeddings",
    "rank_gallery",
    "save_detections",
    "save_reid_embeddings",
]
