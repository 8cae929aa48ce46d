"""Checks of an ONNX file before it is loaded, against files of the package onnx."""

import re

import numpy as np
import onnx
import onnx.reference
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny import REPO
from trained import exported_network

from kd_search.runtime import manifest_path, read_manifest
from kd_search.runtime.onnx_file import OnnxError, read_header, with_outputs


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


def branched():
    """Outputs ``sum`` = x + a and ``choice`` = relu(x) or b by a condition, of an input x."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("sum", "choice")]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("t", "e")]
    # Branches read values of the outer graph, which are no inputs of their node.
    branches = [
        helper.make_graph([helper.make_node("Identity", [name], [end.name])], end.name, [], [end])
        for name, end in zip(("positive", "b"), ends)
    ]
    nodes = [
        helper.make_node("Relu", ["x"], ["positive"]),
        helper.make_node("Add", ["x", "a"], ["sum"]),
        helper.make_node(
            "If", ["yes"], ["choice"], then_branch=branches[0], else_branch=branches[1]
        ),
    ]
    values = {"a": np.ones(2, np.float32), "b": np.full(2, 7, np.float32), "yes": np.array(True)}
    tensors = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "g", [x], outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize(
    ("output", "operators", "weights"),
    [("sum", ["Add"], {"a"}), ("choice", ["Relu", "If"], {"b", "yes"})],
)
def test_a_graph_is_reduced_to_what_an_output_needs(output, operators, weights):
    reduced = onnx.load_from_string(with_outputs(branched().SerializeToString(), [output]))
    onnx.checker.check_model(reduced, full_check=True)
    assert [node.op_type for node in reduced.graph.node] == operators
    assert {tensor.name for tensor in reduced.graph.initializer} == weights
    x = np.array([-1, 2], np.float32)
    (found,) = onnx.reference.ReferenceEvaluator(reduced).run(None, {"x": x})
    wanted = {"sum": x + 1, "choice": np.maximum(x, 0)}
    np.testing.assert_array_equal(found, wanted[output])


def test_all_outputs_leave_a_model_as_it_is():
    content = branched().SerializeToString()
    assert with_outputs(content, ["sum", "choice"]) == content


def test_an_output_that_is_not_there_is_named():
    with pytest.raises(OnnxError, match="output boxes"):
        with_outputs(branched().SerializeToString(), ["sum", "boxes"])


def test_the_documented_configuration_of_triton():
    """Names, types and shapes of inputs and outputs are those of an exported file."""
    text = (REPO / "docs/runtime.md").read_text()
    (block,) = re.findall(r'    name: "student"\n.*?\n    output \[.*?\n    \]', text, re.S)
    manifest = read_manifest(manifest_path(exported_network()))
    dims = {"30": str(manifest["max_detections"]), "256": str(manifest["embedding_dim"])}
    graph = onnx.load(exported_network()).graph
    types = {"UINT8": "UINT8", "INT64": "INT64", "FP32": "FLOAT", "BOOL": "BOOL"}
    inputs, outputs = block.split("output [")
    for part, values in ((inputs, graph.input), (outputs, graph.output)):
        entry = r'\{ name: "(\w+)" data_type: TYPE_(\w+) dims: \[([^\]]*)\] \}'
        documented = {
            name: (types[kind], [dims.get(d.strip(), d.strip()) for d in sizes.split(",")])
            for name, kind, sizes in re.findall(entry, part)
        }
        found = {
            value.name: (
                TensorProto.DataType.Name(value.type.tensor_type.elem_type),
                [
                    "-1" if d.dim_param else str(d.dim_value)
                    for d in value.type.tensor_type.shape.dim
                ],
            )
            for value in values
        }
        assert documented == found
    assert "max_batch_size: 0" in block and 'backend: "onnxruntime"' in block


def test_embedding_given_boxes_needs_no_detection():
    content = exported_network().read_bytes()
    nodes = {}
    for output in ("query_embeddings", "boxes"):
        graph = onnx.load_from_string(with_outputs(content, [output])).graph
        nodes[output] = [node.op_type for node in graph.node]
    whole = [node.op_type for node in onnx.load_from_string(content).graph.node]
    assert "NonMaxSuppression" in nodes["boxes"]
    assert "NonMaxSuppression" not in nodes["query_embeddings"]
    assert nodes["query_embeddings"].count("RoiAlign") == whole.count("RoiAlign") // 3
