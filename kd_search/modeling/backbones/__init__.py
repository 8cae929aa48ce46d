from kd_search.modeling.backbones.bam import BottleneckAttention, build_bam_resnet_backbone
from kd_search.modeling.backbones.resnet import (
    build_width_resnet_backbone,
    build_width_resnet_fpn_backbone,
    build_width_retinanet_resnet_fpn_backbone,
    resnet_stage,
)
from kd_search.modeling.backbones.torchvision_backbones import (
    build_densenet121_backbone,
    build_mobilenet_v2_backbone,
    build_retinanet_torchvision_fpn_backbone,
    build_torchvision_backbone,
    build_torchvision_fpn_backbone,
)

__all__ = [
    "BottleneckAttention",
    "build_bam_resnet_backbone",
    "build_densenet121_backbone",
    "build_mobilenet_v2_backbone",
    "build_retinanet_torchvision_fpn_backbone",
    "build_torchvision_backbone",
    "build_torchvision_fpn_backbone",
    "build_width_resnet_backbone",
    "build_width_resnet_fpn_backbone",
    "build_width_retinanet_resnet_fpn_backbone",
    "resnet_stage",
]
