"""Attention in shifted windows (Swin) without branches on the size of a map.

torchvision's Swin does not shift its windows where a map is not larger than one, which is a branch
on the height and the width; and both its padding and that of timm's are remainders of symbolic
sizes, which ``torch.export`` cannot or can hardly solve. Here padding, shift and the order of the
windows are indices that are computed from the size in the graph, so that one graph is right for all
sizes. The arithmetic of the attention is the networks' own.
"""

import contextlib
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Optional
from unittest import mock

import torch
from torch.nn import functional as F
from torchvision.models import swin_transformer

#: Added to the attention between positions that a shift has brought together, in both networks.
_APART = -100.0
#: Modules of networks of timm with windows that this file does not replace.
_OTHERS = ("timm.models.swin_transformer_v2", "timm.models.swin_transformer_v2_cr")


class Windows(NamedTuple):
    """Where the positions of an (H, W) map are in windows of N positions."""

    #: (windows, N) rows of the map, row by row; H W for padding.
    rows: torch.Tensor
    #: (H W,) places in the windows of the rows of the map.
    places: torch.Tensor
    #: (windows, N, N) 0, or -100 between positions that are no neighbours; ``None``: no shift.
    mask: Optional[torch.Tensor]

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) maps to (B windows, N, C); padding is 0."""
        batch, _, _, channels = x.shape
        x = torch.cat([x.flatten(1, 2), x.new_zeros((batch, 1, channels))], dim=1)
        count, area = self.rows.shape
        return x.index_select(1, self.rows.flatten()).reshape(batch * count, area, channels)

    def joined(self, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Invert :meth:`split`, to the shape of the maps ``like``."""
        count, area = self.rows.shape
        x = x.reshape(like.shape[0], count * area, like.shape[3])
        return x.index_select(1, self.places).reshape(like.shape)


def windows(
    x: torch.Tensor, size: Sequence[int], shift: Sequence[int], *, pad_first: bool
) -> Windows:
    """Windows of a map whose height and width may be symbolic.

    Args:
        x: (B, H, W, C).
        size: height and width of a window.
        shift: of the map before it is split, up and to the left, around its border.
        pad_first: pad the map to whole windows and then shift, but not along an axis of a single
            window (torchvision); otherwise shift and then pad (timm).
    """
    vertical, horizontal = (
        _Axis.of(x, dim, side, by, pad_first) for dim, side, by in zip((1, 2), size, shift)
    )
    area = size[0] * size[1]
    height, width = x.shape[1:3]
    # The number of windows is that of results of nonzero(), of which torch.export assumes nothing:
    # of a computed size it makes two cases, one window and several. Hence also one more at first.
    count = (height + size[0] - 1) // size[0] * ((width + size[1] - 1) // size[1])
    window = torch.arange(count + 1, device=x.device)
    window = (window < vertical.windows * horizontal.windows).nonzero()
    inside = torch.arange(area, device=x.device)
    across = window // horizontal.windows
    y, region_y = vertical.at(across, inside // size[1])
    x_, region_x = horizontal.at(window - across * horizontal.windows, inside % size[1])
    # The row behind the last one is the padding.
    rows = torch.where((y >= 0) & (x_ >= 0), y * width + x_, height * width)
    mask = None
    if any(shift):
        region = 3 * region_y + region_x
        mask = torch.where(region[:, None] == region[:, :, None], 0.0, _APART).to(x.dtype)
    pixel = torch.arange(height * width, device=x.device)
    row = pixel // horizontal.length
    window_y, inside_y = vertical.place(row)
    window_x, inside_x = horizontal.place(pixel - row * horizontal.length)
    window = window_y * horizontal.windows + window_x
    return Windows(rows, window * area + inside_y * size[1] + inside_x, mask)


class _Axis(NamedTuple):
    """One axis of a map; sizes are tensors, as ONNX has no remainder by a size of the graph."""

    side: int
    length: torch.Tensor
    #: Number of them along the axis.
    windows: torch.Tensor
    shift: torch.Tensor
    pad_first: bool

    @classmethod
    def of(cls, x: torch.Tensor, dim: int, side: int, shift: int, pad_first: bool) -> "_Axis":
        """See :func:`windows`."""
        length = torch.full((), x.shape[dim], device=x.device)
        count = (length + side - 1) // side
        by = torch.full_like(length, shift)
        if pad_first:
            by = torch.where(count > 1, by, 0)
        return cls(side, length, count, by, pad_first)

    def _ring(self) -> torch.Tensor:
        """Number of positions that a shift turns around."""
        return self.windows * self.side if self.pad_first else self.length

    def _turned(self, position: torch.Tensor) -> torch.Tensor:
        ring = self._ring()
        return position - position // ring * ring

    def at(self, window: torch.Tensor, inside: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Position in the map of a place in a window, -1 for padding; and part of the shifted map.

        A shift makes three parts, whose positions are no neighbours.
        """
        place = window * self.side + inside
        source = self._turned(place + self.shift)
        # Padding lies behind the map: before the shift, or after it.
        source = torch.where((source if self.pad_first else place) < self.length, source, -1)
        end = self.windows * self.side
        part = (place >= end - self.side).long() + (place >= end - self.shift).long()
        return source, part

    def place(self, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Window of a position of the map, and the place in it: the inverse of :meth:`at`."""
        # The ring less one, times the shift: so far back, without negative positions.
        place = self._turned(position + (self._ring() - 1) * self.shift)
        return place // self.side, place % self.side


def shifted_window_attention(
    input: torch.Tensor,
    qkv_weight: torch.Tensor,
    proj_weight: torch.Tensor,
    relative_position_bias: torch.Tensor,
    window_size: list[int],
    num_heads: int,
    shift_size: list[int],
    attention_dropout: float = 0.0,
    dropout: float = 0.0,
    qkv_bias: Optional[torch.Tensor] = None,
    proj_bias: Optional[torch.Tensor] = None,
    logit_scale: Optional[torch.Tensor] = None,
    training: bool = True,
) -> torch.Tensor:
    """As torchvision's function of this name, in evaluation.

    Args:
        input: (B, H, W, C) maps; the others as torchvision's.
    """
    parts = windows(input, window_size, shift_size, pad_first=True)
    x = parts.split(input)
    area, channels = x.shape[1:]
    if logit_scale is not None and qkv_bias is not None:
        # Version 2 has no bias of the keys.
        first, second = qkv_bias[:channels], qkv_bias[2 * channels :]
        qkv_bias = torch.cat([first, torch.zeros_like(first), second])
    qkv = F.linear(x, qkv_weight, qkv_bias)
    qkv = qkv.reshape(-1, area, 3, num_heads, channels // num_heads).permute(2, 0, 3, 1, 4)
    queries, keys, values = qkv[0], qkv[1], qkv[2]
    if logit_scale is None:
        queries = queries * (channels // num_heads) ** -0.5
        attention = queries @ keys.transpose(-2, -1)
    else:
        attention = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).transpose(-2, -1)
        attention = attention * logit_scale.clamp(max=math.log(100.0)).exp()
    attention = attention + relative_position_bias
    if parts.mask is not None:
        whole = attention.shape
        attention = attention.reshape(-1, parts.mask.shape[0], *whole[1:]) + parts.mask[:, None]
        attention = attention.reshape(whole)
    x = attention.softmax(dim=-1) @ values
    x = F.linear(x.transpose(1, 2).reshape(-1, area, channels), proj_weight, proj_bias)
    return parts.joined(x, input)


def merged(x: torch.Tensor) -> torch.Tensor:
    """(B, H, W, C) to (B, H / 2, W / 2, 4 C), in the order of both networks; odd sides are padded.

    Symbolic sides are even: the input of the network is padded to multiples of its largest stride.
    """
    bottom, right = (side % 2 if isinstance(side, int) else 0 for side in x.shape[1:3])
    x = F.pad(x, (0, 0, 0, right, 0, bottom))
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    x = x.permute(0, 1, 3, 4, 2, 5)
    # Not flatten(): the exporter would not see that the number of channels is fixed.
    return x.reshape(batch, height // 2, width // 2, 4 * channels)


def _timm_attention(self: Any, x: torch.Tensor) -> torch.Tensor:
    """``SwinTransformerBlock._attn`` of timm."""
    parts = windows(x, self.window_size, self.shift_size, pad_first=False)
    return parts.joined(self.attn(parts.split(x), mask=parts.mask), x)


def _timm_merging(self: Any, x: torch.Tensor) -> torch.Tensor:
    """``PatchMerging.forward`` of timm."""
    reduced: torch.Tensor = self.reduction(self.norm(merged(x)))
    return reduced


def check_windows(network: torch.nn.Module) -> None:
    """Refuse Swins of other kinds, which torch.export would work on for long and in vain.

    Raises:
        ValueError: there is such a layer.
    """
    if any(type(module).__module__ in _OTHERS for module in network.modules()):
        raise ValueError(
            "MODEL.TORCHVISION.NAME: Swin version 2 of timm cannot be exported to this format: use "
            "swin_v2_t, swin_v2_s or swin_v2_b of torchvision, or timm:swin_*"
        )


@contextlib.contextmanager
def exportable_windows() -> Iterator[None]:
    """Let the Swins of torchvision and timm run by the functions of this file."""
    changes: list[tuple[Any, str, Any]] = [
        (swin_transformer, "shifted_window_attention", shifted_window_attention),
        (swin_transformer, "_patch_merging_pad", merged),
    ]
    # Not imported: a network of timm's has been, if there is one.
    timm = sys.modules.get("timm.models.swin_transformer")
    if timm is not None:
        changes += [
            (timm.SwinTransformerBlock, "_attn", _timm_attention),
            (timm.PatchMerging, "forward", _timm_merging),
        ]
    with contextlib.ExitStack() as stack:
        for change in changes:
            stack.enter_context(mock.patch.object(*change))
        yield
