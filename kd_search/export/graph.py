"""Graphs of networks as the content of files: ONNX and torch.export."""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from detectron2.layers import Conv2d
from torch import nn
from torch.export import Dim
from torch.nn import functional as F

from kd_search.export.flat import INPUTS, OUTPUTS, FlatPersonSearch, FlatReID
from kd_search.export.tracing import exportable
from kd_search.export.windows import exportable_windows
from kd_search.modeling import ReIDNetwork

#: Opset of ONNX files: the one that torch's exporter is written for.
OPSET = 18
#: RoiAlign has half-pixel coordinates since then.
_LEAST_OPSET = 16
#: Longest side of an input, in pixels.
LARGEST_SIDE = 16384
_MOST_QUERIES = _MOST_CROPS = 16384
#: Weights of fewer values are not stored in half precision.
_SMALL = 64
_LARGEST_HALF = 65504.0


@dataclass(frozen=True)
class Graph:
    """A module to export, and what its exporters need."""

    module: nn.Module
    #: Example inputs, by name.
    inputs: dict[str, torch.Tensor]
    #: Sizes that are not fixed, as ``dynamic_shapes`` of ``torch.export.export``.
    dynamic: dict[str, Any]
    outputs: tuple[str, ...]
    #: Height and width of the input are multiples of it.
    divisor: int = 1
    #: Smallest height and width of the input in a torch.export file; ONNX has no limit.
    least_side: int = 1


def person_search_graph(model: nn.Module) -> Graph:
    """Graph of a person search network, see :class:`FlatPersonSearch`.

    Args:
        model: a PersonSearchRCNN, or a Distiller with one as its student. Not modified.

    Raises:
        ValueError: it is none, or has parts that cannot be exported.
    """
    flat = FlatPersonSearch(exportable(model).model.cpu()).eval()
    # torch.export takes a map that is one pixel high or wide as a special case of its own.
    backbone: Any = flat.model.backbone
    step = flat.size_divisibility
    least = max(shape.stride for shape in backbone.output_shape().values()) // step + 1
    noise = torch.Generator().manual_seed(0)
    sides = [step * max(-(-side // step), least + 1) for side in (256, 320)]
    image = torch.randint(0, 256, (3, *sides), generator=noise, dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0, 100, 200], [3, 4, 50, 60], [9, 9, 99, 99]])
    height, width = (
        step * Dim(name, min=least, max=LARGEST_SIDE // step) for name in ("height", "width")
    )
    return Graph(
        flat,
        dict(zip(INPUTS, (image, torch.tensor(sides), boxes))),
        {
            "image": {1: height, 2: width},
            "size": None,
            "query_boxes": {0: Dim("queries", min=0, max=_MOST_QUERIES)},
        },
        OUTPUTS,
        divisor=step,
        least_side=step * least,
    )


def reid_graph(model: ReIDNetwork, size: Sequence[int]) -> Graph:
    """Graph of a re-ID network for batches of crops of (height, width) ``size``."""
    # The classifier of the training identities may be larger than the rest.
    copied = copy.deepcopy(model, {id(model.classifier): None}).cpu().eval().requires_grad_(False)
    noise = torch.Generator().manual_seed(0)
    crops = torch.randint(0, 256, (3, 3, *size), generator=noise, dtype=torch.uint8)
    return Graph(
        FlatReID(copied),
        {"crops": crops},
        {"crops": {0: Dim("crops", min=1, max=_MOST_CROPS)}},
        ("embeddings",),
    )


def to_onnx(graph: Graph, opset: int = OPSET, half_weights: bool = False) -> bytes:
    """The content of an ONNX file without external data.

    Args:
        graph: to export.
        opset: of ONNX, 18 or more.
        half_weights: store weights in half precision, at half the size; they are computed with in
            single precision.

    Raises:
        ValueError: the opset is too old, or torch cannot export to it.
    """
    check_opset(opset)
    import onnx

    with _exporting():
        program = torch.onnx.export(
            graph.module,
            tuple(graph.inputs.values()),
            dynamic_shapes=graph.dynamic,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            opset_version=opset,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    found = {entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")}
    if found != {opset}:
        raise ValueError(
            f"torch {torch.__version__} cannot export to ONNX opset {opset}: use {OPSET}"
        )
    _strip(proto)
    if half_weights:
        store_halves(proto)
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def check_opset(opset: int) -> None:
    """Raise a ValueError for an opset of ONNX that gives other results or cannot be made."""
    if opset < _LEAST_OPSET:
        raise ValueError(
            f"--opset {opset}: RoiAlign of ONNX before opset {_LEAST_OPSET} has no half-pixel "
            "coordinates; the file would run and give other embeddings. Use "
            f"{OPSET}"
        )
    if opset < OPSET:
        raise ValueError(
            f"--opset {opset}: the exporter of torch makes opset {OPSET} and later. Use {OPSET}"
        )


def _strip(proto: Any) -> None:
    """Remove the exporter's notes: stack traces with paths of this machine."""
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.initializer, *graph.value_info):
        del part.metadata_props[:]
        part.doc_string = ""
    del graph.value_info[:]


def store_halves(proto: Any) -> None:
    """Store the weights of an ONNX model in half precision, each with a cast to single."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in proto.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size < _SMALL or not abs(values).max() <= _LARGEST_HALF:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype("float16"), f"{name}.half"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def export_program(graph: Graph) -> torch.export.ExportedProgram:
    """Export a graph with ``torch.export``."""
    with _exporting():
        return torch.export.export(
            graph.module,
            tuple(graph.inputs.values()),
            dynamic_shapes=graph.dynamic,
            strict=False,
        )


def pt2_content(program: torch.export.ExportedProgram, manifest: str) -> bytes:
    """The content of a ``torch.export`` file with a manifest as its extra file."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"manifest.json": manifest})
    return buffer.getvalue()


@contextlib.contextmanager
def _exporting() -> Iterator[None]:
    """Without gradients, warnings of the exporters, and branches on values and sizes."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(mock.patch.object(Conv2d, "forward", _convolve))
        stack.enter_context(exportable_windows())
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)


def _convolve(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Detectron2's Conv2d without its check for empty inputs in training."""
    x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
    if self.norm is not None:
        x = self.norm(x)
    return x if self.activation is None else self.activation(x)
