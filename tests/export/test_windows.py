"""Swin's windows without branches on the size of a map give what the networks give."""

import io

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim
from torchvision.models import swin_transformer
from torchvision.models.swin_transformer import (
    PatchMerging,
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
)

from kd_search.export.graph import Graph, export_program, pt2_content, to_onnx
from kd_search.export.windows import check_windows, exportable_windows

#: Smaller than a window, of one window along one axis or both, with padding and without.
SIZES = ((1, 1), (2, 9), (7, 5), (7, 6), (8, 5), (3, 11), (14, 10), (15, 21))


def random(module):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            # Biases and tables are 0 or nearly so at first.
            parameter.copy_(torch.randn_like(parameter))
    return module.eval()


@torch.no_grad()
def assert_same_at_all_sizes(module, batch=2):
    for size in SIZES:
        x = torch.randn(batch, *size, 8)
        expected = module(x)
        with exportable_windows():
            # The same operations on the same windows.
            assert torch.equal(module(x), expected), size


@pytest.mark.parametrize("shift", [[0, 0], [3, 2], [0, 2]])
@pytest.mark.parametrize("kind", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
def test_attention_of_torchvision(kind, shift):
    assert_same_at_all_sizes(random(kind(8, [7, 5], shift, 2)))


@pytest.mark.parametrize("shift", [0, 3])
def test_attention_of_timm(shift):
    swin = pytest.importorskip("timm.models.swin_transformer")
    block = swin.SwinTransformerBlock(
        *(8, (14, 14)),
        num_heads=2,
        window_size=(7, 5),
        shift_size=(shift, shift and 2),
        always_partition=True,
        dynamic_mask=True,
    )
    assert_same_at_all_sizes(random(block))


def test_merging_of_torchvision():
    assert_same_at_all_sizes(random(PatchMerging(8)))


def test_merging_of_timm():
    swin = pytest.importorskip("timm.models.swin_transformer")
    assert_same_at_all_sizes(random(swin.PatchMerging(8)))


def test_networks_are_as_before_after_an_export():
    names = ("shifted_window_attention", "_patch_merging_pad")
    before = [getattr(swin_transformer, name) for name in names]
    with exportable_windows():
        assert all(getattr(swin_transformer, n) is not f for n, f in zip(names, before))
    assert [getattr(swin_transformer, name) for name in names] == before


@pytest.fixture(scope="module")
def graph():
    """Shifted windows of 3 x 3 and a merging, for maps of even sides from 2."""
    module = nn.Sequential(
        ShiftedWindowAttention(8, [3, 3], [1, 1], 2), PatchMerging(8), nn.LayerNorm(16)
    )
    x = torch.randn(1, 12, 16, 8)
    sides = {i: 2 * Dim(name, min=1, max=99) for i, name in ((1, "height"), (2, "width"))}
    return Graph(random(module), {"x": x}, {"input": sides}, ("y",))


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_one_file_is_right_for_all_sizes(graph, form):
    if form == "onnx":
        session = onnxruntime.InferenceSession(to_onnx(graph), providers=["CPUExecutionProvider"])
        run = lambda x: session.run(None, {"x": x.numpy()})[0]  # noqa: E731
    else:
        content = pt2_content(export_program(graph), "")
        program = torch.export.load(io.BytesIO(content)).module()
        run = lambda x: program(x).numpy()  # noqa: E731
    for size in ((4, 4), (4, 10), (6, 4), (12, 16), (20, 14)):
        x = torch.randn(1, *size, 8)
        with torch.no_grad():
            expected = graph.module(x).numpy()
            np.testing.assert_allclose(run(x), expected, atol=1e-5)


def test_version_2_of_timm_is_refused_in_one_line():
    timm = pytest.importorskip("timm.models.swin_transformer_v2")
    block = timm.SwinTransformerV2Block(8, (4, 4), 1, window_size=2)
    with pytest.raises(ValueError, match=r"^MODEL\.TORCHVISION\.NAME: .*version 2"):
        check_windows(nn.Sequential(block))
