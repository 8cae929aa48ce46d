"""kd-search export: formats and their options."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image
from trained import exported_network, trained_network

from kd_search.cli import export
from kd_search.export import model_file
from kd_search.runtime import PersonSearcher
from kd_search.utils.files import file_sha256


@pytest.fixture
def arguments(tmp_path):
    """Config file and checkpoint of the trained network, as arguments."""
    cfg, model = trained_network("fpn")
    config, weights = tmp_path / "config.yaml", tmp_path / "model_final.pth"
    config.write_text(cfg.dump())
    torch.save({"model": model.state_dict(), "iteration": 9}, weights)
    return ["--config-file", str(config), "--weights", str(weights)]


@pytest.fixture
def quick(monkeypatch):
    """Exports take the graph that was made before."""
    content = exported_network().read_bytes()
    monkeypatch.setattr(model_file, "to_onnx", lambda *_: content)


@pytest.fixture
def street(tmp_path):
    """A registered test set of two pictures."""
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 255, (90, 120, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"street{i}.png")
    dicts = [{"file_name": str(tmp_path / f"street{i}.png"), "image_id": i} for i in range(2)]
    DatasetCatalog.register("export_formats_street", lambda: dicts)
    yield "export_formats_street"
    DatasetCatalog.remove("export_formats_street")


def test_an_onnx_file_by_its_ending(arguments, quick, street, tmp_path, capsys):
    output = tmp_path / "out" / "student.onnx"
    opts = ["DATASETS.TEST", f"('{street}',)"]
    assert export.main([*arguments, "--output", str(output), "--check-images", "2", *opts]) == 0
    manifest = PersonSearcher.load(output).manifest
    assert manifest["source_sha256"] == file_sha256(arguments[3])
    rows = [row["picture"] for row in manifest["parity"]["rows"]]
    assert rows[-2:] == ["street0.png", "street1.png"] and len(rows) >= 14
    printed = capsys.readouterr().out
    assert "street1.png" in printed and f"wrote {output}" in printed
    assert "largest difference" in printed and "allowed: boxes 0.01" in printed


def test_the_test_set_may_be_absent(arguments, quick, tmp_path, capsys):
    output = tmp_path / "student.onnx"
    opts = ["DATASETS.TEST", "('not_there',)"]
    assert export.main([*arguments, "--output", str(output), *opts]) == 0
    assert "synthetic images only" in capsys.readouterr().out
    assert export.main([*arguments, "--output", str(output), "--check-images", "3", *opts]) == 2
    assert "not_there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("a.onnx", ["--opset", "11"], ("--opset 11", "16", "RoiAlign")),
        ("a.ts", ["--opset", "18"], ("--opset", "torchscript")),
        ("a.pt2", ["--half-weights"], ("--half-weights", "pt2")),
        ("a.onnx", ["--opset", "17"], ("--opset 17", "18 and later")),
        ("a.pt2", ["--int8", "--calibration-pictures", "."], ("--int8", "pt2")),
        ("a.onnx", ["--int8"], ("--int8", "--calibration-pictures FOLDER")),
        ("a.onnx", ["--calibration-pictures", "."], ("--int8", "--calibration-pictures FOLDER")),
        ("a.onnx", ["--int8", "--calibration-pictures", "gone"], ("gone", "no such")),
        (
            "a.onnx",
            ["--int8", "--half-weights", "--calibration-pictures", "."],
            ("--half-weights", "--int8"),
        ),
        ("a.onnx", ["--tolerance", "1"], ("--tolerance", "onnx")),
        ("a.onnx", ["--device", "cuda"], ("--device", "onnx")),
        ("a.pt2", ["--format", "torchscript", "--opset", "18"], ("--opset", "torchscript")),
    ],
)
def test_options_of_another_format_are_one_line(arguments, tmp_path, capsys, name, options, words):
    output = tmp_path / name
    assert export.main([*arguments, "--output", str(output), *options]) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0 and all(word in error for word in words)
    assert not output.exists()
