"""Checks of an ONNX file before it is loaded, against files of the package onnx."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kd_search.runtime.onnx_file import OnnxError, read_header


def model(nodes=None, initializers=(), functions=(), opsets=None):
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    nodes = [helper.make_node("Relu", ["x"], ["y"])] if nodes is None else nodes
    graph = helper.make_graph(nodes, "g", tensors[:1], tensors[1:], list(initializers))
    opsets = [helper.make_opsetid("", 18)] if opsets is None else opsets
    made = helper.make_model(graph, opset_imports=opsets, functions=list(functions))
    entry = made.metadata_props.add()
    entry.key, entry.value = "kd_search", '{"name": "ünïcode"}'
    return made


def custom():
    return helper.make_node("Shell", ["x"], ["y"], domain="evil")


def inside_if():
    branch = helper.make_graph([custom()], "b", [], [])
    return helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)


def function():
    return helper.make_function("f", "F", ["a"], ["b"], [], [helper.make_opsetid("", 18)])


def external():
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"
    return tensor


def test_opset_and_metadata():
    header = read_header(model().SerializeToString())
    assert header.opset == 18
    assert header.metadata == {"kd_search": '{"name": "ünïcode"}'}


def test_metadata_that_were_appended_are_read():
    entry = onnx.StringStringEntryProto(key="more", value="1")
    content = model().SerializeToString()
    content += onnx.ModelProto(metadata_props=[entry]).SerializeToString()
    assert read_header(content).metadata["more"] == "1"


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda: model([custom()]), "evil::Shell"),
        (lambda: model([inside_if()]), "evil::Shell"),
        (lambda: model(initializers=[external()]), "another file"),
        (
            lambda: model([helper.make_node("Constant", [], ["y"], value=external())]),
            "another file",
        ),
        (
            lambda: model(
                functions=[
                    helper.make_function("f", "F", ["a"], ["b"], [], [helper.make_opsetid("", 18)])
                ]
            ),
            "functions",
        ),
    ],
    ids=("operator", "in a branch", "external weights", "external constant", "function"),
)
def test_what_is_refused(made, reason):
    with pytest.raises(OnnxError, match=reason):
        read_header(made().SerializeToString())


@pytest.mark.parametrize(
    "content", [b"", b"\x00", b"no model", b"\x89PNG\r\n\x1a\n", b"\xff" * 40, b"PK\x03\x04"]
)
def test_other_content_is_refused(content):
    with pytest.raises(OnnxError, match="not an ONNX file"):
        read_header(content)


def test_every_truncation_is_refused_or_has_lost_its_metadata():
    content = model().SerializeToString()
    for length in range(len(content)):
        try:
            header = read_header(content[:length])
        except OnnxError:
            continue
        assert header.metadata == {} or header.opset == 18


def test_random_bytes_raise_nothing_else():
    rng = np.random.default_rng(0)
    content = model().SerializeToString()
    for _ in range(300):
        changed = bytearray(content)
        for place in rng.integers(0, len(content), 3):
            changed[place] = rng.integers(0, 256)
        try:
            read_header(bytes(changed))
        except OnnxError as error:
            assert "\n" not in str(error)
