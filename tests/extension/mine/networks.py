"""A backbone, and a re-ID network of a class of its own."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from torch import nn

from kd_search.outputs import CROP_PARTS, IdentitySpec, ModelSpec

_STRIDES = {"m2": 4, "m3": 8, "m4": 16, "m5": 32}


class FourConvs(Backbone):
    """Four convolutions, each of which halves the map."""

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, stride=2, padding=1)
        self.stages = nn.ModuleDict(
            {name: nn.Conv2d(width, width, 3, stride=2, padding=1) for name in _STRIDES}
        )
        self._out_features = list(_STRIDES)
        self._out_feature_strides = dict(_STRIDES)
        self._out_feature_channels = dict.fromkeys(_STRIDES, width)

    def forward(self, x):
        maps = {}
        x = self.stem(x).relu()
        for name, stage in self.stages.items():
            x = maps[name] = stage(x).relu()
        return maps


@BACKBONE_REGISTRY.register()
def build_mine_fpn_backbone(cfg, input_shape: ShapeSpec):
    return FPN(
        bottom_up=FourConvs(input_shape.channels, cfg.MODEL.FPN.OUT_CHANNELS),
        in_features=list(_STRIDES),
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        top_block=LastLevelMaxPool(),
    )


@META_ARCH_REGISTRY.register()
class MineReID(nn.Module):
    """Embeds crops; neither a ReIDNetwork nor a subclass of one."""

    def __init__(self, cfg):
        super().__init__()
        self.embedding = nn.Conv2d(3, 8, 8, stride=8)
        self.classifier = nn.Linear(8, max(cfg.MODEL.REID_NETWORK.NUM_IDS, 1))

    @property
    def device(self):
        return self.classifier.weight.device

    def spec(self) -> ModelSpec:
        crops = IdentitySpec(embedding_dim=8, num_identities=self.classifier.out_features)
        return ModelSpec(features={}, num_classes=0, parts=CROP_PARTS, crops=crops)

    def crop_features(self, crops: torch.Tensor) -> torch.Tensor:
        return self.embedding(crops / 255).mean(dim=(2, 3))

    def classify(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return features, self.classifier(features)
