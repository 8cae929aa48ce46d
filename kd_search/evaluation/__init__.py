"""Evaluation of person search and re-ID: protocols on flat arrays, and Detectron2's interface."""

from kd_search.evaluation.reid.arrays import (
    JunkRule,
    ReIDSet,
)
from kd_search.evaluation.reid.embeddings import (
    ReIDEmbeddings,
    load_reid_embeddings,
    save_reid_embeddings,
)
from kd_search.evaluation.reid.evaluator import ReIDEvaluator
from kd_search.evaluation.reid.metric import (
    ReIDResult,
    evaluate_reid,
)
from kd_search.evaluation.reid.protocol import (
    ReIDProtocol,
    evaluate_reid_embeddings,
)
from kd_search.evaluation.search.annotations import (
    Annotations,
    flatten_annotations,
)
from kd_search.evaluation.search.cbgm import Contexts
from kd_search.evaluation.search.detection_metric import (
    DetectionResult,
    evaluate_detection,
)
from kd_search.evaluation.search.evaluator import PersonSearchEvaluator
from kd_search.evaluation.search.galleries import (
    CAMERAS,
    MODES,
    Gallery,
    View,
)
from kd_search.evaluation.search.metric import (
    SearchResult,
    evaluate_search,
)
from kd_search.evaluation.search.predictions import DetectionSet
from kd_search.evaluation.search.predictions_io import (
    evaluate_detections_file,
    load_detections,
    save_detections,
)
from kd_search.evaluation.search.protocol import (
    Evaluation,
    Protocol,
    evaluate_detection_set,
)
from kd_search.evaluation.search.protocol_table import (
    ProtocolTable,
    TableOptions,
)
from kd_search.evaluation.search.ranking.engine import search_views
from kd_search.evaluation.search.ranking.result import ViewResult

from .average_precision import average_precision
from .flat_arrays import Detections, GroundTruth, Queries

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
    "GroundTruth",
    "JunkRule",
    "PersonSearchEvaluator",
    "Protocol",
    "ProtocolTable",
    "Queries",
    "ReIDEmbeddings",
    "ReIDEvaluator",
    "ReIDProtocol",
    "ReIDResult",
    "ReIDSet",
    "SearchResult",
    "TableOptions",
    "View",
    "ViewResult",
    "average_precision",
    "evaluate_detection",
    "evaluate_detection_set",
    "evaluate_detections_file",
    "evaluate_reid",
    "evaluate_reid_embeddings",
    "evaluate_search",
    "flatten_annotations",
    "load_detections",
    "load_reid_embeddings",
    "save_detections",
    "save_reid_embeddings",
    "search_views",
]
