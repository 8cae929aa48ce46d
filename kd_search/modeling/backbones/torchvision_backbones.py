"""Classification networks of torchvision and timm as Detectron2 backbones."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import nn
from torchvision.models import DenseNet

from kd_search.modeling.backbones.classification_weights import load_weights
from kd_search.modeling.backbones.layer_chain import (
    LAST,
    ChainBackbone,
    Layer,
    LayerChain,
    find_layers,
    is_activation,
    split_at,
)
from kd_search.modeling.backbones.resnet import build_fpn

#: Prefix of ``MODEL.TORCHVISION.NAME`` for a network of timm.
TIMM = "timm:"
#: Stages that ``MODEL.BACKBONE.FREEZE_AT`` counts, as Detectron2's ResNet does.
_STAGES = ("stem", "res2", "res3", "res4", "res5")
_NODE = "MODEL.TORCHVISION"


@BACKBONE_REGISTRY.register()
def build_torchvision_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ChainBackbone:
    """Build ``MODEL.TORCHVISION.NAME`` with the maps of ``OUT_FEATURES``.

    For C4 these are ["res4"]; the ROI heads run the rest of the network, :func:`build_last_stage`.

    Raises:
        FileNotFoundError, ValueError: a key does not fit, or the weights, see
            :func:`kd_search.modeling.backbones.classification_weights.load_weights`.
    """
    return _build(cfg, input_shape, cfg.MODEL.TORCHVISION.OUT_FEATURES)


@BACKBONE_REGISTRY.register()
def build_torchvision_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a feature pyramid (``MODEL.FPN``) on ``MODEL.TORCHVISION.NAME``.

    Raises:
        FileNotFoundError, ValueError: see :func:`build_torchvision_backbone`.
    """
    return build_fpn(cfg, _build_bottom_up(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_torchvision_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build RetinaNet's feature pyramid on ``MODEL.TORCHVISION.NAME``.

    p6 and p7 are made from the deepest of ``MODEL.FPN.IN_FEATURES`` (Lin et al., ICCV 2017).

    Raises:
        FileNotFoundError, ValueError: see :func:`build_torchvision_backbone`.
    """
    bottom_up = _build_bottom_up(cfg, input_shape)
    deepest = cfg.MODEL.FPN.IN_FEATURES[-1]
    channels = bottom_up.output_shape()[deepest].channels
    top_block = LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS, deepest)
    return build_fpn(cfg, bottom_up, top_block)


@BACKBONE_REGISTRY.register()
def build_densenet121_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ChainBackbone:
    """Build torchvision's DenseNet-121 up to its last map, "last"; 1,024 channels.

    Stride 32 (as in VKD, ECCV 2020), or 16 with ``MODEL.TORCHVISION.LAST_STRIDE`` 1, which omits
    the pooling before the last block. ``FINAL_ACTIVATION`` is torchvision's ReLU after the last
    normalisation.
    """
    return _build(_with_name(cfg, "densenet121"), input_shape, [LAST])


@BACKBONE_REGISTRY.register()
def build_mobilenet_v2_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ChainBackbone:
    """Build torchvision's MobileNet-V2 up to its last map, "last"; 1,280 channels.

    Stride 32, or 16 with ``MODEL.TORCHVISION.LAST_STRIDE`` 1, which changes block 14, the last to
    halve the resolution. ``FINAL_ACTIVATION`` is the ReLU6 after the last convolution. VKD (ECCV
    2020) has stride 16 and no such activation.
    """
    return _build(_with_name(cfg, "mobilenet_v2"), input_shape, [LAST])


def build_last_stage(cfg: CfgNode) -> tuple[LayerChain, int]:
    """Build what ROI heads run for each region: all layers behind their ``IN_FEATURES``.

    Returns:
        the layers, with weights as those of :func:`build_torchvision_backbone`, and the channels of
        their output.

    Raises:
        FileNotFoundError, ValueError: see :func:`build_torchvision_backbone`.
    """
    network, layers, weights = _load_network(cfg)
    (feature,) = cfg.MODEL.ROI_HEADS.IN_FEATURES
    start = _split(cfg, layers, feature)
    if start == len(layers):
        raise ValueError(
            f"MODEL.ROI_HEADS.IN_FEATURES: {cfg.MODEL.TORCHVISION.NAME} has no layers behind "
            f"{feature!r} to run for each region"
        )
    chain = LayerChain(network, layers[start:], channels_last=layers[start - 1].channels_last)
    chain.initial_weights = weights
    _replace_norms(chain, cfg.MODEL.TORCHVISION.NORM)
    return chain, layers[-1].channels


def _with_name(cfg: CfgNode, name: str) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.TORCHVISION.NAME = name
    return cfg


def _build_bottom_up(cfg: CfgNode, input_shape: ShapeSpec) -> ChainBackbone:
    features = list(cfg.MODEL.FPN.IN_FEATURES)
    bottom_up = _build(cfg, input_shape, features)
    strides = [bottom_up.output_shape()[name].stride for name in features]
    if any(b != 2 * a for a, b in zip(strides, strides[1:])):
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES {features} of {cfg.MODEL.TORCHVISION.NAME} have strides "
            f"{strides}: each must be twice that before"
        )
    return bottom_up


def _build(cfg: CfgNode, input_shape: ShapeSpec, out_features: Sequence[str]) -> ChainBackbone:
    if input_shape.channels != 3:
        raise ValueError(
            f"MODEL.PIXEL_MEAN must have 3 channels for a backbone of torchvision, "
            f"not {input_shape.channels}"
        )
    if not out_features:
        raise ValueError(f"{_NODE}.OUT_FEATURES is empty: name the maps of the backbone")
    network, layers, weights = _load_network(cfg)
    node = cfg.MODEL.TORCHVISION
    for name in out_features:
        _split(cfg, layers, name)
    backbone = ChainBackbone(network, layers, out_features, out_norm=node.OUT_NORM)
    backbone.initial_weights = weights
    frozen = _STAGES[: max(cfg.MODEL.BACKBONE.FREEZE_AT, 0)]
    for step in backbone.steps:
        if step.stage in frozen:
            backbone.get_submodule(step.name).requires_grad_(False)
    _replace_norms(backbone, "FrozenBN", frozen)
    _replace_norms(backbone, node.NORM)
    return backbone


def _split(cfg: CfgNode, layers: Sequence[Layer], feature: str) -> int:
    try:
        return split_at(layers, feature)
    except ValueError as error:
        raise ValueError(f"{_NODE}.NAME: {cfg.MODEL.TORCHVISION.NAME} {error}") from None


def _load_network(cfg: CfgNode) -> tuple[nn.Module, list[Layer], dict[str, str]]:
    """The whole network with its weights, its layers, and the file that they came from."""
    node = cfg.MODEL.TORCHVISION
    if node.LAST_STRIDE not in (1, 2):
        raise ValueError(f"{_NODE}.LAST_STRIDE {node.LAST_STRIDE} must be 1 or 2")
    network = create_network(node.NAME, node.WIDTH_MULTIPLIER)
    try:
        layers = find_layers(network)
    except ValueError as error:
        raise ValueError(f"{_NODE}.NAME: {node.NAME} {error}") from None
    weights = load_weights(network, [layer.name for layer in layers], cfg)
    if node.LAST_STRIDE == 1:
        layers = _without_last_stride(network, layers, node.NAME)
    if not node.FINAL_ACTIVATION:
        _remove_final_activation(network, layers[-1].name, node.NAME)
    return network, layers, weights


def create_network(name: str, width: float = 1.0) -> nn.Module:
    """Create a network of torchvision, or of timm ("timm:NAME"), with random weights.

    Raises:
        ValueError: there is no such network, it has no widths, or timm is not installed.
    """
    arguments: dict[str, Any] = {} if width == 1.0 else {"width_mult": width}
    try:
        network = (
            _create_timm(name, arguments) if name.startswith(TIMM) else _create(name, arguments)
        )
    except TypeError as error:
        if not arguments:
            raise
        raise ValueError(
            f"{_NODE}.WIDTH_MULTIPLIER {width}: {name} has one width only ({error})"
        ) from None
    if isinstance(network, DenseNet):
        # Its forward() has this activation.
        network.features.add_module("relu5", nn.ReLU(inplace=True))
    return network


def _create(name: str, arguments: dict[str, Any]) -> nn.Module:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ValueError(
            f"{_NODE}.NAME {name!r} is none of torchvision's: {', '.join(known)}; networks of timm "
            f'are named "{TIMM}NAME"'
        )
    network: nn.Module = torchvision.models.get_model(name, weights=None, **arguments)
    return network


def _create_timm(name: str, arguments: dict[str, Any]) -> Any:
    try:
        import timm
    except ImportError:
        raise ValueError(f"{_NODE}.NAME {name!r} requires timm: pip install timm") from None
    create = partial(timm.create_model, name[len(TIMM) :], pretrained=False, **arguments)
    try:
        try:
            # Transformers of timm take images of one size only by default; others lack the option.
            return create(strict_img_size=False)
        except TypeError:
            return create()
    except RuntimeError as error:
        raise ValueError(f"{_NODE}.NAME {name!r}: {' '.join(str(error).split())}") from None


def _without_last_stride(network: nn.Module, layers: list[Layer], name: str) -> list[Layer]:
    """Remove the last halving of the resolution; the layers with their new strides."""
    deepest = layers[-1].stride
    for layer in layers:
        if layer.stride != deepest:
            continue
        for inner, module in list(network.get_submodule(layer.name).named_modules()):
            if getattr(module, "stride", 1) not in (2, (2, 2)):
                continue
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
            elif isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
                network.set_submodule(_joined(layer.name, inner), nn.Identity())
    try:
        strides = [layer.stride for layer in find_layers(network)]
    except ValueError:
        strides = []
    if strides != [min(layer.stride, deepest // 2) for layer in layers]:
        raise ValueError(
            f"{_NODE}.LAST_STRIDE 1: the last halving of {name} is no stride of a convolution or a "
            "pooling that can be removed"
        )
    return [replace(layer, stride=stride) for layer, stride in zip(layers, strides)]


def _remove_final_activation(network: nn.Module, layer: str, name: str) -> None:
    leaves = [
        (inner, m)
        for inner, m in network.get_submodule(layer).named_modules()
        if not list(m.children())
    ]
    inner, last = leaves[-1]
    if not is_activation(last):
        raise ValueError(
            f"{_NODE}.FINAL_ACTIVATION False: the last layer of {name} is no activation but "
            f"{type(last).__name__}"
        )
    network.set_submodule(_joined(layer, inner), nn.Identity())


def _replace_norms(chain: LayerChain, norm: str, stages: Collection[str] | None = None) -> None:
    """Replace batch normalisations by those of Detectron2's ``get_norm``.

    Args:
        chain: changed in place.
        norm: "BN" changes nothing.
        stages: whose layers are changed; ``None`` for all.
    """
    for step in () if norm == "BN" else chain.steps:
        if stages is None or step.stage in stages:
            for inner, old in list(chain.get_submodule(step.name).named_modules()):
                if isinstance(old, nn.BatchNorm2d):
                    chain.set_submodule(_joined(step.name, inner), _converted(old, norm))


def _joined(*names: str) -> str:
    return ".".join(filter(None, names))


@torch.no_grad()
def _converted(old: nn.BatchNorm2d, norm: str) -> nn.Module:
    try:
        new = get_norm(norm, old.num_features)
    except KeyError:
        raise ValueError(f"{_NODE}.NORM {norm!r} is none of Detectron2's normalisations") from None
    except ValueError as error:
        raise ValueError(
            f"{_NODE}.NORM {norm!r} does not fit {old.num_features} channels: {error}"
        ) from None
    new = nn.Identity() if new is None else new
    if isinstance(new, (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)):
        # Not by load_state_dict, which takes old's version for that of another class.
        ours = new.state_dict()
        for name, value in old.state_dict().items():
            if name in ours:
                ours[name].copy_(value)
        new.eps = old.eps
        if isinstance(new, nn.modules.batchnorm._BatchNorm):
            new.momentum = old.momentum
    # Some normalisations of timm include what follows.
    if list(old.children()):
        for name, child in old.named_children():
            new.add_module(name, child)
        new.register_forward_hook(_run_children)
    return new


def _run_children(module: nn.Module, inputs: Any, output: Any) -> Any:
    for child in module.children():
        output = child(output)
    return output
