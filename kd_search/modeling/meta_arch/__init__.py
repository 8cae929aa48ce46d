from kd_search.modeling.meta_arch.person_search_rcnn import PersonSearchRCNN
from kd_search.modeling.meta_arch.rcnn import DistillableRCNN
from kd_search.modeling.meta_arch.reid_network import ReIDNetwork
from kd_search.modeling.meta_arch.retinanet import DistillableRetinaNet
from kd_search.modeling.meta_arch.two_step import TwoStepSearch

__all__ = [
    "DistillableRCNN",
    "DistillableRetinaNet",
    "PersonSearchRCNN",
    "ReIDNetwork",
    "TwoStepSearch",
]
