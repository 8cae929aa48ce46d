"""Evaluation of person search and re-ID: protocols on flat arrays, and Detectron2's interface."""

from .annotations import Annotations, flatten_annotations
from .average_precision import average_precision
from .cbgm import Contexts
from .detection_metric import DetectionResult, evaluate_detection
from .detection_set import DetectionSet
from .detections_file import evaluate_detections_file, load_detections, save_detections
from .flat_arrays import Detections, GroundTruth, Queries
from .galleries import CAMERAS, MODES, Gallery, View
from .person_search_evaluator import PersonSearchEvaluator
from .protocol import Evaluation, Protocol, evaluate_detection_set
from .protocol_table import ProtocolTable, TableOptions
from .reid_arrays import JunkRule, ReIDSet
from .reid_embeddings import ReIDEmbeddings, load_reid_embeddings, save_reid_embeddings
from .reid_evaluator import ReIDEvaluator
from .reid_metric import ReIDResult, evaluate_reid
from .reid_protocol import ReIDProtocol, evaluate_reid_embeddings
from .search_engine import search_views
from .search_metric import SearchResult, evaluate_search
from .view_result import ViewResult

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
