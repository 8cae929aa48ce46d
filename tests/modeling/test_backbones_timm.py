"""Networks of timm as backbones, where timm is installed."""

import sys

import pytest
import torch
from tiny_backbone import RES, backbone_of, random_statistics
from torch import nn


def test_timm_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="pip install timm"):
        backbone_of("timm:resnet18")


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenetv2_050",
        "efficientnet_b0",
        "regnety_002",
        "swin_tiny_patch4_window7_224",
    ],
)
def test_networks_of_timm_have_the_maps_that_timm_gives(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    options = {"strict_img_size": False} if "swin" in name else {}
    theirs = timm.create_model(name, features_only=True, **options).eval()
    backbone = backbone_of(f"timm:{name}").eval()
    info = theirs.feature_info
    assert [s.stride for s in backbone.output_shape().values()] == info.reduction()[-4:]
    assert [s.channels for s in backbone.output_shape().values()] == info.channels()[-4:]
    random_statistics(backbone)
    ours = backbone.state_dict()
    state = {
        key: next(v for name, v in ours.items() if name.replace(".", "_") == key.replace(".", "_"))
        for key in theirs.state_dict()
    }
    theirs.load_state_dict(state)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found, expected = backbone(x), theirs(x)
    for key, value in zip(RES, expected[-4:]):
        if "swin" in name:
            value = value.permute(0, 3, 1, 2)
        if not ("swin" in name and key == "res5"):  # timm's lacks the last normalisation
            torch.testing.assert_close(found[key], value)


def test_frozen_norms_of_timm_keep_their_activations():
    pytest.importorskip("timm")
    plain = backbone_of("timm:mobilenetv3_small_050").eval()
    frozen = backbone_of("timm:mobilenetv3_small_050", "MODEL.TORCHVISION.NORM", "FrozenBN").eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found, expected = frozen(x), plain(x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
    for key in RES:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-4)
