"""ResNets of any width: the published networks at 1.0, slim students below."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import (
    BasicBlock,
    BasicStem,
    BottleneckBlock,
    CNNBlockBase,
    ResNet,
)
from torch import nn

#: Blocks of res2, res3, res4 and res5 by depth (He et al., CVPR 2016, table 1).
BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class OpenBasicBlock(BasicBlock):
    """BasicBlock without its final ReLU; the parameters have the same names and order.

    ``inner_relu`` False removes the activation between the convolutions as well.
    """

    def __init__(self, *args: Any, inner_relu: bool, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.relu = nn.ReLU(inplace=True) if inner_relu else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv2(self.relu(self.conv1(x)))
        return out + (x if self.shortcut is None else self.shortcut(x))


class OpenBottleneckBlock(BottleneckBlock):
    """BottleneckBlock without its final ReLU, see :class:`OpenBasicBlock`."""

    def __init__(self, *args: Any, inner_relu: bool, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.relu = nn.ReLU(inplace=True) if inner_relu else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv3(self.relu(self.conv2(self.relu(self.conv1(x)))))
        return out + (x if self.shortcut is None else self.shortcut(x))


def stage_channels(cfg: CfgNode, stage: int) -> int:
    """Return the output channels of stage 2 to 5 at the configured depth and width."""
    base = 64 if cfg.MODEL.RESNETS.DEPTH < 50 else cfg.MODEL.RESNETS.RES2_OUT_CHANNELS
    return round(base * cfg.MODEL.RESNETS.WIDTH_MULTIPLIER) * 2 ** (stage - 2)


def stem_channels(cfg: CfgNode) -> int:
    """Return the output channels of the stem at the configured width."""
    return round(cfg.MODEL.RESNETS.STEM_OUT_CHANNELS * cfg.MODEL.RESNETS.WIDTH_MULTIPLIER)


def resnet_stage(cfg: CfgNode, stage: int) -> list[CNNBlockBase]:
    """Build the blocks of one stage.

    Args:
        cfg: reads ``MODEL.RESNETS``; every key of Detectron2's ``build_resnet_backbone`` but the
            deformable and dilated variants, and those that kd_search adds.
        stage: 2 to 5. Stages 3 to 5 halve the resolution, stage 5 only with
            ``MODEL.RESNETS.RES5_STRIDE`` 2.

    Raises:
        ValueError: for a depth without a published layout.
    """
    node = cfg.MODEL.RESNETS
    if node.DEPTH not in BLOCKS_PER_STAGE:
        raise ValueError(
            f"MODEL.RESNETS.DEPTH {node.DEPTH} must be one of {sorted(BLOCKS_PER_STAGE)}"
        )
    arguments: dict[str, Any] = {"norm": node.NORM}
    kind, open_kind = BasicBlock, OpenBasicBlock
    if node.DEPTH >= 50:
        kind, open_kind = BottleneckBlock, OpenBottleneckBlock
        width = round(node.WIDTH_PER_GROUP * node.WIDTH_MULTIPLIER)
        arguments["bottleneck_channels"] = node.NUM_GROUPS * width * 2 ** (stage - 2)
        arguments["num_groups"] = node.NUM_GROUPS
        arguments["stride_in_1x1"] = node.STRIDE_IN_1X1
    kinds: list[Callable[..., CNNBlockBase]] = [kind] * BLOCKS_PER_STAGE[node.DEPTH][stage - 2]
    if stage == 5 and not (node.FINAL_RELU and node.LAST_BLOCK_RELUS):
        kinds[-1] = partial(open_kind, inner_relu=node.LAST_BLOCK_RELUS)
    outputs = stage_channels(cfg, stage)
    inputs = stem_channels(cfg) if stage == 2 else stage_channels(cfg, stage - 1)
    stride = {2: 1, 5: node.RES5_STRIDE}.get(stage, 2)
    first, *others = kinds
    return [
        first(inputs, outputs, stride=stride, **arguments),
        *(block(outputs, outputs, **arguments) for block in others),
    ]


def build_resnet(
    cfg: CfgNode,
    input_shape: ShapeSpec,
    extend: Callable[[list[list[CNNBlockBase]]], None] = lambda stages: None,
) -> ResNet:
    """Build stem and stages; ``extend`` may append blocks to res2, res3, res4 and res5."""
    node = cfg.MODEL.RESNETS
    stem = BasicStem(input_shape.channels, stem_channels(cfg), norm=node.NORM)
    stages = [resnet_stage(cfg, stage) for stage in range(2, 6)]
    extend(stages)
    freeze_at = cfg.MODEL.BACKBONE.FREEZE_AT
    return ResNet(stem, stages, out_features=node.OUT_FEATURES, freeze_at=freeze_at)


@BACKBONE_REGISTRY.register()
def build_width_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build a ResNet-18, 34, 50 or 101 scaled by ``MODEL.RESNETS.WIDTH_MULTIPLIER``.

    Parameter names equal those of Detectron2's ``build_resnet_backbone``, so that its weights load
    at width 1.0.
    """
    return build_resnet(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_width_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a feature pyramid (``MODEL.FPN``) on :func:`build_width_resnet_backbone`."""
    return build_fpn(cfg, build_resnet(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_width_retinanet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build RetinaNet's feature pyramid on :func:`build_width_resnet_backbone`.

    Two levels p6 and p7, made by strided convolutions from res5, follow p5 (Lin et al., ICCV 2017,
    section 4). Parameter names equal those of Detectron2's ``build_retinanet_resnet_fpn_backbone``.

    Raises:
        ValueError: if ``MODEL.RESNETS.OUT_FEATURES`` lacks res5.
    """
    bottom_up = build_resnet(cfg, input_shape)
    shapes = bottom_up.output_shape()
    if "res5" not in shapes:
        raise ValueError(
            f"MODEL.RESNETS.OUT_FEATURES {list(shapes)} must contain 'res5', which p6 is made from"
        )
    top_block = LastLevelP6P7(shapes["res5"].channels, cfg.MODEL.FPN.OUT_CHANNELS)
    return build_fpn(cfg, bottom_up, top_block)


def build_fpn(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module) -> FPN:
    """Build the feature pyramid of ``MODEL.FPN`` on a network that outputs its ``IN_FEATURES``."""
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
