"""ResNets of re-ID networks: attention, and last blocks without ReLUs."""

import pytest
import torch
from detectron2.modeling import build_model
from tiny_reid import reid_cfg
from torch import nn
from torchvision.models import resnet18, resnet50

from kd_search.checkpoint import rename_torchvision_resnet
from kd_search.modeling.backbones.bam import BottleneckAttention

SIZE = (64, 32)


def network(name, *overrides):
    torch.manual_seed(0)
    return build_model(reid_cfg("MODEL.BACKBONE.NAME", name, *overrides))


@pytest.mark.parametrize("combine", ["sum", "product"])
def test_attention_equals_its_formula(combine):
    block = BottleneckAttention(32, reduction=8, dilation=2, combine=combine).double().eval()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 32, 6, 5, dtype=torch.float64)

    def normalised(layer, y):
        mean, var = (v.view(1, -1, 1, 1) for v in (layer.running_mean, layer.running_var))
        return torch.relu((y - mean) / torch.sqrt(var + layer.eps))

    def linear(layer, y):
        return torch.einsum("oi,nihw->nohw", layer.weight[:, :, 0, 0], y) + layer.bias.view(
            -1, 1, 1
        )

    def dilated(layer, y):
        padded = torch.zeros(2, 4, 10, 9, dtype=torch.float64)
        padded[:, :, 2:8, 2:7] = y
        total = layer.bias.view(-1, 1, 1)
        for i in range(3):
            for j in range(3):
                part = padded[:, :, 2 * i : 2 * i + 6, 2 * j : 2 * j + 5]
                total = total + torch.einsum("oi,nihw->nohw", layer.weight[:, :, i, j], part)
        return total

    with torch.no_grad():
        _, narrow, norm, _, widen = block.channel
        pooled = x.sum(dim=(2, 3), keepdim=True) / 30
        channel = linear(widen, normalised(norm, linear(narrow, pooled)))
        first, norm1, _, second, norm2, _, third, norm3, _, last = block.spatial
        y = normalised(norm1, linear(first, x))
        y = normalised(norm3, dilated(third, normalised(norm2, dilated(second, y))))
        spatial = linear(last, y)
        joined = channel + spatial if combine == "sum" else channel * spatial
        expected = x * (1 + 1 / (1 + torch.exp(-joined)))
        torch.testing.assert_close(block(x), expected)


def test_bam_resnet_is_the_resnet_with_attention_after_three_stages():
    torch.manual_seed(0)
    plain = network("build_width_resnet_backbone", "MODEL.REID_NETWORK.FEATURE", "res5")
    bam = network("build_bam_resnet_backbone", "MODEL.RESNETS.NORM", "FrozenBN")
    loaded = bam.load_state_dict(plain.state_dict(), strict=False)
    assert {".".join(name.split(".")[:3]) for name in loaded.missing_keys} == {
        f"backbone.res{stage}.2" for stage in (2, 3, 4)
    }
    attention = [m for m in bam.modules() if isinstance(m, BottleneckAttention)]
    assert [a.out_channels for a in attention] == [16, 32, 64]
    assert any(isinstance(m, nn.BatchNorm2d) for m in attention[0].modules())
    x = torch.randn(2, 3, *SIZE)
    assert bam.eval().backbone(x)["res5"].shape == plain.eval().backbone(x)["res5"].shape


def test_unknown_combination_is_named():
    with pytest.raises(ValueError, match="MODEL.BAM.COMBINE .*max"):
        network("build_bam_resnet_backbone", "MODEL.BAM.COMBINE", "max")


class FirstCalls(nn.Module):
    """A ReLU in its first calls, then nothing."""

    def __init__(self, count):
        super().__init__()
        self.left = count

    def forward(self, x):
        self.left -= 1
        return x.relu() if self.left >= 0 else x


def torchvision_resnet(build, relu):
    """Torchvision's network without stride in its last stage, the ReLU module of its last block
    replaced; float64, as batch normalisations of trained networks are."""
    torch.manual_seed(2)
    net = build(weights=None).double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    first = net.layer4[0]
    strided = first.conv1 if build is resnet18 else first.conv2
    strided.stride = first.downsample[0].stride = (1, 1)
    if relu is not None:
        net.layer4[-1].relu = relu
    return net


FINAL, ALL = "MODEL.RESNETS.FINAL_RELU", "MODEL.RESNETS.LAST_BLOCK_RELUS"


@pytest.mark.parametrize("build", [resnet18, resnet50], ids=["basic", "bottleneck"])
@pytest.mark.parametrize(
    ("overrides", "removed"),
    [
        ((), "none"),
        ((FINAL, False), "last"),
        # As the code of VKD has it: all activations of the block are this one module.
        ((ALL, False), "all"),
        ((ALL, False, FINAL, False), "all"),
    ],
    ids=["kept", "final", "all", "both"],
)
def test_last_block_is_torchvisions_without_these_relus(build, overrides, removed):
    inner = 1 if build is resnet18 else 2
    relu = {"none": None, "last": FirstCalls(inner), "all": nn.Sequential()}[removed]
    theirs = torchvision_resnet(build, relu)
    backbone = network(
        "build_width_resnet_backbone",
        *("MODEL.REID_NETWORK.FEATURE", "res5", "MODEL.RESNETS.WIDTH_MULTIPLIER", 1.0),
        *("MODEL.RESNETS.DEPTH", 18 if build is resnet18 else 50),
        *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64 if build is resnet18 else 256),
        *("MODEL.RESNETS.STRIDE_IN_1X1", False, *overrides),
    ).backbone
    backbone = backbone.double().eval()
    weights, left = rename_torchvision_resnet(theirs.state_dict(), backbone.state_dict())
    backbone.load_state_dict(weights)
    assert left == ["fc.weight", "fc.bias"]
    x = torch.randn(2, 3, *SIZE, dtype=torch.float64)
    with torch.no_grad():
        found = backbone(x)["res5"]
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            x = getattr(theirs, name)(x)
    torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9)
    assert (found.min() < 0) == (removed != "none")


def test_bam_resnet_ends_without_relus_too():
    bam, kept = (
        network("build_bam_resnet_backbone", "MODEL.RESNETS.LAST_BLOCK_RELUS", on).eval()
        for on in (False, True)
    )
    kept.load_state_dict(bam.state_dict())
    x = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        found, other = bam.backbone(x)["res5"], kept.backbone(x)["res5"]
    assert found.min() < 0 <= other.min() and not torch.allclose(found.relu(), other)
