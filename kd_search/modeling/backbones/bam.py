"""ResNets with bottleneck attention (BAM, Park et al., BMVC 2018)."""

from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import CNNBlockBase, ResNet
from torch import nn

from kd_search.modeling.backbones.resnet import build_resnet

#: How the two branches are combined before the sigmoid.
COMBINATIONS = ("sum", "product")


class BottleneckAttention(CNNBlockBase):
    """Channel and spatial attention on a feature map, as a residual.

    F' = F + F * M(F), M(F) = sigmoid(M_c(F) + M_s(F)) with M_c (N, C, 1, 1) and M_s (N, 1, H, W)
    (equations 1 and 2 of the paper). The authors' code and VKD's (ECCV 2020) have M_c * M_s in
    place of the sum. Both branches narrow the channels by ``reduction``; the spatial one has two
    dilated 3x3 convolutions. As in the authors' code, normalisation and ReLU follow every layer but
    the last of a branch; the paper has one normalisation, at its end.
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
            norm: as Detectron2's ``get_norm``; "FrozenBN" becomes "BN", since no pretrained weights
                of the branches exist.

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
        dilated = partial(nn.Conv2d, narrow, narrow, 3, padding=dilation, dilation=dilation)
        self.spatial = nn.Sequential(
            *_layer(nn.Conv2d(channels, narrow, 1), norm),
            *_layer(dilated(), norm),
            *_layer(dilated(), norm),
            nn.Conv2d(narrow, 1, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to the same shape."""
        channel, spatial = self.channel(x), self.spatial(x)
        combined = channel + spatial if self.combine == "sum" else channel * spatial
        return x + x * torch.sigmoid(combined)


def _layer(convolution: nn.Conv2d, norm: str) -> list[nn.Module]:
    normalisation = get_norm(norm, convolution.out_channels)
    return [convolution, *([] if normalisation is None else [normalisation]), nn.ReLU()]


@BACKBONE_REGISTRY.register()
def build_bam_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build the ResNet of ``build_width_resnet_backbone`` with attention after res2, res3 and res4.

    As in the paper, attention precedes each halving of the resolution; res5 has none. It is the
    last block of its stage, so that ResNet weights of ``MODEL.WEIGHTS`` load into all other blocks.
    """

    def append_attention(stages: list[list[CNNBlockBase]]) -> None:
        for blocks in stages[:-1]:
            attention = BottleneckAttention(
                blocks[-1].out_channels,
                reduction=cfg.MODEL.BAM.REDUCTION,
                dilation=cfg.MODEL.BAM.DILATION,
                combine=cfg.MODEL.BAM.COMBINE,
                norm=cfg.MODEL.RESNETS.NORM,
            )
            blocks.append(attention)

    return build_resnet(cfg, input_shape, append_attention)
