"""Backbones of re-ID networks: torchvision's, their weights, and attention in a ResNet."""

import enum
import hashlib
import pickle
from collections import OrderedDict

import pytest
import torch
from detectron2.modeling import build_model
from tiny_reid import reid_cfg
from torch import nn
from torchvision.models import densenet121, mobilenet_v2, resnet18, resnet50

from kd_search.checkpoint import rename_torchvision_resnet
from kd_search.modeling.backbones.bam import BottleneckAttention
from kd_search.modeling.backbones.torchvision_weights import load_torchvision_features

SIZE = (64, 32)
NETWORKS = {
    "build_densenet121_backbone": (densenet121, 1024),
    "build_mobilenet_v2_backbone": (mobilenet_v2, 1280),
}
RGB = (
    *("INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", [123.675, 116.28, 103.53]),
    *("MODEL.PIXEL_STD", [58.395, 57.12, 57.375]),
)


def network(name, *overrides):
    torch.manual_seed(0)
    feature = "res5" if "bam" in name else "last"
    return build_model(
        reid_cfg("MODEL.BACKBONE.NAME", name, "MODEL.REID_NETWORK.FEATURE", feature, *overrides)
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_is_torchvisions_network_from_its_file(name, tmp_path):
    build, channels = NETWORKS[name]
    torch.manual_seed(1)
    theirs = build(weights=None).eval()
    path = tmp_path / "weights.pth"
    state = theirs.state_dict()
    if "densenet" in name:  # torchvision's file is older than these counters
        state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save(state, path)
    backbone = network(name, *RGB, "MODEL.TORCHVISION.WEIGHTS", str(path)).backbone.eval()
    x = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        found, expected = backbone(x)["last"], theirs.features(x)
    expected = expected.relu() if "densenet" in name else expected
    torch.testing.assert_close(found, expected)
    shape = backbone.output_shape()["last"]
    assert (shape.channels, shape.stride) == (channels, 32)
    assert found.shape == (2, channels, SIZE[0] // 32, SIZE[1] // 32)


@pytest.mark.parametrize("name", NETWORKS)
def test_last_stage_keeps_its_resolution_and_both_signs(name):
    model = network(
        name, "MODEL.TORCHVISION.LAST_STRIDE", 1, "MODEL.TORCHVISION.FINAL_ACTIVATION", False
    ).eval()
    with torch.no_grad():
        x = model.backbone(torch.randn(2, 3, *SIZE))["last"]
        (embedding,) = model([{"frames": torch.zeros(2, 3, *SIZE)}])
    assert x.shape[2:] == (SIZE[0] // 16, SIZE[1] // 16)
    assert model.backbone.output_shape()["last"].stride == 16
    assert x.min() < 0 < x.max()
    assert embedding["embedding"].shape == (NETWORKS[name][1],)


def test_every_weight_of_mobilenet_is_trained():
    model = network("build_mobilenet_v2_backbone")
    generator = torch.Generator().manual_seed(0)
    batch = [
        {"frames": 255 * torch.rand(1, 3, *SIZE, generator=generator), "person_id": i}
        for i in (0, 0, 1, 1)
    ]
    sum(model(batch).values()).backward()
    assert all(p.grad is not None for p in model.backbone.parameters())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            (*RGB, "MODEL.TORCHVISION.WEIGHTS", "no/such/file.pth"),
            "WEIGHTS: no/such/file.pth",
        ),
        (("MODEL.TORCHVISION.WEIGHTS", "IMAGENET1K_V1"), "INPUT.FORMAT RGB, MODEL.PIXEL_MEAN"),
        (("MODEL.TORCHVISION.LAST_STRIDE", 3), "MODEL.TORCHVISION.LAST_STRIDE 3"),
        (("MODEL.BACKBONE.FREEZE_AT", 2), "MODEL.BACKBONE.FREEZE_AT"),
    ],
)
def test_mistakes_in_the_config_are_named(overrides, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        network("build_mobilenet_v2_backbone", *overrides)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_that_are_not_in_the_cache_are_no_silent_random_start(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=f"WEIGHTS: IMAGENET1K_V1 .*{tmp_path}/hub/checkpoints"
    ):
        network(name, *RGB, "MODEL.TORCHVISION.WEIGHTS", "IMAGENET1K_V1")


class Known(enum.Enum):
    V1 = "net.pth"

    @property
    def url(self):
        return f"https://example.org/models/{self.value}"


def features():
    return nn.Sequential(OrderedDict(denselayer1=nn.Sequential(OrderedDict(conv1=nn.Linear(2, 3)))))


OLD_NAMES = {
    "features.denselayer1.conv.1.weight": torch.ones(3, 2),
    "features.denselayer1.conv.1.bias": torch.zeros(3),
    "classifier.weight": torch.zeros(1, 3),
}


def test_weights_come_from_torchvisions_cache_under_old_names_too(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(OLD_NAMES, folder / "net.pth")
    net = features()
    load_torchvision_features(net, "V1", Known, "KEY")
    assert (net.denselayer1.conv1.weight == 1).all()


def test_files_are_compared_with_the_hash_of_their_name(tmp_path):
    path = tmp_path / "net.pth"
    torch.save(OLD_NAMES, path)
    named = tmp_path / f"net-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"
    named.write_bytes(path.read_bytes())
    load_torchvision_features(features(), str(named), Known, "KEY")
    named.write_bytes(path.read_bytes() + b"0")
    with pytest.raises(ValueError, match=f"KEY: {named} .*SHA-256"):
        load_torchvision_features(features(), str(named), Known, "KEY")


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a file was executed",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {**OLD_NAMES, "features.denselayer1.conv.1.bias": torch.zeros(4)},
            "denselayer1.conv1.bias",
        ),
        (
            {"features.denselayer1.conv.1.weight": torch.ones(3, 2)},
            "denselayer1.conv1.bias",
        ),
        ({**OLD_NAMES, "features.denselayer2.conv.1.bias": torch.zeros(3)}, "denselayer2"),
        ([1, 2], "list"),
        (Trap(), ""),
    ],
)
def test_other_files_are_rejected(content, message, tmp_path):
    path = tmp_path / "weights.pth"
    if isinstance(content, Trap):
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=f"KEY: {path} .*{message}") as error:
        load_torchvision_features(features(), str(path), Known, "KEY")
    assert "\n" not in str(error.value)


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
