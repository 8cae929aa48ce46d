"""Students of Tables 2 and 3 of Chen et al. (NIPS 2017): half the input, and compressed layers."""

import math
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import nn
from torch.nn import functional as F  # noqa: N812

from kd_search.config import register_config
from kd_search.modeling import build_width_resnet_fpn_backbone


@register_config
def add_small_networks_config(cfg: CfgNode) -> None:
    """Add ``MODEL.TUCKER``."""
    CN = type(cfg)  # noqa: N806
    # Key of build_tucker_resnet_fpn_backbone.
    cfg.MODEL.TUCKER = CN()
    # Operations of each 3x3 convolution of the ResNet as a share of those of the whole one; 1.0
    # leaves it as it is. The paper's Table 3: 0.2 to 0.45.
    cfg.MODEL.TUCKER.SHARE = 1.0


class HalfInput(Backbone):
    """A pyramid that sees its input at half the size.

    Level l of the inner pyramid has twice the stride in pixels of the input, and the name of level
    l + 1. Boxes and anchors are therefore those of a network that sees the whole input, and a
    teacher needs no rescaling: only its finest map has no counterpart.
    """

    def __init__(self, inner: Backbone):
        """
        Args:
            inner: outputs p2, p3, ...
        """
        super().__init__()
        self.inner = inner

    @property
    def size_divisibility(self) -> int:
        # The input is padded as the teacher's, and then further inside.
        return self.inner.size_divisibility

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            _next_level(name): ShapeSpec(channels=shape.channels, stride=2 * shape.stride)
            for name, shape in self.inner.output_shape().items()
        }

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N, 3, H, W) to maps (N, C, ceil(H / stride), ceil(W / stride)) by level."""
        height, width = images.shape[2:]
        unit = 2 * max(self.inner.size_divisibility, 1)
        padded = F.pad(images, (0, -width % unit, 0, -height % unit))
        # The mean of four pixels, as a resampling with antialiasing to half the size.
        maps = self.inner(F.avg_pool2d(padded, 2))
        shapes, cut = self.inner.output_shape(), {}
        for name, values in maps.items():
            stride = 2 * shapes[name].stride
            cut[_next_level(name)] = values[
                ..., : math.ceil(height / stride), : math.ceil(width / stride)
            ]
        return cut


def _next_level(name: str) -> str:
    return f"p{int(name[1:]) + 1}"


@BACKBONE_REGISTRY.register()
def build_half_input_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> HalfInput:
    """Build :class:`HalfInput` of ``build_width_resnet_fpn_backbone``."""
    return HalfInput(build_width_resnet_fpn_backbone(cfg, input_shape))


class TuckerConv2d(nn.Module):
    """A k x k convolution as three: 1x1 to fewer channels, k x k, 1x1 to all channels.

    The Tucker-2 decomposition of its weight over input and output channels, as Kim et al. (ICLR
    2016) compress networks; the paper's Tucker network is such a one.
    """

    def __init__(self, whole: Conv2d, share: float):
        """
        Args:
            whole: the convolution to take the place of, with its normalisation; without groups and
                bias.
            share: operations as a share of those of ``whole``.
        """
        super().__init__()
        if whole.groups != 1 or whole.bias is not None:
            raise ValueError("only convolutions without groups and bias can be decomposed")
        inputs, outputs = whole.in_channels, whole.out_channels
        first, last = tucker_ranks(inputs, outputs, whole.kernel_size, whole.stride, share)
        self.reduce = Conv2d(inputs, first, 1, bias=False)
        self.core = Conv2d(first, last, whole.kernel_size, whole.stride, whole.padding, bias=False)
        self.expand = Conv2d(
            last, outputs, 1, bias=False, norm=whole.norm, activation=whole.activation
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.expand(self.core(self.reduce(x)))

    @torch.no_grad()
    def decompose(self, weight: torch.Tensor) -> None:
        """Take over the (O, I, k, k) weight of the whole convolution, by truncated HOSVD."""
        weight = weight.double()
        bases = []
        for dim, rank in ((0, self.core.out_channels), (1, self.core.in_channels)):
            rows = weight.transpose(0, dim).flatten(1)
            # Left singular vectors, those of the largest values last.
            bases.append(torch.linalg.eigh(rows @ rows.T)[1][:, -rank:])
        last, first = bases
        core = torch.einsum("oikl,or,is->rskl", weight, last, first)
        self.reduce.weight.copy_(first.T[..., None, None])
        self.core.weight.copy_(core)
        self.expand.weight.copy_(last[..., None, None])


def tucker_ranks(
    inputs: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int], share: float
) -> tuple[int, int]:
    """Ranks, the same share of input and output channels, that cost ``share`` of a convolution.

    Multiplications for one output cell: k^2 I O of the whole one; s^2 I r1 + k^2 r1 r2 + r2 O.
    """
    if not 0 < share < 1:
        raise ValueError(f"MODEL.TUCKER.SHARE {share} must be above 0 and below 1")
    area, step = kernel[0] * kernel[1], stride[0] * stride[1]
    a = area * inputs * outputs
    b = step * inputs**2 + outputs**2
    of_channels = (-b + math.sqrt(b * b + 4 * a * share * a)) / (2 * a)
    return max(1, round(of_channels * inputs)), max(1, round(of_channels * outputs))


@BACKBONE_REGISTRY.register()
def build_tucker_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build ``build_width_resnet_fpn_backbone`` with the 3x3 convolutions of its stages decomposed
    to ``MODEL.TUCKER.SHARE`` of their operations; stem, shortcuts and pyramid stay."""
    backbone = build_width_resnet_fpn_backbone(cfg, input_shape)
    for name, conv in list(backbone.bottom_up.named_modules()):
        if isinstance(conv, Conv2d) and conv.kernel_size == (3, 3):
            parent, _, own = name.rpartition(".")
            tucker = TuckerConv2d(conv, cfg.MODEL.TUCKER.SHARE)
            setattr(backbone.bottom_up.get_submodule(parent), own, tucker)
    return backbone


def compress(model: nn.Module, whole: dict[str, torch.Tensor]) -> dict[str, Any]:
    """State of a network with :class:`TuckerConv2d` that is next to a whole network.

    Args:
        model: with the same other layers as the whole network.
        whole: state of the whole network.

    Raises:
        KeyError: ``whole`` lacks a tensor.
    """
    rest = dict(whole)
    for name, conv in model.named_modules():
        if isinstance(conv, TuckerConv2d):
            conv.decompose(rest.pop(f"{name}.weight"))
            for key in [key for key in rest if key.startswith(f"{name}.norm.")]:
                rest[key.replace(f"{name}.norm.", f"{name}.expand.norm.")] = rest.pop(key)
            for part in ("reduce", "core", "expand"):
                rest[f"{name}.{part}.weight"] = getattr(conv, part).weight.detach().clone()
    return {key: rest[key] for key in model.state_dict()}
