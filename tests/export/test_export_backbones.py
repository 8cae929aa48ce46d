"""Networks with the backbones of each family in an exported file.

Each is trained and exported, which takes minutes. The rows of docs/export.md:

    KD_SEARCH_TEST_EXPORTS=1 python -m pytest tests/export/test_export_backbones.py -s
"""

import os

import onnx
import pytest
from torchvision.models import ConvNeXt, SwinTransformer
from torchvision.models.convnext import CNBlockConfig
from trained import trained_network

from kd_search.export.model_file import export_model
from kd_search.modeling.backbones import torchvision_backbones
from kd_search.modeling.backbones.torchvision_backbones import create_network

NETWORKS = (
    *(("", "fpn"), ("", "c4"), ("mobilenet_v2", "fpn"), ("mobilenet_v2", "c4")),
    *(("mobilenet_v3_small", "fpn"), ("efficientnet_b0", "fpn"), ("convnext_tiny", "fpn")),
    *(("swin_t", "fpn"), ("swin_t", "c4")),
    *(("timm:mobilenetv4_conv_small", "fpn"), ("timm:swin_tiny_patch4_window7_224", "fpn")),
)


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch):
    """Swins and ConvNeXts of width 16 with a block in each stage, and for Swin in res4 a second
    with shifted windows."""

    def create(name, width=1.0):
        if name == "convnext_tiny":
            sizes = ((16, 32), (32, 64), (64, 128), (128, None))
            return ConvNeXt([CNBlockConfig(*size, 1) for size in sizes])
        if name == "swin_t":
            return SwinTransformer([4, 4], 16, [1, 1, 2, 1], [1, 1, 2, 2], [7, 7])
        if name.startswith("timm:swin"):
            import timm

            sizes = {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2)}
            return timm.create_model(name[5:], strict_img_size=False, **sizes)
        return create_network(name, width)

    monkeypatch.setattr(torchvision_backbones, "create_network", create)


@pytest.mark.skipif("KD_SEARCH_TEST_EXPORTS" not in os.environ, reason="takes minutes each")
@pytest.mark.parametrize(("backbone", "kind"), NETWORKS)
def test_backbone(backbone, kind, tmp_path):
    if backbone.startswith("timm:"):
        pytest.importorskip("timm")
    cfg, model = trained_network(kind, backbone)
    path = tmp_path / "network.onnx"
    parity = export_model(model, path, cfg=cfg)["parity"]
    largest = parity["max_difference"]
    cells = (
        f"`{backbone or 'ResNet-18'}`",
        "C4" if kind == "c4" else "FPN",
        str(len(onnx.load(path).graph.node)),
        str(parity["people"]),
        *(f"{largest[field]:.1e}" for field in ("boxes", "scores", "embeddings")),
    )
    print(f"\n| {' | '.join(cells)} |")
    assert parity["people"] > 0 and parity["pictures_without_people"] > 0
