"""Query-guided end-to-end person search (QEEPS), from public descriptions of it.

Munjal, Amin, Tombari, Galasso, "Query-guided End-to-End Person Search", CVPR 2019. Import it to
register keys and networks.
"""

from qeeps import config  # noqa: F401  registers the keys
from qeeps.backbone import QueryGuidedResNet, build_split_resnet_backbone
from qeeps.heads import QueryGuidedROIHeads, QuerySimilarity, SplitRes5ROIHeads
from qeeps.meta_arch import QueryGuidedRCNN
from qeeps.pairs import PairTrainLoader, build_pair_train_loader
from qeeps.rpn import QueryGuidedRPN
from qeeps.search import query_guided_search

__all__ = [
    "PairTrainLoader",
    "QueryGuidedRCNN",
    "QueryGuidedROIHeads",
    "QueryGuidedRPN",
    "QueryGuidedResNet",
    "QuerySimilarity",
    "SplitRes5ROIHeads",
    "build_pair_train_loader",
    "build_split_resnet_backbone",
    "query_guided_search",
]
