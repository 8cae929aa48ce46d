"""ResNet that ends inside res4, with gates on its channels by a pair of pictures (QSSE)."""

from typing import Any, NamedTuple, Optional

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import BasicStem, CNNBlockBase, ResNet
from torch import nn
from torch.nn import functional as F

from kd_search.config import ConfigError
from kd_search.engine.task import network_method
from kd_search.modeling.backbones.resnet import resnet_stage, stem_channels

#: Name of the only feature map; Detectron2's weights of its blocks load by it.
FEATURE = "res4"


class PairGates(nn.Module):
    """Channel gates in 0..1 from the means of two feature maps, over pictures.

    sigmoid(W_2 relu(W_1 [mean(gallery), mean(query)])). The squeeze and excitation of Hu et al.,
    CVPR 2018, equations 2 and 3, of two maps; that they are joined by concatenation is second hand.
    """

    def __init__(self, channels: int, *, reduction: int, separate: bool, initial_bias: float):
        """
        Args:
            channels: C.
            reduction: the hidden layer has 2 C / reduction units, at least one.
            separate: the two maps have gates of their own.
            initial_bias: added to the gates before the sigmoid.
        """
        super().__init__()
        hidden = max(2 * channels // reduction, 1)
        self.squeeze = nn.Linear(2 * channels, hidden)
        self.excite = nn.Linear(hidden, (1 + separate) * channels)
        self.separate = separate
        if initial_bias:
            nn.init.constant_(self.excite.bias, initial_bias)

    def forward(
        self, gallery: torch.Tensor, query: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gates (N, C, 1, 1) of each map, from their means (N, C)."""
        hidden = F.relu(self.squeeze(torch.cat([gallery, query], dim=1)))
        gates = torch.sigmoid(self.excite(hidden))[..., None, None]
        if not self.separate:
            return gates, gates
        ours, theirs = gates.chunk(2, dim=1)
        return ours, theirs


class QueryStream(NamedTuple):
    """A picture that has passed the network with itself, for later gallery pictures."""

    features: dict[str, torch.Tensor]
    #: (N, C) means that the gates of each block read.
    means: list[torch.Tensor]


class QueryGuidedResNet(ResNet):
    """Stem, res2, res3 and the first blocks of res4, with or without gates.

    Without gates, or with gates of one, it computes what Detectron2's ResNet computes. A picture
    alone (:meth:`forward`) is paired with itself. Means are over the padded map: a batch of
    pictures of one size does not depend on its members.
    """

    def __init__(
        self,
        stem: BasicStem,
        stages: list[list[CNNBlockBase]],
        *,
        freeze_at: int,
        gates: Optional[list[PairGates]] = None,
        on_residual: bool = True,
        query_with_itself: bool = False,
    ):
        """
        Args:
            stem, stages, freeze_at: as Detectron2's ``ResNet``; the stages are res2, res3, res4.
            gates: of each block, in order; ``None``: none.
            on_residual: gates multiply the residual branch of a block, otherwise its output.
            query_with_itself: the gates of the query's features do not depend on the gallery.
        """
        super().__init__(stem, stages, out_features=[FEATURE], freeze_at=freeze_at)
        self.gates: Any = None if gates is None else nn.ModuleList(gates)
        self.on_residual = on_residual
        self.query_with_itself = query_with_itself

    @property
    def query_is_reusable(self) -> bool:
        """Whether the query's features are the same beside every gallery picture."""
        return self.gates is None or self.query_with_itself

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Feature map "res4" of pictures (N, 3, H, W), each paired with itself."""
        if self.gates is None:
            features: dict[str, torch.Tensor] = super().forward(x)
            return features
        return self.query_stream(x).features

    def query_stream(self, x: torch.Tensor) -> QueryStream:
        """Features of pictures that are paired with themselves, and what gates read of them."""
        if self.gates is None:
            return QueryStream(super().forward(x), [])
        x, means = self.stem(x), []
        for block, gates in zip(self._blocks(), self.gates):
            x, shortcut = self._open(block, x)
            mean = x.mean(dim=(2, 3))
            means.append(mean)
            x = self._close(x, shortcut, gates(mean, mean)[1])
        return QueryStream({FEATURE: x}, means)

    def forward_gallery(self, x: torch.Tensor, query: QueryStream) -> dict[str, torch.Tensor]:
        """Features of gallery pictures beside those of :meth:`query_stream`, one each."""
        if self.gates is None:
            return self(x)
        x = self.stem(x)
        for block, gates, mean in zip(self._blocks(), self.gates, query.means):
            x, shortcut = self._open(block, x)
            x = self._close(x, shortcut, gates(x.mean(dim=(2, 3)), mean)[0])
        return {FEATURE: x}

    def forward_pair(
        self, gallery: torch.Tensor, query: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Features of N gallery pictures and of their N queries' pictures; sizes may differ."""
        if self.query_is_reusable:
            stream = self.query_stream(query)
            return self.forward_gallery(gallery, stream), stream.features
        ours, theirs = self.stem(gallery), self.stem(query)
        for block, gates in zip(self._blocks(), self.gates):
            ours, our_shortcut = self._open(block, ours)
            theirs, their_shortcut = self._open(block, theirs)
            our_gates, their_gates = gates(ours.mean(dim=(2, 3)), theirs.mean(dim=(2, 3)))
            ours = self._close(ours, our_shortcut, our_gates)
            theirs = self._close(theirs, their_shortcut, their_gates)
        return {FEATURE: ours}, {FEATURE: theirs}

    def _blocks(self) -> list[CNNBlockBase]:
        return [block for name in self.stage_names for block in getattr(self, name)]

    def _open(
        self, block: CNNBlockBase, x: torch.Tensor
    ) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
        """What the gates of a block multiply, and what is added after it."""
        if not self.on_residual:
            return block(x), None
        out = block.conv2(F.relu_(block.conv1(x)))
        if hasattr(block, "conv3"):
            out = block.conv3(F.relu_(out))
        return out, x if block.shortcut is None else block.shortcut(x)

    def _close(
        self, x: torch.Tensor, shortcut: Optional[torch.Tensor], gates: torch.Tensor
    ) -> torch.Tensor:
        x = x * gates
        return x if shortcut is None else F.relu_(x + shortcut)


def split_stage(cfg: CfgNode) -> tuple[list[CNNBlockBase], list[CNNBlockBase]]:
    """Blocks of res4 before and after the split.

    Raises:
        ConfigError: ``MODEL.QUERY_GUIDED.SPLIT_BLOCK`` is not one of them.
    """
    blocks, split = resnet_stage(cfg, 4), cfg.MODEL.QUERY_GUIDED.SPLIT_BLOCK
    if not 1 <= split <= len(blocks):
        raise ConfigError(
            f"MODEL.QUERY_GUIDED.SPLIT_BLOCK {split} must be from 1 to {len(blocks)}, the blocks "
            f"of res4 of a ResNet-{cfg.MODEL.RESNETS.DEPTH}"
        )
    return blocks[:split], blocks[split:]


@BACKBONE_REGISTRY.register()
def build_split_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> QueryGuidedResNet:
    """Build a ResNet-18, 34, 50 or 101 of any width up to a block of res4.

    With gates for a ``QueryGuidedRCNN``, and without for other networks, such as the plain one that
    it starts from. Parameters have the names and shapes of Detectron2's.
    """
    node = cfg.MODEL.QUERY_GUIDED.GATES
    stem = BasicStem(input_shape.channels, stem_channels(cfg), norm=cfg.MODEL.RESNETS.NORM)
    stages = [resnet_stage(cfg, 2), resnet_stage(cfg, 3), split_stage(cfg)[0]]
    gates = None
    for key, known in (("POSITION", ("block", "residual")), ("QUERY_STREAM", ("pair", "self"))):
        if node[key] not in known:
            raise ConfigError(f"MODEL.QUERY_GUIDED.GATES.{key} {node[key]!r} is none of {known}")
    if is_query_guided(cfg) and node.ENABLED:
        gates = [
            PairGates(
                block.out_channels,
                reduction=node.REDUCTION,
                separate=node.SEPARATE,
                initial_bias=node.INITIAL_BIAS,
            )
            for stage in stages
            for block in stage
        ]
    return QueryGuidedResNet(
        stem,
        stages,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        gates=gates,
        on_residual=node.POSITION == "residual",
        query_with_itself=node.QUERY_STREAM == "self",
    )


def is_query_guided(cfg: CfgNode) -> bool:
    """Whether the network, or the student of a Distiller, has ``reads_query``."""
    return bool(network_method(cfg, "reads_query"))
