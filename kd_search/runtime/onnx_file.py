"""Checks of an ONNX file before it is loaded, by its wire format.

onnxruntime has no switch against operators of other domains or against external data, and the
package ``onnx`` is no requirement of the runtime. The format is that of protocol buffers: a
sequence of fields, each with a number and either an integer, 4 or 8 bytes, or a length and bytes.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Union

#: Domains of the operators of the ONNX standard.
_STANDARD = ("", "ai.onnx")
# Numbers of fields, from onnx.proto.
_MODEL_GRAPH, _MODEL_OPSET, _MODEL_METADATA, _MODEL_FUNCTIONS = 7, 8, 14, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_OUTPUT, _GRAPH_SPARSE = 1, 5, 12, 15
_NODE_INPUT, _NODE_OUTPUT, _NODE_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 4, 5, 7
_VALUE_NAME, _TENSOR_NAME = 1, 8
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES = 22, 23
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14
_SPARSE_VALUES, _SPARSE_INDICES = 1, 2
_KEY, _VALUE = 1, 2


class OnnxError(ValueError):
    """A file is no ONNX file, or one that the runtime refuses."""


class OnnxHeader(NamedTuple):
    """What :func:`read_header` returns."""

    opset: int
    metadata: dict[str, str]


def read_header(content: bytes) -> OnnxHeader:
    """Read opset and metadata of an ONNX file, and check what its graph consists of.

    Raises:
        OnnxError: it is not an ONNX file, has operators or functions outside of the ONNX standard,
            or refers to data in other files.
    """
    opset, metadata, has_graph = 0, {}, False
    try:
        for number, value in _fields(memoryview(content)):
            if number == _MODEL_GRAPH:
                has_graph = True
                _check_graph(_message(value))
            elif number == _MODEL_OPSET:
                entry = dict(_fields(_message(value)))
                if _text(entry.get(1, b"")) in _STANDARD:
                    opset = max(opset, int(entry.get(2, 0)))
            elif number == _MODEL_METADATA:
                entry = dict(_fields(_message(value)))
                metadata[_text(entry.get(_KEY, b""))] = _text(entry.get(_VALUE, b""))
            elif number == _MODEL_FUNCTIONS:
                raise OnnxError("has functions of its own, and only standard operators are run")
    except (IndexError, UnicodeDecodeError, RecursionError, TypeError):
        raise OnnxError("is not an ONNX file, or is truncated") from None
    if not has_graph or not opset:
        raise OnnxError("is not an ONNX file, or is truncated")
    return OnnxHeader(opset, metadata)


def with_outputs(content: bytes, outputs: Sequence[str]) -> bytes:
    """An ONNX file reduced to what some of its outputs need.

    onnxruntime computes every node of a graph, whichever outputs it is asked for.

    Args:
        content: that :func:`read_header` has accepted.
        outputs: names; others are left out, with the nodes and weights that they alone need.

    Raises:
        OnnxError: the file does not have these outputs.
    """
    try:
        parts = [
            _field(number, _reduced(_message(value), outputs) if number == _MODEL_GRAPH else value)
            for number, value in _fields(memoryview(content))
        ]
    except (IndexError, UnicodeDecodeError, RecursionError, TypeError):
        raise OnnxError("is not an ONNX file, or is truncated") from None
    return b"".join(parts)


def _reduced(graph: memoryview, outputs: Sequence[str]) -> bytes:
    fields = list(_fields(graph))
    found = [_texts(_message(v), _VALUE_NAME)[0] for n, v in fields if n == _GRAPH_OUTPUT]
    if missing := [name for name in outputs if name not in found]:
        raise OnnxError(f"has no output {missing[0]}")
    needed, kept = set(outputs), set()
    # Nodes are in the order of their execution.
    for place in reversed(range(len(fields))):
        number, value = fields[place]
        if number == _GRAPH_NODE:
            node = _message(value)
            if needed.intersection(_texts(node, _NODE_OUTPUT)):
                kept.add(place)
                needed.update(_names_read(node))
    parts = []
    for place, (number, value) in enumerate(fields):
        names = {_GRAPH_OUTPUT: _VALUE_NAME, _GRAPH_INITIALIZER: _TENSOR_NAME}
        if number == _GRAPH_NODE:
            keep = place in kept
        elif number in names:
            among = outputs if number == _GRAPH_OUTPUT else needed
            keep = _texts(_message(value), names[number])[0] in among
        else:
            keep = True
        if keep:
            parts.append(_field(number, value))
    return b"".join(parts)


def _names_read(node: memoryview) -> list[str]:
    """Names of the values that a node reads, in its branches too."""
    names = _texts(node, _NODE_INPUT)
    for number, value in _fields(node):
        if number == _NODE_ATTRIBUTE:
            for kind, branch in _fields(_message(value)):
                if kind in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                    inner = (v for n, v in _fields(_message(branch)) if n == _GRAPH_NODE)
                    names += [name for v in inner for name in _names_read(_message(v))]
    return names


def _texts(message: memoryview, wanted: int) -> list[str]:
    return [_text(value) for number, value in _fields(message) if number == wanted]


def _check_graph(graph: memoryview) -> None:
    for number, value in _fields(graph):
        if number == _GRAPH_NODE:
            _check_node(_message(value))
        elif number == _GRAPH_INITIALIZER:
            _check_tensor(_message(value))
        elif number == _GRAPH_SPARSE:
            _check_sparse(_message(value))


def _check_node(node: memoryview) -> None:
    operator, domain = "", ""
    for number, value in _fields(node):
        if number == _NODE_TYPE:
            operator = _text(value)
        elif number == _NODE_DOMAIN:
            domain = _text(value)
        elif number == _NODE_ATTRIBUTE:
            _check_attribute(_message(value))
    if domain not in _STANDARD:
        raise OnnxError(f"has the custom operator {domain}::{operator}, which is not run")


def _check_attribute(attribute: memoryview) -> None:
    for number, value in _fields(attribute):
        if number in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
            _check_tensor(_message(value))
        elif number in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
            _check_graph(_message(value))
        elif number in (_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES):
            _check_sparse(_message(value))


def _check_sparse(sparse: memoryview) -> None:
    for number, value in _fields(sparse):
        if number in (_SPARSE_VALUES, _SPARSE_INDICES):
            _check_tensor(_message(value))


def _check_tensor(tensor: memoryview) -> None:
    for number, value in _fields(tensor):
        if number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value):
            raise OnnxError("refers to weights in another file, which no checksum covers")


def _fields(message: memoryview) -> Iterator[tuple[int, Union[int, memoryview]]]:
    """Number and value of every field; an IndexError if the message ends within one."""
    position, end = 0, len(message)
    while position < end:
        key, position = _varint(message, position)
        kind = key & 7
        if kind == 0:
            value, position = _varint(message, position)
            yield key >> 3, value
            continue
        if kind == 2:
            length, position = _varint(message, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise IndexError
        if length > end - position:
            raise IndexError
        yield key >> 3, message[position : position + length]
        position += length


def _field(number: int, value: Union[int, bytes, memoryview]) -> bytes:
    """A field of an integer, or of a length and bytes; no other kind occurs in a model or graph."""
    if isinstance(value, int):
        return _encoded(number << 3) + _encoded(value)
    return _encoded(number << 3 | 2) + _encoded(len(value)) + bytes(value)


def _encoded(value: int) -> bytes:
    """A non-negative integer; the inverse of :func:`_varint`."""
    content = bytearray()
    while value >= 0x80:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*content, value])


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """An integer and the position behind it."""
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise IndexError


def _message(value: Union[int, memoryview]) -> memoryview:
    if isinstance(value, int):
        raise TypeError
    return value


def _text(value: Union[int, bytes, memoryview]) -> str:
    if isinstance(value, int):
        raise TypeError
    return bytes(value).decode()
