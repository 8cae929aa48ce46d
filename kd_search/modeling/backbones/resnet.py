"""ResNets of any width: the published networks at 1.0, slim students below."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import (
    BasicBlock,
    BasicStem,
    BottleneckBlock,
    CNNBlockBase,
    ResNet,
)
from torch.nn import functional as F  # noqa: N812

#: Blocks of res2, res3, res4 and res5 by depth (He et al., CVPR 2016, table 1).
BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def stage_channels(cfg, stage: int) -> int:
    """Output channels of stage 2 to 5 at the configured depth and width."""
    base = 64 if cfg.MODEL.RESNETS.DEPTH < 50 else cfg.MODEL.RESNETS.RES2_OUT_CHANNELS
    return int(round(base * cfg.MODEL.RESNETS.WIDTH_MULTIPLIER)) * 2 ** (stage - 2)


def stem_channels(cfg) -> int:
    """Output channels of the stem at the configured width."""
    return int(round(cfg.MODEL.RESNETS.STEM_OUT_CHANNELS * cfg.MODEL.RESNETS.WIDTH_MULTIPLIER))


def resnet_stage(cfg, stage: int) -> list[CNNBlockBase]:
    """Blocks of one stage.

    Args:
        cfg: reads ``MODEL.RESNETS``; every key of Detectron2's ``build_resnet_backbone`` but the
            deformable and dilated variants, and ``WIDTH_MULTIPLIER``.
        stage: 2 to 5. Stages 3 to 5 halve the resolution, stage 5 only with
            ``MODEL.RESNETS.RES5_STRIDE`` 2.

    Raises:
        ValueError: for a depth without a published layout.
    """
    depth = cfg.MODEL.RESNETS.DEPTH
    if depth not in BLOCKS_PER_STAGE:
        raise ValueError(f"MODEL.RESNETS.DEPTH {depth} must be one of {sorted(BLOCKS_PER_STAGE)}")
    num_blocks = BLOCKS_PER_STAGE[depth][stage - 2]
    first_stride = {2: 1, 5: cfg.MODEL.RESNETS.RES5_STRIDE}.get(stage, 2)
    arguments = {
        "num_blocks": num_blocks,
        "stride_per_block": [first_stride] + [1] * (num_blocks - 1),
        "in_channels": stem_channels(cfg) if stage == 2 else stage_channels(cfg, stage - 1),
        "out_channels": stage_channels(cfg, stage),
        "norm": cfg.MODEL.RESNETS.NORM,
    }
    if depth < 50:
        return _open_ended(ResNet.make_stage(BasicBlock, **arguments), cfg, stage)
    groups = cfg.MODEL.RESNETS.NUM_GROUPS
    width = int(round(cfg.MODEL.RESNETS.WIDTH_PER_GROUP * cfg.MODEL.RESNETS.WIDTH_MULTIPLIER))
    blocks = ResNet.make_stage(
        BottleneckBlock,
        bottleneck_channels=groups * width * 2 ** (stage - 2),
        num_groups=groups,
        stride_in_1x1=cfg.MODEL.RESNETS.STRIDE_IN_1X1,
        **arguments,
    )
    return _open_ended(blocks, cfg, stage)


def _open_ended(blocks: list[CNNBlockBase], cfg, stage: int) -> list[CNNBlockBase]:
    """The blocks, the last of stage 5 without its final ReLU, or any, where the config says so."""
    node = cfg.MODEL.RESNETS
    if stage == 5 and not node.LAST_BLOCK_RELUS:
        blocks[-1].__class__ = _WITHOUT_RELUS[type(blocks[-1])]
    elif stage == 5 and not node.FINAL_RELU:
        blocks[-1].__class__ = _WITHOUT_FINAL_RELU[type(blocks[-1])]
    return blocks


class _OpenBasicBlock(BasicBlock):
    """BasicBlock that ends in a sum instead of a ReLU; parameters are BasicBlock's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv2(F.relu_(self.conv1(x)))
        return out + (x if self.shortcut is None else self.shortcut(x))


class _OpenBottleneckBlock(BottleneckBlock):
    """BottleneckBlock that ends in a sum instead of a ReLU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu_(self.conv2(F.relu_(self.conv1(x))))
        return self.conv3(out) + (x if self.shortcut is None else self.shortcut(x))


class _LinearBasicBlock(BasicBlock):
    """BasicBlock without activations: its parameters, no non-linearity."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.conv1(x)) + (x if self.shortcut is None else self.shortcut(x))


class _LinearBottleneckBlock(BottleneckBlock):
    """BottleneckBlock without activations."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv3(self.conv2(self.conv1(x)))
        return out + (x if self.shortcut is None else self.shortcut(x))


_WITHOUT_FINAL_RELU = {BasicBlock: _OpenBasicBlock, BottleneckBlock: _OpenBottleneckBlock}
_WITHOUT_RELUS = {BasicBlock: _LinearBasicBlock, BottleneckBlock: _LinearBottleneckBlock}


@BACKBONE_REGISTRY.register()
def build_width_resnet_backbone(cfg, input_shape: ShapeSpec) -> ResNet:
    """ResNet-18, 34, 50 or 101 with every stage scaled by ``MODEL.RESNETS.WIDTH_MULTIPLIER``.

    Parameter names equal those of Detectron2's ``build_resnet_backbone``, so that its weights load
    at width 1.0.
    """
    stem = BasicStem(
        in_channels=input_shape.channels,
        out_channels=stem_channels(cfg),
        norm=cfg.MODEL.RESNETS.NORM,
    )
    return ResNet(
        stem,
        [resnet_stage(cfg, stage) for stage in range(2, 6)],
        out_features=cfg.MODEL.RESNETS.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


@BACKBONE_REGISTRY.register()
def build_width_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """Feature pyramid (``MODEL.FPN``) on :func:`build_width_resnet_backbone`."""
    return FPN(
        bottom_up=build_width_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_width_retinanet_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """Feature pyramid of RetinaNet on :func:`build_width_resnet_backbone`.

    Two levels p6 and p7, made by strided convolutions from res5, follow p5 (Lin et al., ICCV 2017,
    section 4). Parameter names equal those of Detectron2's ``build_retinanet_resnet_fpn_backbone``.

    Raises:
        ValueError: if ``MODEL.RESNETS.OUT_FEATURES`` lacks res5.
    """
    bottom_up = build_width_resnet_backbone(cfg, input_shape)
    shapes = bottom_up.output_shape()
    if "res5" not in shapes:
        raise ValueError(
            f"MODEL.RESNETS.OUT_FEATURES {list(shapes)} must contain 'res5', which p6 is made from"
        )
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelP6P7(shapes["res5"].channels, cfg.MODEL.FPN.OUT_CHANNELS),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
