"""ResNets with bottleneck attention (BAM, Park et al., BMVC 2018)."""

import torch
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import BasicStem, CNNBlockBase, ResNet
from torch import nn

from kd_search.modeling.backbones.resnet import resnet_stage, stem_channels

#: How the two branches are joined before the sigmoid.
COMBINATIONS = ("sum", "product")


class BottleneckAttention(CNNBlockBase):
    """A map times one plus attention, that of its channels joined with that of its places.

    F' = F + F * M(F), M(F) = sigmoid(M_c(F) + M_s(F)) with M_c (N, C, 1, 1) and M_s (N, 1, H, W)
    (equations 1 and 2 of the paper). The authors' code has M_c * M_s in place of the sum, and so
    has that of VKD (ECCV 2020). Both branches narrow the channels by ``reduction``; the spatial one
    has two dilated 3x3 convolutions. As in the authors' code, normalisation and ReLU follow every
    layer but the last of a branch; the paper prints one normalisation, at its end.

    It is the last block of its stage, so that the names of the others' weights are ResNet's.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        dilation: int = 4,
        combine: str = "sum",
        norm: str = "BN",
    ):
        """
        Args:
            channels: C of the map.
            reduction: r; C / r channels within the branches, at least 1.
            dilation: d of the spatial branch.
            combine: one of :data:`COMBINATIONS`.
            norm: as Detectron2's ``get_norm``; "FrozenBN" becomes "BN", since the branches start
                anew.

        Raises:
            ValueError: unknown ``combine``.
        """
        super().__init__(channels, channels, stride=1)
        if combine not in COMBINATIONS:
            raise ValueError(f"MODEL.BAM.COMBINE {combine!r} must be one of {COMBINATIONS}")
        norm = "BN" if norm == "FrozenBN" else norm
        narrow = max(channels // reduction, 1)
        self.combine = combine
        self.channel = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            *_layer(nn.Conv2d(channels, narrow, 1), norm),
            nn.Conv2d(narrow, channels, 1),
        )
        dilated = {"kernel_size": 3, "padding": dilation, "dilation": dilation}
        self.spatial = nn.Sequential(
            *_layer(nn.Conv2d(channels, narrow, 1), norm),
            *_layer(nn.Conv2d(narrow, narrow, **dilated), norm),
            *_layer(nn.Conv2d(narrow, narrow, **dilated), norm),
            nn.Conv2d(narrow, 1, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the same shape."""
        channel, spatial = self.channel(x), self.spatial(x)
        joined = channel + spatial if self.combine == "sum" else channel * spatial
        return x + x * torch.sigmoid(joined)


def _layer(convolution: nn.Conv2d, norm: str) -> list[nn.Module]:
    normalisation = get_norm(norm, convolution.out_channels)
    return [convolution, *([] if normalisation is None else [normalisation]), nn.ReLU()]


@BACKBONE_REGISTRY.register()
def build_bam_resnet_backbone(cfg, input_shape: ShapeSpec) -> ResNet:
    """The ResNet of ``build_width_resnet_backbone`` with attention after res2, res3 and res4.

    Those are the ends of the stages, before each halving of the resolution, where the paper has
    it; res5 has none. ResNet weights of ``MODEL.WEIGHTS`` load into all the other blocks, and the
    attention starts at random.
    """
    stem = BasicStem(
        in_channels=input_shape.channels,
        out_channels=stem_channels(cfg),
        norm=cfg.MODEL.RESNETS.NORM,
    )
    stages = [resnet_stage(cfg, stage) for stage in range(2, 6)]
    for blocks in stages[:-1]:
        blocks.append(
            BottleneckAttention(
                blocks[-1].out_channels,
                reduction=cfg.MODEL.BAM.REDUCTION,
                dilation=cfg.MODEL.BAM.DILATION,
                combine=cfg.MODEL.BAM.COMBINE,
                norm=cfg.MODEL.RESNETS.NORM,
            )
        )
    return ResNet(
        stem,
        stages,
        out_features=cfg.MODEL.RESNETS.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
