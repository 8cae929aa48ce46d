"""Weights of classification networks: whence they come, what is refused, what is recorded."""

import enum
import hashlib
import logging
import pickle
import re

import numpy as np
import pytest
import torch
import torchvision
from detectron2.modeling import build_backbone
from detectron2.modeling.roi_heads import build_roi_heads
from PIL import Image
from torch import nn
from torchvision.models import densenet121, mobilenet_v2, mobilenet_v3_small

import kd_search.modeling.backbones.classification_weights as weights_module
from kd_search.checkpoint import PersonSearchCheckpointer, load_trained
from kd_search.config import get_cfg

WEIGHTS = "MODEL.TORCHVISION.WEIGHTS"
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
RGB = ("INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", MEAN, "MODEL.PIXEL_STD", STD)


def cfg_of(name, *overrides, builder="build_torchvision_backbone"):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = builder
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.TORCHVISION.NAME = name
    cfg.MODEL.TORCHVISION.OUT_FEATURES = ["last"]
    cfg.merge_from_list([*RGB, *overrides])
    return cfg


def backbone_of(name, *overrides, **kwargs):
    torch.manual_seed(5)
    return build_backbone(cfg_of(name, *overrides, **kwargs))


@pytest.fixture
def saved(tmp_path):
    """MobileNetV3-small of torchvision with random weights, and its file."""
    torch.manual_seed(1)
    network = mobilenet_v3_small(weights=None)
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    return network, path


def equal(backbone, network):
    theirs = network.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in backbone.state_dict().items())


def test_a_file_of_the_whole_network_is_loaded_and_recorded(saved, caplog):
    network, path = saved
    with caplog.at_level(logging.INFO, "kd_search"):
        backbone = backbone_of("mobilenet_v3_small", WEIGHTS, str(path))
    assert equal(backbone, network)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert backbone.initial_weights == {"file": "weights.pth", "sha256": sha256}
    assert sha256 in caplog.text and str(path) in caplog.text


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_a_checkpoint_around_the_weights_and_another_classifier_do_not_matter(tmp_path, wrapper):
    network = mobilenet_v3_small(weights=None, num_classes=7)
    torch.save({wrapper: network.state_dict(), "epoch": 3}, tmp_path / "w.pth")
    assert equal(backbone_of("mobilenet_v3_small", WEIGHTS, str(tmp_path / "w.pth")), network)


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_random_start_of_training_is_said_in_a_warning(tmp_path, caplog):
    model = nn.ModuleDict({"backbone": backbone_of("mobilenet_v3_small")})
    assert model["backbone"].initial_weights == {}
    assert warnings_of(caplog) == []
    PersonSearchCheckpointer(model, str(tmp_path)).resume_or_load("")
    (line,) = warnings_of(caplog)
    assert "backbone" in line and "random" in line and WEIGHTS in line


def test_training_without_the_file_is_refused(tmp_path):
    model = nn.ModuleDict({"backbone": backbone_of("mobilenet_v3_small", WEIGHTS, "no/such.pth")})
    with pytest.raises(FileNotFoundError, match=f"{WEIGHTS}: no/such.pth") as error:
        PersonSearchCheckpointer(model, str(tmp_path)).resume_or_load("")
    assert "\n" not in str(error.value)


def test_weights_of_the_whole_network_replace_a_missing_file(tmp_path, saved, caplog):
    network, path = saved
    whole = {f"backbone.{key}": value for key, value in network.state_dict().items()}
    torch.save({"model": whole}, tmp_path / "all.pth")
    model = nn.ModuleDict({"backbone": backbone_of("mobilenet_v3_small", WEIGHTS, "no/such.pth")})
    assert "no/such.pth" in warnings_of(caplog)[0]
    load_trained(model, str(tmp_path / "all.pth"))
    assert equal(model["backbone"], network)
    checkpointer = PersonSearchCheckpointer(model, str(tmp_path / "run"))
    checkpointer.save("model_0000001", iteration=1)
    assert "initial_weights" not in torch.load(tmp_path / "run" / "model_0000001.pth")
    # So does the checkpoint of a training that goes on.
    PersonSearchCheckpointer(model, str(tmp_path / "run")).resume_or_load("")


@pytest.mark.parametrize(
    "overrides",
    [
        ("INPUT.FORMAT", "BGR"),
        ("MODEL.PIXEL_MEAN", MEAN[::-1]),
        ("MODEL.PIXEL_MEAN", [0.485, 0.456, 0.406]),
        ("MODEL.PIXEL_STD", [1.0, 1.0, 1.0]),
    ],
)
def test_images_that_do_not_fit_the_weights_are_refused(saved, overrides):
    with pytest.raises(ValueError, match=r"INPUT.FORMAT RGB, MODEL.PIXEL_MEAN \[123.675") as error:
        backbone_of("mobilenet_v3_small", WEIGHTS, str(saved[1]), *overrides)
    assert WEIGHTS in str(error.value) and "\n" not in str(error.value)
    # Without weights, any images do.
    backbone_of("mobilenet_v3_small", *overrides)


def test_input_of_the_weights_is_read_from_torchvision(tmp_path):
    """EfficientNetV2-L was trained with other values than most."""
    torch.save({}, tmp_path / "w.pth")
    network = nn.Linear(1, 1)
    cfg = cfg_of("efficientnet_v2_l", WEIGHTS, str(tmp_path / "w.pth"))
    with pytest.raises(ValueError, match=r"MODEL.PIXEL_MEAN \[127.5, 127.5, 127.5\]"):
        weights_module.load_weights(network, ["features.0"], cfg)


def test_weights_of_timm_are_a_file_with_timms_names_and_images(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(1)
    network = timm.create_model("tf_mobilenetv3_small_minimal_100")
    path = tmp_path / "w.pth"
    torch.save(network.state_dict(), path)
    mean = [round(255 * x, 3) for x in network.pretrained_cfg["mean"]]
    std = [round(255 * x, 3) for x in network.pretrained_cfg["std"]]
    assert mean != MEAN
    name = "timm:tf_mobilenetv3_small_minimal_100"
    with pytest.raises(ValueError, match=rf"MODEL.PIXEL_MEAN \[{mean[0]}"):
        backbone_of(name, WEIGHTS, str(path))
    images = ("MODEL.PIXEL_MEAN", mean, "MODEL.PIXEL_STD", std)
    assert equal(backbone_of(name, WEIGHTS, str(path), *images), network)
    missing = backbone_of(name, WEIGHTS, "IMAGENET1K_V1", *images).initial_weights["missing"]
    assert f"{WEIGHTS}: IMAGENET1K_V1" in missing


class Known(enum.Enum):
    V1 = "net.pth"

    @property
    def url(self):
        return f"https://example.org/models/{self.value}"

    def transforms(self):
        return torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()


def test_names_are_files_of_torchvisions_cache(saved, tmp_path, monkeypatch):
    network, path = saved
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(weights_module, "_known_weights", lambda name: dict(Known.__members__))
    folder = tmp_path / "hub" / "checkpoints"
    missing = backbone_of("mobilenet_v3_small", WEIGHTS, "V1").initial_weights["missing"]
    assert re.match(f"{WEIGHTS}: V1 .*example.org.*net.pth.*{folder}", missing)
    folder.mkdir(parents=True)
    (folder / "net.pth").write_bytes(path.read_bytes())
    assert equal(backbone_of("mobilenet_v3_small", WEIGHTS, "V1"), network)


def test_torchvisions_own_names_are_known(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    missing = backbone_of("mobilenet_v2", WEIGHTS, "IMAGENET1K_V2").initial_weights["missing"]
    assert re.search("IMAGENET1K_V2 .*mobilenet_v2-.*pth", missing)


def test_old_names_of_densenets_are_known(tmp_path):
    torch.manual_seed(1)
    network = densenet121(weights=None)
    # torchvision's file is older than the counters, and has dots in the names of layers.
    state = {}
    for key, value in network.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            for new, old in (("norm1", "norm.1"), ("conv2", "conv.2")):
                key = key.replace(f".{new}.", f".{old}.") if "denselayer" in key else key
            state[key] = value
    assert any("denselayer1.norm.1" in key for key in state)
    torch.save(state, tmp_path / "w.pth")
    backbone = backbone_of("densenet121", WEIGHTS, str(tmp_path / "w.pth"))
    assert equal(backbone, network)


def test_files_are_compared_with_the_hash_of_their_name(saved):
    network, path = saved
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    named = path.with_name(f"net-{digest}.pth")
    named.write_bytes(path.read_bytes())
    assert equal(backbone_of("mobilenet_v3_small", WEIGHTS, str(named)), network)
    named.write_bytes(path.read_bytes() + b"0")
    with pytest.raises(ValueError, match=f"{WEIGHTS}: {named} .*SHA-256"):
        backbone_of("mobilenet_v3_small", WEIGHTS, str(named))


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a file was executed",)


FIRST = "features.0.0.weight"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda state: {**state, FIRST: torch.zeros(4)}, FIRST),
        (lambda state: {k: v for k, v in state.items() if k != FIRST}, FIRST),
        (lambda state: {**state, "features.99.weight": torch.zeros(3)}, "features.99.weight"),
        (lambda state: mobilenet_v2(weights=None).state_dict(), "features"),
        (lambda state: {**state, FIRST: "text"}, ""),
        (lambda state: [1, 2], "list"),
        (lambda state: Trap(), ""),
    ],
    ids=["shape", "missing", "unexpected", "other network", "no tensor", "list", "code"],
)
def test_other_files_are_refused_in_one_line(saved, change, word):
    network, path = saved
    content = change(network.state_dict())
    if isinstance(content, Trap):
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=f"{WEIGHTS}: {path} .*{word}") as error:
        backbone_of("mobilenet_v3_small", WEIGHTS, str(path))
    assert "\n" not in str(error.value)


def test_the_last_stage_of_c4_has_its_weights_too(saved):
    network, path = saved
    cfg = cfg_of("mobilenet_v3_small", WEIGHTS, str(path))
    cfg.MODEL.TORCHVISION.OUT_FEATURES = ["res4"]
    cfg.MODEL.ROI_HEADS.NAME = "DistillableRes5ROIHeads"
    shape = build_backbone(cfg).output_shape()
    heads = build_roi_heads(cfg, shape)
    assert equal(heads.res5, network) and len(heads.res5.state_dict()) > 0


def test_checkpoints_record_the_file_and_keep_the_record(saved, tmp_path):
    path = saved[1]
    model = nn.ModuleDict({"backbone": backbone_of("mobilenet_v3_small", WEIGHTS, str(path))})
    checkpointer = PersonSearchCheckpointer(model, str(tmp_path / "run"))
    checkpointer.save("model_0000001", iteration=1)
    record = {"backbone": model["backbone"].initial_weights}
    assert torch.load(tmp_path / "run" / "model_0000001.pth")["initial_weights"] == record
    # Resumed without the file, as on another machine.
    other = nn.ModuleDict({"backbone": backbone_of("mobilenet_v3_small")})
    resumed = PersonSearchCheckpointer(other, str(tmp_path / "run"))
    resumed.resume_or_load("")
    resumed.save("model_0000002", iteration=2)
    assert torch.load(tmp_path / "run" / "model_0000002.pth")["initial_weights"] == record
    # A random start has none.
    fresh = PersonSearchCheckpointer(other, str(tmp_path / "fresh"))
    fresh.save("model_0000001", iteration=1)
    assert "initial_weights" not in torch.load(tmp_path / "fresh" / "model_0000001.pth")


def test_a_checkpoint_with_a_corrupt_record_is_refused(tmp_path):
    model = nn.Linear(2, 2)
    content = {"model": model.state_dict(), "iteration": 1, "initial_weights": {"a": 3}}
    torch.save(content, tmp_path / "model_0000001.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    with pytest.raises(ValueError, match="model_0000001.pth.*initial_weights"):
        PersonSearchCheckpointer(model, str(tmp_path)).resume_or_load("")


def pictures(folder, count=6):
    """(N, 3, H, W) RGB images in 0..255, of a size that 32 does not divide."""
    files = sorted(folder.rglob("*.jpg"))[:count]
    assert len(files) == count
    images = [np.asarray(Image.open(f).convert("RGB").resize((212, 158))) for f in files]
    return torch.as_tensor(np.stack(images)).permute(0, 3, 1, 2).float()


def test_imagenet_weights_give_torchvisions_features_of_real_pictures(real_data):
    """Through our normalisation in 0..255 and the bottom-up network of a pyramid, on frames."""
    path = real_data("weights") / "mobilenet_v2_imagenet_features.pth"
    images = pictures(real_data("coco128"))
    theirs = mobilenet_v2(weights=None).eval()
    theirs.load_state_dict(torch.load(path, weights_only=True), strict=False)
    fpn = backbone_of(
        "mobilenet_v2",
        *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "last"], WEIGHTS, str(path)),
        builder="build_torchvision_fpn_backbone",
    ).eval()
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    unit = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.no_grad():
        found = fpn.bottom_up((images - mean) / std)
        expected = theirs.features(unit(images / 255))
        early = theirs.features[:14](unit(images / 255))
    torch.testing.assert_close(found["last"], expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found["res4"], early, rtol=1e-3, atol=1e-3)
    # They are no random weights: pooled features tell the pictures apart.
    pooled = nn.functional.normalize(expected.mean(dim=(2, 3)))
    assert (pooled @ pooled.T)[~torch.eye(len(pooled), dtype=torch.bool)].max() < 0.95
