"""Re-ID heads: pooled region features to L2-normalised embeddings."""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.utils.registry import Registry
from torch import nn
from torch.nn import functional as F

from kd_search.config.ranges import check_choice

REID_HEAD_REGISTRY = Registry("REID_HEAD")
REID_HEAD_REGISTRY.__doc__ = """
Re-ID heads: modules that turn region features into embeddings.

A registered class is called as ``cls(cfg, input_shape)`` with the ``ShapeSpec`` of one pooled
region. Its ``forward`` takes (R, C, H, W) region features and returns (R, D) L2-normalised
embeddings, R = 0 included; ``embedding_dim`` is D.
"""


def build_reid_head(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """Build ``MODEL.REID_HEAD.NAME`` for regions of ``input_shape``."""
    return REID_HEAD_REGISTRY.get(cfg.MODEL.REID_HEAD.NAME)(cfg, input_shape)


@REID_HEAD_REGISTRY.register()
class EmbeddingHead(nn.Module):
    """Convolutions, pooling, one linear layer, L2 norm: the ID branch of OIM (CVPR 2017).

    OIM has no convolutions here (they follow res5), average pooling over the whole region and no
    normalisation layer.
    """

    @configurable
    def __init__(
        self,
        *,
        input_shape: ShapeSpec,
        embedding_dim: int = 256,
        num_conv: int = 0,
        conv_dim: int = 256,
        conv_norm: str = "",
        pool: str = "avg",
        num_stripes: int = 1,
        embedding_norm: str = "",
    ):
        """
        Args:
            input_shape: channels of the region features.
            embedding_dim: D, the length of an embedding.
            num_conv: number of 3x3 convolutions before pooling.
            conv_dim: their channels.
            conv_norm: their normalisation, as Detectron2's ``get_norm``.
            pool: "avg" or "max", over each stripe.
            num_stripes: horizontal stripes that are pooled separately and concatenated.
            embedding_norm: "" or "BN", after the linear layer.

        Raises:
            ValueError: ``pool`` or ``embedding_norm`` is unknown.
        """
        super().__init__()
        check_choice("MODEL.REID_HEAD.POOL", pool, ("avg", "max"))
        check_choice("MODEL.REID_HEAD.EMBEDDING_NORM", embedding_norm, ("", "BN"))
        self.embedding_dim = embedding_dim
        self.pool = pool
        self.num_stripes = num_stripes
        channels = input_shape.channels
        self.convs = nn.Sequential()
        for index in range(num_conv):
            conv = Conv2d(
                channels,
                conv_dim,
                kernel_size=3,
                padding=1,
                bias=not conv_norm,
                norm=get_norm(conv_norm, conv_dim),
                activation=nn.ReLU(),
            )
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
            self.convs.add_module(f"conv{index + 1}", conv)
            channels = conv_dim
        self.linear = nn.Linear(channels * num_stripes, embedding_dim)
        nn.init.kaiming_normal_(self.linear.weight, mode="fan_in", nonlinearity="linear")
        nn.init.zeros_(self.linear.bias)
        self.norm = nn.BatchNorm1d(embedding_dim) if embedding_norm == "BN" else None

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        head = cfg.MODEL.REID_HEAD
        return {
            "input_shape": input_shape,
            "embedding_dim": head.EMBEDDING_DIM,
            "num_conv": head.NUM_CONV,
            "conv_dim": head.CONV_DIM,
            "conv_norm": head.NORM,
            "pool": head.POOL,
            "num_stripes": head.NUM_STRIPES,
            "embedding_norm": head.EMBEDDING_NORM,
        }

    def forward(self, regions: torch.Tensor) -> torch.Tensor:
        """(R, C, H, W) pooled features to (R, D) float32 embeddings of length one."""
        if self.training and regions.shape[0] == 0:
            # Batch statistics of no rows are NaN. DistributedDataParallel waits for a gradient of
            # every parameter.
            touch = sum(parameter.sum() for parameter in self.parameters()) * 0.0
            return regions.new_zeros((0, self.embedding_dim)).float() + touch
        x = self.convs(regions)
        pool = F.adaptive_avg_pool2d if self.pool == "avg" else F.adaptive_max_pool2d
        x = self.linear(pool(x, (self.num_stripes, 1)).flatten(1))
        if self.norm is not None:
            x = _normalise(self.norm, x)
        # float32: under autocast a half-precision norm loses three digits of the similarity.
        return F.normalize(x.float(), dim=1)


def _normalise(norm: nn.BatchNorm1d, x: torch.Tensor) -> torch.Tensor:
    if norm.training and x.shape[0] == 1:
        # One row has no variance: use the running statistics.
        return F.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
        )
    return norm(x)
