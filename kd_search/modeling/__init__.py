from kd_search.modeling.backbones import (
    build_bam_resnet_backbone,
    build_densenet121_backbone,
    build_mobilenet_v2_backbone,
    build_retinanet_torchvision_fpn_backbone,
    build_torchvision_backbone,
    build_torchvision_fpn_backbone,
    build_width_resnet_backbone,
    build_width_resnet_fpn_backbone,
    build_width_retinanet_resnet_fpn_backbone,
)
from kd_search.modeling.distillable import FeatureNetwork, as_distillable, build_distillable
from kd_search.modeling.id_table import IDTable
from kd_search.modeling.meta_arch import (
    DistillableRCNN,
    DistillableRetinaNet,
    PersonSearchRCNN,
    ReIDNetwork,
    TwoStepSearch,
)
from kd_search.modeling.roi_heads.distillable import (
    DistillableBoxPredictor,
    DistillableRes5ROIHeads,
    DistillableROIHeads,
)
from kd_search.modeling.roi_heads.person_search import (
    PersonSearchRes5ROIHeads,
    PersonSearchROIHeads,
)
from kd_search.modeling.roi_heads.reid_branch import ReIDBranch
from kd_search.modeling.roi_heads.reid_head import (
    REID_HEAD_REGISTRY,
    EmbeddingHead,
    build_reid_head,
)
from kd_search.modeling.rpn import DistillableRPN

__all__ = [
    "REID_HEAD_REGISTRY",
    "DistillableBoxPredictor",
    "DistillableRCNN",
    "DistillableROIHeads",
    "DistillableRPN",
    "DistillableRes5ROIHeads",
    "DistillableRetinaNet",
    "EmbeddingHead",
    "FeatureNetwork",
    "IDTable",
    "PersonSearchRCNN",
    "PersonSearchROIHeads",
    "PersonSearchRes5ROIHeads",
    "ReIDBranch",
    "ReIDNetwork",
    "TwoStepSearch",
    "as_distillable",
    "build_distillable",
    "build_bam_resnet_backbone",
    "build_densenet121_backbone",
    "build_mobilenet_v2_backbone",
    "build_reid_head",
    "build_retinanet_torchvision_fpn_backbone",
    "build_torchvision_backbone",
    "build_torchvision_fpn_backbone",
    "build_width_resnet_backbone",
    "build_width_resnet_fpn_backbone",
    "build_width_retinanet_resnet_fpn_backbone",
]
