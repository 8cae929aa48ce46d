"""The layers of a classification network up to its last feature map, as a Detectron2 backbone.

Strides, channels and memory layout of every layer are measured, so that a network needs no entry
in a table: see :func:`find_layers`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import nn
from torchvision.models import swin_transformer
from torchvision.models.convnext import LayerNorm2d
from torchvision.ops import Permute

#: Name of the last map, behind the 1x1 convolution that some networks have before their pooling.
LAST = "last"

#: Height and width of the probe: multiples of 64, and no two of their quotients by powers of two
#: are equal, which tells the axes of a map apart.
_PROBE = (64, 96)
#: Layers that look at one position of a map at a time; 1x1 convolutions are another case.
_POINTWISE = (
    *(nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm),
    *(nn.Identity, nn.Dropout, Permute),
)


@dataclass(frozen=True)
class Layer:
    """One step of a network from the image to its last feature map."""

    #: In the network, as for ``get_submodule``.
    name: str
    #: Of its output.
    channels: int
    #: Of its output, in pixels of the image.
    stride: int
    #: "stem", "res2", ... by the stride of the published network; "last" for a final 1x1
    #: convolution, its normalisation and its activation.
    stage: str
    #: Whether the output is (N, H, W, C).
    channels_last: bool


@torch.no_grad()
def find_layers(network: nn.Module) -> list[Layer]:
    """Find the layers of a network that run one after the other, by running it on a small image.

    A layer belongs to the chain if its input is the very output of the layer before. Stage res_k
    has the layers whose output has stride 2^k; the stem those of stride 1 and 2 or, where there are
    none, the first layer with its normalisation.

    Args:
        network: takes (N, 3, H, W); its layers are its children, those of ``nn.Sequential`` and
            ``nn.ModuleList`` one by one. Modes and weights do not change.

    Raises:
        ValueError: it does not run on an image of any size, or its maps are not the image's size
            divided by powers of two.
    """
    calls: list[tuple[str, Any, Any]] = []

    def record(name: str) -> Any:
        return lambda module, given, output: calls.append((name, given[0] if given else 0, output))

    handles = [m.register_forward_hook(record(name)) for name, m in _children(network)]
    training = [m for m in network.modules() if m.training]
    probe = next(network.parameters()).new_zeros((1, 3, *_PROBE))
    try:
        network.eval()(probe)
    except Exception as error:  # of any type, by networks that take images of one size only
        reason = " ".join(str(error).split())
        size = "{} x {}".format(*_PROBE)
        raise ValueError(f"does not run on images of any size ({size} pixels: {reason})") from None
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    layers: list[Layer] = []
    x = probe
    for name, given, output in calls:
        shape = _map_shape(output) if given is x else None
        if shape is None or (layers and shape[1] < layers[-1].stride):
            break
        x = output
        stage = int(math.log2(shape[1]))
        layers.append(Layer(name, *shape[:2], f"res{stage}" if stage > 1 else "stem", shape[2]))
    return _named_stages(network, layers)


def _children(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if type(child) in (nn.Sequential, nn.ModuleList):
            yield from _children(child, f"{prefix}{name}.")
        else:
            yield prefix + name, child


def _map_shape(x: Any) -> tuple[int, int, bool] | None:
    """Channels, stride and whether channels are last; ``None`` for anything but a feature map."""
    if not isinstance(x, torch.Tensor) or x.dim() != 4:
        return None
    for last, (channels, *size) in ((False, x.shape[1:]), (True, (x.shape[3], *x.shape[1:3]))):
        stride = _PROBE[0] // size[0]
        aligned = tuple(side * stride for side in size) == _PROBE
        if aligned and stride & (stride - 1) == 0:
            return int(channels), int(stride), last
    return None


def _named_stages(network: nn.Module, layers: list[Layer]) -> list[Layer]:
    if not layers or layers[-1].stage == "stem":
        raise ValueError(
            "has no feature maps of strides 4, 8, ... that divide the size of the image, made by "
            "one layer after the other"
        )
    if layers[0].stage != "stem":
        end = 1
        while end < len(layers) and _is_pointwise(network, layers[end].name):
            end += 1
        layers = [*(replace(x, stage="stem") for x in layers[:end]), *layers[end:]]
    tail = 0
    while tail < len(layers) and _is_pointwise(network, layers[-1 - tail].name):
        tail += 1
    # A last normalisation alone, as of DenseNet and Swin, belongs to the last stage.
    last = layers[len(layers) - tail :]
    if any(isinstance(m, nn.Conv2d) for x in last for m in network.get_submodule(x.name).modules()):
        layers = [*layers[: len(layers) - tail], *(replace(x, stage=LAST) for x in last)]
    return layers


def _is_pointwise(network: nn.Module, name: str) -> bool:
    leaves = [m for m in network.get_submodule(name).modules() if not list(m.children())]
    return all(
        m.kernel_size == (1, 1) and m.stride == (1, 1)
        if isinstance(m, nn.Conv2d)
        else isinstance(m, _POINTWISE) or is_activation(m)
        for m in leaves
    )


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an activation of torch or timm."""
    return type(module).__module__ in ("torch.nn.modules.activation", "timm.layers.activations")


def split_at(layers: Sequence[Layer], feature: str) -> int:
    """Number of layers up to the deepest map of a stage.

    Args:
        layers: of a whole network.
        feature: "res2", "res3", ..., or "last".

    Raises:
        ValueError: the network has no such map.
    """
    if feature == LAST:
        return len(layers)
    found = [i for i, layer in enumerate(layers) if layer.stage == feature != "stem"]
    if not found:
        stages = dict.fromkeys(layer.stage for layer in layers)
        names = [name for name in stages if name not in ("stem", LAST)]
        raise ValueError(f"has no map {feature!r}, only {', '.join([*names, LAST])}")
    return found[-1] + 1


class LayerChain(nn.Module):
    """Layers of a network in a row, (N, C, H, W) to (N, C', H', W'); parameters keep their names.

    Attributes:
        steps: the layers.
        initial_weights: ``file`` and ``sha256`` of the weights that the layers were loaded from,
            which the checkpointer saves; empty for a random start; ``missing``, a message, for one
            that is none by intention.
    """

    def __init__(self, network: nn.Module, layers: Sequence[Layer], channels_last: bool = False):
        """
        Args:
            network: that the layers are taken from; they are shared with it.
            layers: to run, one after the other.
            channels_last: the first of them takes (N, H, W, C).
        """
        super().__init__()
        self.steps = tuple(layers)
        self.channels_last = channels_last
        self.initial_weights: dict[str, str] = {}
        for layer in layers:
            _plant(self, layer.name, network.get_submodule(layer.name))

    def forward(self, x: torch.Tensor) -> Any:
        """The output of the last layer."""
        *_, output = self._outputs(x)
        return output

    def script_branches(self) -> None:
        """Replace layers that branch on the size of their input by scripted ones, in place.

        Those of torchvision's Swin; in a trace, the branches of its sample would be constant.
        """
        for step in self.steps:
            layer = self.get_submodule(step.name)
            if any(type(m).__module__ == swin_transformer.__name__ for m in layer.modules()):
                self.set_submodule(step.name, torch.jit.script(layer))

    def _outputs(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """The output of each layer, (N, C, H, W)."""
        if self.channels_last:
            x = x.permute(0, 2, 3, 1)
        for layer in self.steps:
            x = self.get_submodule(layer.name)(x)
            yield x.permute(0, 3, 1, 2) if layer.channels_last else x


def _plant(root: nn.Module, name: str, module: nn.Module) -> None:
    *parents, last = name.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(last, module)


class ChainBackbone(LayerChain, Backbone):
    """The first layers of a network; outputs the deepest maps of some of its stages."""

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[Layer],
        out_features: Sequence[str],
        *,
        out_norm: bool = False,
    ):
        """
        Args:
            network: that the layers are taken from.
            layers: of the whole network, see :func:`find_layers`. Those behind the deepest output
                are left out.
            out_features: names of maps, see :func:`split_at`.
            out_norm: normalise each map over its channels by a LayerNorm of its own.

        Raises:
            ValueError: the network has no such map.
        """
        ends = {name: split_at(layers, name) for name in out_features}
        super().__init__(network, layers[: max(ends.values())])
        self._out_features = list(out_features)
        self._ends = ends
        of = {name: layers[end - 1] for name, end in ends.items()}
        self._out_feature_channels = {name: layer.channels for name, layer in of.items()}
        self._out_feature_strides = {name: layer.stride for name, layer in of.items()}
        norms = {name: LayerNorm2d(of[name].channels) for name in (of if out_norm else ())}
        self.out_norms = nn.ModuleDict(norms)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map normalised images (N, 3, H, W) to features by name."""
        outputs = {}
        for position, output in enumerate(self._outputs(x), start=1):
            for name in (name for name, end in self._ends.items() if end == position):
                norm = self.out_norms[name] if name in self.out_norms else None
                outputs[name] = output if norm is None else norm(output)
        return outputs

    @property
    def size_divisibility(self) -> int:
        """Images are padded to multiples of the deepest stride, at which all sizes are exact."""
        return max(self._out_feature_strides.values())

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(
                channels=self._out_feature_channels[name], stride=self._out_feature_strides[name]
            )
            for name in self._out_features
        }
