"""Exported files: what is in them, and that nothing is written without the gate."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import onnx
import pytest
import torch
from detectron2.modeling import build_model
from tiny_reid import reid_cfg
from trained import exported_network, trained_network

from kd_search.data.reid.mapper import CropMapper
from kd_search.export import ExportParityError, model_file
from kd_search.export.gate import HALF_TOLERANCE, run_training_stack
from kd_search.export.gate_pictures import write_gate_pictures
from kd_search.export.graph import check_opset, store_halves
from kd_search.export.model_file import export_model
from kd_search.runtime import PersonSearcher, ReIDEmbedder, manifest_path, read_manifest
from kd_search.runtime.onnx_file import read_header


@pytest.fixture(scope="module")
def manifest():
    return read_manifest(manifest_path(exported_network()))


def test_the_manifest_describes_the_network(manifest):
    cfg, _ = trained_network("fpn")
    content = exported_network().read_bytes()
    expected = {
        "network": "person_search",
        "file": "fpn.onnx",
        "file_format": "onnx",
        "file_bytes": len(content),
        "opset": 18,
        "weights_type": "float32",
        "input_format": "BGR",
        "min_size": 96,
        "max_size": 192,
        "size_divisibility": 32,
        "max_pixels": cfg.INPUT.MAX_IMAGE_PIXELS,
        "score_threshold": 0.3,
        "nms_threshold": 0.4,
        "max_detections": 30,
        "search_score_threshold": 0.5,
        "embedding_dim": 8,
        "classes": ["person"],
        "training_sets": list(cfg.DATASETS.TRAIN),
        "config": cfg.dump(),
        "calibration": None,
    }
    assert {key: manifest[key] for key in expected} == expected
    assert set(manifest["versions"]) == {"kd_search", "torch", "torchvision", "detectron2"}


def test_the_manifest_has_the_figures_of_the_gate(manifest):
    parity = manifest["parity"]
    assert parity["pictures"] >= 12 and parity["people"] >= 20
    assert parity["pictures_without_people"] >= 1
    assert parity["tolerance"] == {"boxes": 1e-2, "scores": 1e-4, "embeddings": 1e-4}
    assert 0 < parity["max_difference"]["boxes"] <= 1e-2
    assert parity["max_difference"]["query_embeddings"] > 0


def test_the_file_has_a_copy_of_the_manifest(manifest):
    header = read_header(exported_network().read_bytes())
    inner = json.loads(header.metadata["kd_search"])
    assert inner == {k: v for k, v in manifest.items() if k in inner}
    assert set(manifest) - set(inner) == {"file", "file_sha256", "file_bytes", "calibration"}


def test_the_file_is_standard_onnx_without_paths_of_this_machine():
    model = onnx.load(exported_network())
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    names = {x.name for x in model.graph.input}, {x.name for x in model.graph.output}
    assert names == (
        {"image", "size", "query_boxes"},
        {"boxes", "scores", "embeddings", "valid", "query_embeddings"},
    )
    assert b".py" not in exported_network().read_bytes()


def test_only_the_finished_files_are_left():
    path = exported_network()
    # The folder has the weights of the tests' networks, and their locks, as well.
    files = {p.name for p in path.parent.iterdir() if p.is_file()}
    others = files - {"fpn.onnx", "fpn.onnx.json"}
    assert {name.rpartition(".")[2] for name in others} <= {"pth", "lock"}


@pytest.fixture
def quick(monkeypatch):
    """Exports take the graph that was made before."""
    content = exported_network().read_bytes()
    monkeypatch.setattr(model_file, "to_onnx", lambda *_: content)


def test_training_sets_and_source_are_recorded(quick, tmp_path):
    cfg, model = trained_network("fpn")
    cfg = cfg.clone()
    cfg.DATASETS.TRAIN = ("my_set",)
    made = export_model(model, tmp_path / "a.onnx", cfg=cfg, source_sha256="abc")
    assert made["training_sets"] == ["my_set"] and made["source_sha256"] == "abc"
    assert PersonSearcher.load(tmp_path / "a.onnx").manifest["source_sha256"] == "abc"


def test_the_manifest_has_no_paths_of_this_machine():
    cfg = trained_network("fpn")[0].clone()
    cfg.OUTPUT_DIR = "/home/me/student"
    cfg.DATASETS.PERSON_SEARCH_COCO = [["my_set", "/home/me/my_set.json", "/home/me/frames"]]
    shared = model_file.shared_config(cfg)
    assert "/home/me" not in shared.dump() and cfg.OUTPUT_DIR == "/home/me/student"
    assert shared.OUTPUT_DIR == "student"
    assert shared.DATASETS.PERSON_SEARCH_COCO == [["my_set", "my_set.json", "frames"]]
    shared.OUTPUT_DIR = cfg.OUTPUT_DIR
    shared.DATASETS.PERSON_SEARCH_COCO = cfg.DATASETS.PERSON_SEARCH_COCO
    assert shared.dump() == cfg.dump()


@pytest.mark.parametrize(
    "wrong",
    [{"input_format": "RGB"}, {"min_size": 97}, {"max_size": 150}],
    ids=("channels", "size", "limit"),
)
def test_a_file_with_other_preprocessing_does_not_get_its_name(quick, monkeypatch, tmp_path, wrong):
    keys = model_file._search_keys
    monkeypatch.setattr(model_file, "_search_keys", lambda *a: {**keys(*a), **wrong})
    cfg, model = trained_network("fpn")
    path = tmp_path / "student.onnx"
    path.write_bytes(b"an older file")
    with pytest.raises(ExportParityError, match="differs from the model in "):
        export_model(model, path, cfg=cfg)
    assert [p.name for p in tmp_path.iterdir()] == ["student.onnx"]
    assert path.read_bytes() == b"an older file"


def test_a_network_with_other_weights_does_not_pass(quick, tmp_path):
    cfg, model = trained_network("fpn")
    head = model.roi_heads.reid.head.linear
    try:
        with torch.no_grad():
            head.bias += 0.01
        with pytest.raises(ExportParityError, match="embeddings by"):
            export_model(model, tmp_path / "student.onnx", cfg=cfg)
    finally:
        with torch.no_grad():
            head.bias -= 0.01
    assert list(tmp_path.iterdir()) == []


def test_a_runtime_that_fails_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(model_file, "to_onnx", lambda *_: b"no model")
    cfg, model = trained_network("fpn")
    with pytest.raises(ExportParityError, match="not an ONNX file") as error:
        export_model(model, tmp_path / "student.onnx", cfg=cfg)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opset", [11, 15])
def test_old_opsets_are_refused_with_the_reason(opset):
    with pytest.raises(ValueError, match=rf"{opset}: RoiAlign .* 16 .*half-pixel"):
        check_opset(opset)
    check_opset(18)


@pytest.mark.parametrize("opset", [16, 17])
def test_opsets_that_cannot_be_made_are_refused_with_those_that_can(tmp_path, opset):
    with pytest.raises(ValueError, match=rf"--opset {opset}: .* 18 and later"):
        export_model(torch.nn.Identity(), tmp_path / "x.onnx", cfg=None, opset=opset)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'tflite' is none of onnx, pt2"):
        export_model(torch.nn.Identity(), tmp_path / "x", cfg=None, format="tflite")


def test_half_weights_halve_the_file(tmp_path, monkeypatch):
    single = exported_network()  # made here, if no test made it before

    def halved(_graph, _opset, half_weights):
        assert half_weights
        proto = onnx.load(single)
        store_halves(proto)
        return proto.SerializeToString()

    monkeypatch.setattr(model_file, "to_onnx", halved)
    cfg, model = trained_network("fpn")
    made = export_model(model, tmp_path / "half.onnx", cfg=cfg, half_weights=True)
    assert made["weights_type"] == "float16"
    assert made["file_bytes"] < 0.6 * single.stat().st_size
    assert made["parity"]["tolerance"] == HALF_TOLERANCE._asdict()
    assert made["parity"]["max_difference"]["embeddings"] > 0
    PersonSearcher.load(tmp_path / "half.onnx")


def test_a_torch_export_file_runs_without_detectron2(tmp_path):
    cfg, model = trained_network("fpn")
    path = tmp_path / "student.pt2"
    made = export_model(model, path, cfg=cfg, format="pt2")
    assert made["parity"]["max_difference"]["boxes"] <= 1e-4
    (tmp_path / "pictures").mkdir()
    pictures = write_gate_pictures(tmp_path / "pictures", 96)
    (expected,) = run_training_stack(model, cfg, [pictures[0]])
    program = f"""
        import json, sys
        for name in ("detectron2", "kd_search", "fvcore"):
            sys.modules[name] = None
        import numpy as np, torch, torchvision
        from PIL import Image
        extra = {{"manifest.json": ""}}
        net = torch.export.load({str(path)!r}, extra_files=extra).module()
        manifest = json.loads(extra["manifest.json"])
        assert manifest["least_side"] == {made["least_side"]}
        pixels = np.array(Image.open({pictures[0].file!r}))[:, :, ::-1].copy()
        image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
        size = torch.tensor(image.shape[1:])
        boxes, scores, embeddings, valid, _ = net(image, size, torch.zeros((0, 4)))
        print(json.dumps(scores[valid].tolist()))
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(expected.scores) > 0
    np.testing.assert_allclose(json.loads(done.stdout), expected.scores, atol=1e-4)


def test_c4_networks_are_exported(tmp_path):
    cfg, model = trained_network("c4")
    made = export_model(model, tmp_path / "c4.onnx", cfg=cfg)
    assert made["size_divisibility"] == 1
    assert made["parity"]["people"] >= 20 and made["parity"]["pictures_without_people"] >= 1


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_reid_networks_embed_batches_of_crops(tmp_path, form):
    torch.manual_seed(0)
    cfg = reid_cfg("REID_DATA.SIZE", [64, 32])
    model = build_model(cfg).eval()
    made = export_model(model, tmp_path / f"reid.{form}", cfg=cfg, format=form)
    assert (made["network"], made["crop_size"], made["embedding_dim"]) == ("reid", [64, 32], 128)
    assert made["parity"]["max_difference"]["query_embeddings"] <= 1e-4
    # The classifier of the training identities is not in the file.
    assert made["file_bytes"] < 4 * sum(p.numel() for p in model.parameters()) * 1.2
    if form == "onnx":
        picture = next(p for p in write_gate_pictures(tmp_path, 64) if p.boxes)
        boxes = picture.boxes * 20
        embedder = ReIDEmbedder.load(tmp_path / "reid.onnx", threads=1)
        found = embedder.embed([picture.file] * len(boxes), boxes)
        mapper = CropMapper(cfg, is_train=False)
        crops = torch.stack([mapper(picture.file, box) for box in picture.boxes])
        with torch.no_grad():
            theirs = model.embed(crops[:, None]).numpy()
        np.testing.assert_allclose(found[: len(theirs)], theirs, atol=1e-4 * abs(theirs).max())
        assert len(found) == len(boxes) and embedder.embed([]).shape == (0, 128)
        with pytest.raises(ValueError, match="1 pictures have 2 boxes"):
            embedder.embed([picture.file], [None, None])


def test_reid_networks_with_half_weights(tmp_path):
    torch.manual_seed(0)
    cfg = reid_cfg("REID_DATA.SIZE", [64, 32])
    model = build_model(cfg).eval()
    made = export_model(model, tmp_path / "half.onnx", cfg=cfg, half_weights=True)
    assert (made["network"], made["weights_type"]) == ("reid", "float16")
    assert 1e-7 < made["parity"]["max_difference"]["query_embeddings"] <= HALF_TOLERANCE.embeddings
    # Without the classifier of the training identities, which is not in the file.
    weights = sum(p.numel() for p in model.parameters()) - model.classifier.weight.numel()
    assert made["file_bytes"] < 4 * weights * 0.65
