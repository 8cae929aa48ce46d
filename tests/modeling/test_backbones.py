"""Networks of torchvision and timm as backbones: maps, stages, norms, and frozen stages."""

import pytest
import torch
import torchvision
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_model
from tiny_backbone import RES, backbone_of, cfg_of, random_statistics
from tiny_reid import reid_cfg
from torch import nn
from torchvision.models import densenet121, mobilenet_v2

from kd_search.modeling.backbones.layer_chain import ChainBackbone, find_layers
from kd_search.modeling.backbones.torchvision_backbones import build_last_stage, create_network

NAME, NODE = "MODEL.TORCHVISION.NAME", "MODEL.TORCHVISION"
#: Height and width that are no multiples of 32.
SIZE = (70, 101)


def same_network(name):
    """Torchvision's own network with the weights of ``backbone_of``."""
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None)


# What each network calls the modules whose outputs are the deepest maps of strides 4 to 32.
MAPS = {
    "mobilenet_v2": ("features.3", "features.6", "features.13", "features.17"),
    "mobilenet_v3_small": ("features.1", "features.3", "features.8", "features.11"),
    "efficientnet_b0": ("features.2", "features.3", "features.5", "features.7"),
    "convnext_tiny": ("features.2.0", "features.4.0", "features.6.0", "features.7"),
    "swin_t": ("features.1", "features.3", "features.5", "permute"),
    "resnet18": ("layer1", "layer2", "layer3", "layer4"),
    "regnet_y_400mf": tuple(f"trunk_output.block{i}" for i in (1, 2, 3, 4)),
}


@pytest.mark.parametrize("name", MAPS)
def test_maps_are_those_of_torchvisions_own_network(name):
    """Its forward, recorded by hooks, on an image whose size no stride divides."""
    theirs, backbone = same_network(name).eval(), backbone_of(name).eval()
    expected = {}
    for key, module in zip(RES, MAPS[name]):
        theirs.get_submodule(module).register_forward_hook(
            lambda module, given, output, key=key: expected.update({key: output})
        )
    x = torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        theirs(x)
        found = backbone(x)
    assert list(found) == list(RES)
    for i, (key, shape) in enumerate(backbone.output_shape().items()):
        wanted = expected[key]
        if name == "swin_t" and key != "res5":
            wanted = wanted.permute(0, 3, 1, 2)
        torch.testing.assert_close(found[key], wanted, rtol=0, atol=0)
        assert shape.stride == 4 * 2**i
        assert shape.channels == found[key].shape[1]
        # Rounded up or, by convolutions without padding, down.
        for side, whole in zip(found[key].shape[2:], SIZE):
            assert side in (whole // shape.stride, -(-whole // shape.stride))


@pytest.mark.parametrize(
    ("name", "tail"),
    [("mobilenet_v2", "features.18"), ("efficientnet_b0", "features.8"), ("mnasnet0_5", "layers")],
)
def test_last_map_is_behind_the_final_convolution(name, tail):
    theirs, backbone = same_network(name).eval(), backbone_of(name, features=["res5", "last"])
    found = {}
    theirs.get_submodule(tail).register_forward_hook(lambda *args: found.update(last=args[2]))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        theirs(x)
        maps = backbone.eval()(x)
    torch.testing.assert_close(maps["last"], found["last"], rtol=0, atol=0)
    assert maps["res5"].shape[1] < maps["last"].shape[1]


def test_a_network_without_a_final_convolution_has_one_deepest_map():
    backbone = backbone_of("resnet18", features=["res5", "last"]).eval()
    maps = backbone(torch.randn(1, 3, 64, 64))
    assert maps["res5"] is maps["last"]


def test_parameters_keep_their_names_and_unused_ones_are_left_out():
    theirs = mobilenet_v2(weights=None).state_dict()
    ours = backbone_of("mobilenet_v2").state_dict()
    assert ours.keys() < theirs.keys()
    left_out = {name.split(".")[1] for name in theirs.keys() - ours.keys() if "features" in name}
    assert left_out == {"18"}


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_large"])
def test_width_multiplier_is_the_networks_own(name):
    channels = {
        width: [
            shape.channels
            for shape in backbone_of(name, f"{NODE}.WIDTH_MULTIPLIER", width)
            .output_shape()
            .values()
        ]
        for width in (0.5, 1.0)
    }
    ours = find_layers(torchvision.models.get_model(name, weights=None, width_mult=0.5))
    assert {layer.channels for layer in ours} >= set(channels[0.5])
    assert all(half <= 0.7 * whole for half, whole in zip(channels[0.5], channels[1.0]))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "convnext_tiny", "swin_t"])
def test_pyramid_has_levels_of_strides_4_to_64_for_images_of_any_size(name):
    fpn = backbone_of(name, builder="build_torchvision_fpn_backbone").eval()
    assert fpn.size_divisibility == 32
    assert fpn.output_shape() == {
        f"p{i}": ShapeSpec(channels=8, stride=2**i) for i in (2, 3, 4, 5, 6)
    }
    with torch.no_grad():
        levels = fpn(torch.randn(1, 3, 96, 128))
    assert [tuple(x.shape[2:]) for x in levels.values()] == [
        (96 // s, 128 // s) if s < 64 else (2, 2) for s in (4, 8, 16, 32, 64)
    ]


def test_pyramid_of_retinanet_makes_p6_from_the_deepest_map():
    builder = "build_retinanet_torchvision_fpn_backbone"
    fpn = backbone_of("mobilenet_v2", builder=builder, features=["res3", "res4", "last"]).eval()
    assert list(fpn.output_shape()) == ["p3", "p4", "p5", "p6", "p7"]
    assert fpn.top_block.p6.in_channels == 1280
    with torch.no_grad():
        assert fpn(torch.randn(1, 3, 64, 64))["p7"].shape == (1, 8, 1, 1)


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("mobilenet_v2", "features"),
        ("convnext_tiny", "features"),
        ("swin_t", "permute"),
        ("resnet18", "layer4"),
    ],
)
def test_c4_and_last_stage_together_are_the_network(name, end):
    theirs = same_network(name).eval()
    cfg = cfg_of(name, "MODEL.ROI_HEADS.IN_FEATURES", ["res4"], features=["res4"])
    backbone = backbone_of(name, features=["res4"]).eval()
    torch.manual_seed(0)
    stage, channels = build_last_stage(cfg)
    assert not {*backbone.state_dict()} & {*stage.state_dict()}
    expected = []
    theirs.get_submodule(end).register_forward_hook(lambda *args: expected.append(args[2]))
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        theirs(x)
        found = stage.eval()(backbone(x)["res4"])
    torch.testing.assert_close(found, expected[0], rtol=0, atol=0)
    assert found.shape[1] == channels


def test_out_norm_is_a_layer_norm_over_channels():
    backbone = backbone_of("swin_t", f"{NODE}.OUT_NORM", True).eval()
    plain = backbone_of("swin_t").eval()
    plain.load_state_dict(backbone.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        normed, maps = backbone(x), plain(x)
    for name, value in maps.items():
        mean = value.double().mean(dim=1, keepdim=True)
        var = value.double().var(dim=1, keepdim=True, unbiased=False)
        expected = (value.double() - mean) / (var + 1e-5).sqrt()
        torch.testing.assert_close(normed[name].double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_small"])
def test_frozen_norm_computes_what_batch_norm_does_in_a_test(name, monkeypatch):
    """MobileNetV3's have an epsilon of their own."""
    created = create_network(name)
    random_statistics(created)
    state = created.state_dict()

    def create(*args):
        network = torchvision.models.get_model(name, weights=None)
        network.load_state_dict(state)
        return network

    monkeypatch.setattr("kd_search.modeling.backbones.torchvision_backbones.create_network", create)
    plain, frozen = backbone_of(name).eval(), backbone_of(name, f"{NODE}.NORM", "FrozenBN").train()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found, expected = frozen(x), plain(x)
    for key in RES:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-4)


def test_other_norms_are_detectron2s():
    cfg = cfg_of("resnet18", f"{NODE}.NORM", "GN", "MODEL.ROI_HEADS.IN_FEATURES", ["res4"])
    stage, _ = build_last_stage(cfg)
    norms = [m for m in stage.modules() if isinstance(m, (nn.GroupNorm, nn.BatchNorm2d))]
    assert len(norms) == 5 and {type(m) for m in norms} == {nn.GroupNorm}
    group = backbone_of("resnet18", f"{NODE}.NORM", "GN")
    norms = [m for m in group.modules() if isinstance(m, (nn.GroupNorm, nn.BatchNorm2d))]
    assert len(norms) == 20 and {type(m) for m in norms} == {nn.GroupNorm}
    synced = backbone_of("mobilenet_v2", f"{NODE}.NORM", "SyncBN")
    norms = [m for m in synced.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert {type(m) for m in norms} == {nn.SyncBatchNorm}
    swin = backbone_of("swin_t", f"{NODE}.NORM", "FrozenBN")
    assert any(isinstance(m, nn.LayerNorm) for m in swin.modules())


@pytest.mark.parametrize(
    ("name", "freeze_at", "trained"),
    [
        ("mobilenet_v2", 0, "features.0."),
        ("mobilenet_v2", 1, "features.2."),
        ("mobilenet_v2", 2, "features.4."),
        ("mobilenet_v2", 5, None),
        ("resnet18", 1, "layer1."),
        ("resnet18", 2, "layer2."),
        ("swin_t", 1, "features.1."),
    ],
)
def test_first_stages_are_frozen_as_detectron2s(name, freeze_at, trained):
    """The stem, then res2, ...: no gradient, and statistics that do not change."""
    backbone = backbone_of(name, "MODEL.BACKBONE.FREEZE_AT", freeze_at).train()
    names = [n for n, p in backbone.named_parameters() if p.requires_grad]
    assert names[0].startswith(trained) if trained else not names
    frozen = [n for n, m in backbone.named_modules() if isinstance(m, FrozenBatchNorm2d)]
    kept = [n for n, m in backbone.named_modules() if isinstance(m, nn.BatchNorm2d)]
    order = [n for n, _ in backbone.named_modules()]
    if frozen and kept:
        assert order.index(frozen[-1]) < order.index(kept[0])
    if name == "mobilenet_v2":
        assert bool(frozen) == (freeze_at > 0) and bool(kept) == (freeze_at < 5)
    before = {n: b.clone() for n, b in backbone.named_buffers()}
    backbone(torch.randn(2, 3, 64, 64))
    changed = {n for n, b in backbone.named_buffers() if not torch.equal(b, before[n])}
    assert all(n.startswith(tuple(kept)) for n in changed) and bool(changed) == bool(kept)


NETWORKS = {
    "build_densenet121_backbone": (densenet121, 1024),
    "build_mobilenet_v2_backbone": (mobilenet_v2, 1280),
}


def reid_network(name, *overrides):
    torch.manual_seed(0)
    feature = ("MODEL.REID_NETWORK.FEATURE", "last")
    return build_model(reid_cfg("MODEL.BACKBONE.NAME", name, *feature, *overrides))


@pytest.mark.parametrize("name", NETWORKS)
def test_named_backbones_are_torchvisions_networks(name):
    build, channels = NETWORKS[name]
    backbone = reid_network(name).backbone.eval()
    torch.manual_seed(0)
    theirs = build(weights=None).eval()
    x = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        found, expected = backbone(x)["last"], theirs.features(x)
    expected = expected.relu() if "densenet" in name else expected
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert backbone.output_shape() == {"last": ShapeSpec(channels=channels, stride=32)}
    assert backbone.state_dict().keys() == {
        key for key in theirs.state_dict() if key.startswith("features.")
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_last_stage_keeps_its_resolution_and_both_signs(name):
    model = reid_network(name, f"{NODE}.LAST_STRIDE", 1, f"{NODE}.FINAL_ACTIVATION", False).eval()
    with torch.no_grad():
        x = model.backbone(torch.randn(2, 3, 64, 32))["last"]
        (embedding,) = model([{"frames": torch.zeros(2, 3, 64, 32)}])
    assert x.shape[2:] == (4, 2)
    assert model.backbone.output_shape()["last"].stride == 16
    assert x.min() < 0 < x.max()
    assert embedding["embedding"].shape == (NETWORKS[name][1],)


def test_last_stride_of_a_network_keeps_the_name_of_the_stage():
    backbone = backbone_of("resnet18", f"{NODE}.LAST_STRIDE", 1, features=["res4", "res5"])
    assert [s.stride for s in backbone.output_shape().values()] == [16, 16]
    maps = backbone.eval()(torch.randn(1, 3, 64, 64))
    assert maps["res5"].shape == (1, 512, 4, 4)


def test_every_weight_of_mobilenet_is_trained():
    model = reid_network("build_mobilenet_v2_backbone")
    generator = torch.Generator().manual_seed(0)
    batch = [
        {"frames": 255 * torch.rand(1, 3, 64, 32, generator=generator), "person_id": i}
        for i in (0, 0, 1, 1)
    ]
    sum(model(batch).values()).backward()
    assert all(p.grad is not None for p in model.backbone.parameters())


@pytest.mark.parametrize(
    ("name", "overrides", "features", "words"),
    [
        ("mobilenet_v9", (), RES, (NAME, "mobilenet_v9", "mobilenet_v2")),
        ("vit_b_16", (), RES, (NAME, "vit_b_16", "any size")),
        ("alexnet", (), RES, (NAME, "alexnet", "strides")),
        ("mobilenet_v2", (), [], (f"{NODE}.OUT_FEATURES",)),
        ("mobilenet_v2", (), ["res7"], (NAME, "res7", "res5, last")),
        ("mobilenet_v2", (f"{NODE}.LAST_STRIDE", 3), RES, (f"{NODE}.LAST_STRIDE 3",)),
        ("swin_t", (f"{NODE}.LAST_STRIDE", 1), RES, (f"{NODE}.LAST_STRIDE", "swin_t")),
        ("resnet18", (f"{NODE}.FINAL_ACTIVATION", False), RES, ("FINAL_ACTIVATION", "BatchNorm2d")),
        ("resnet18", (f"{NODE}.WIDTH_MULTIPLIER", 0.5), RES, (f"{NODE}.WIDTH_MULTIPLIER 0.5",)),
        ("mobilenet_v2", (f"{NODE}.NORM", "GN"), RES, (f"{NODE}.NORM 'GN'", "16 channels")),
        ("mobilenet_v2", (f"{NODE}.NORM", "XN"), RES, (f"{NODE}.NORM 'XN'",)),
        ("mobilenet_v2", ("MODEL.PIXEL_MEAN", [1.0]), RES, ("MODEL.PIXEL_MEAN", "3 channels")),
    ],
)
def test_mistakes_are_named_in_one_line(name, overrides, features, words):
    with pytest.raises(ValueError) as error:
        backbone_of(name, *overrides, features=features)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_reid_network_names_a_map_that_its_backbone_does_not_have():
    with pytest.raises(ValueError, match=r"MODEL.REID_NETWORK.FEATURE 'res5' .*'last'"):
        build_model(reid_cfg("MODEL.BACKBONE.NAME", "build_mobilenet_v2_backbone"))


def test_pyramid_of_strides_that_do_not_double_is_refused():
    with pytest.raises(ValueError, match=r"MODEL.FPN.IN_FEATURES .*mobilenet_v2 .*\[4, 16\]"):
        backbone_of(
            "mobilenet_v2", builder="build_torchvision_fpn_backbone", features=["res2", "res4"]
        )


def test_regions_need_layers_behind_their_map():
    cfg = cfg_of("resnet18", "MODEL.ROI_HEADS.IN_FEATURES", ["res5"])
    with pytest.raises(ValueError, match="MODEL.ROI_HEADS.IN_FEATURES.*resnet18.*'res5'"):
        build_last_stage(cfg)


@pytest.mark.parametrize("name", ["mobilenet_v2", "regnet_y_400mf", "squeezenet1_1"])
def test_table_of_the_page_is_what_its_command_finds(name):
    import make_backbone_table as table

    assert f"\n{table.row(name)}\n" in table.TARGET.read_text()


class Branching(nn.Module):
    """Its second half does not take the output of the first."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.second = nn.Conv2d(3, 8, 3, stride=8, padding=1)

    def forward(self, x):
        return self.first(x), self.second(x)


def test_only_layers_in_a_row_are_found():
    network = Branching().train()
    (layer,) = find_layers(nn.Sequential(network.first))
    assert (layer.name, layer.channels, layer.stride, layer.stage) == ("0", 8, 4, "stem")
    with pytest.raises(ValueError):
        ChainBackbone(network, find_layers(network), ["res3"])
    assert network.training
