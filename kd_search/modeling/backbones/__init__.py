from kd_search.modeling.backbones.resnet import (
    build_width_resnet_backbone,
    build_width_resnet_fpn_backbone,
    build_width_retinanet_resnet_fpn_backbone,
    resnet_stage,
)

__all__ = [
    "build_width_resnet_backbone",
    "build_width_resnet_fpn_backbone",
    "build_width_retinanet_resnet_fpn_backbone",
    "resnet_stage",
]
