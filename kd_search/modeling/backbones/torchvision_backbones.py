"""DenseNet-121 and MobileNet-V2 of torchvision as Detectron2 backbones."""

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import nn
from torchvision.models import (
    DenseNet121_Weights,
    MobileNet_V2_Weights,
    WeightsEnum,
    densenet121,
    mobilenet_v2,
)

from kd_search.modeling.backbones.torchvision_weights import load_torchvision_features

#: Name of the only map of these backbones, for ``MODEL.REID_NETWORK.FEATURE``.
FEATURE = "last"

_KEY = "MODEL.TORCHVISION.WEIGHTS"


class TorchvisionBackbone(Backbone):
    """The convolutional part of a torchvision network; its parameters are named ``features...``."""

    def __init__(self, features: nn.Sequential, channels: int, stride: int):
        """
        Args:
            features: (N, 3, H, W) to (N, channels, about H / stride, about W / stride).
        """
        super().__init__()
        self.features = features
        self._out_features = [FEATURE]
        self._out_feature_channels = {FEATURE: channels}
        self._out_feature_strides = {FEATURE: stride}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map normalised images (N, 3, H, W) to {"last": features}."""
        return {FEATURE: self.features(x)}


@BACKBONE_REGISTRY.register()
def build_densenet121_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TorchvisionBackbone:
    """Build a DenseNet-121 with 1,024 channels.

    Stride 32 (as in VKD, ECCV 2020), or 16 with ``MODEL.TORCHVISION.LAST_STRIDE`` 1, which omits
    the pooling before the last block. ``FINAL_ACTIVATION`` is torchvision's ReLU after the last
    normalisation.

    Raises:
        FileNotFoundError, ValueError: see :func:`load_torchvision_features`; or a key does not fit.
    """
    _check(cfg, input_shape)
    features = densenet121(weights=None).features
    _load(features, cfg, DenseNet121_Weights)
    if cfg.MODEL.TORCHVISION.LAST_STRIDE == 1:
        features.transition3.pool = nn.Identity()
    if cfg.MODEL.TORCHVISION.FINAL_ACTIVATION:
        features.add_module("relu5", nn.ReLU(inplace=True))
    return TorchvisionBackbone(features, 1024, 16 * cfg.MODEL.TORCHVISION.LAST_STRIDE)


@BACKBONE_REGISTRY.register()
def build_mobilenet_v2_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TorchvisionBackbone:
    """Build a MobileNet-V2 with 1,280 channels.

    Stride 32, or 16 with ``MODEL.TORCHVISION.LAST_STRIDE`` 1, which changes block 14, the last to
    halve the resolution. ``FINAL_ACTIVATION`` is the ReLU6 after the last convolution. VKD (ECCV
    2020) has stride 16 and no such activation.

    Raises:
        FileNotFoundError, ValueError: see :func:`load_torchvision_features`; or a key does not fit.
    """
    _check(cfg, input_shape)
    stride = cfg.MODEL.TORCHVISION.LAST_STRIDE
    features = mobilenet_v2(weights=None).features
    _load(features, cfg, MobileNet_V2_Weights)
    features[14].conv[1][0].stride = (stride, stride)
    if not cfg.MODEL.TORCHVISION.FINAL_ACTIVATION:
        features[18][2] = nn.Identity()
    return TorchvisionBackbone(features, 1280, 16 * stride)


def _load(features: nn.Module, cfg: CfgNode, known: type[WeightsEnum]) -> None:
    if not cfg.MODEL.TORCHVISION.WEIGHTS:
        return
    # These weights need this channel order and scale; with others they load without an error.
    if cfg.INPUT.FORMAT != "RGB" or min(cfg.MODEL.PIXEL_STD) <= 1:
        raise ValueError(
            f"{_KEY} needs torchvision's colours: set INPUT.FORMAT RGB, MODEL.PIXEL_MEAN "
            "[123.675, 116.28, 103.53] and MODEL.PIXEL_STD [58.395, 57.12, 57.375]"
        )
    load_torchvision_features(features, cfg.MODEL.TORCHVISION.WEIGHTS, known, _KEY)


def _check(cfg: CfgNode, input_shape: ShapeSpec) -> None:
    stride = cfg.MODEL.TORCHVISION.LAST_STRIDE
    if stride not in (1, 2):
        raise ValueError(f"MODEL.TORCHVISION.LAST_STRIDE {stride} must be 1 or 2")
    if cfg.MODEL.BACKBONE.FREEZE_AT > 0:
        raise ValueError("MODEL.BACKBONE.FREEZE_AT must be 0 for a backbone of torchvision")
    if input_shape.channels != 3:
        raise ValueError(
            f"MODEL.PIXEL_MEAN must have 3 channels for a backbone of torchvision, "
            f"not {input_shape.channels}"
        )
