"""kd-search release: a folder that others can check and use."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from trained import SIZE, exported_network

from kd_search import cli
from kd_search.cli.release import model_card
from kd_search.export.gate_pictures import encoded, made_scene
from kd_search.runtime.manifest import manifest_path, read_manifest, update_manifest
from kd_search.utils.files import write_json


def results_of(folder):
    """The results file of an evaluation, with one metric and its interval."""
    folder.mkdir()
    path = folder / "person_search_results.json"
    document = {
        "dataset": "own_test",
        "protocol": {"gallery": "all"},
        "metrics": {"person_search": {"mAP": 41.25, "queries": 7}, "detection": {"AP": None}},
        "intervals": {"mAP": [37.5, 44.0]},
        "queries": [],
    }
    write_json(path, document, sealed=True)
    return path


CALIBRATION = {
    **{"dataset": "held_out", "num_detections": 503, "num_people": 78},
    "note": "those of the test set",
    "points": [
        {
            **{"false_match_rate": 0.01, "threshold": 0.716, "true_match_rate": 0.338},
            **{"threshold_interval": [0.681, 0.755], "reason": ""},
        },
        {
            **{"false_match_rate": 0.0001, "threshold": None, "true_match_rate": None},
            **{"threshold_interval": None, "reason": "300,000 are needed"},
        },
    ],
}


def test_a_release_can_be_checked_read_and_run(tmp_path, capsys):
    model, picture = tmp_path / "student.onnx", tmp_path / "scene.png"
    for path, name in ((exported_network(), model), (manifest_path(exported_network()), "")):
        shutil.copyfile(path, name or manifest_path(model))
    pixels, _ = made_scene(np.random.default_rng(7), SIZE, 3)
    picture.write_bytes(encoded(pixels, picture.name))
    update_manifest(manifest_path(model), calibration=CALIBRATION)
    results = results_of(tmp_path / "results")
    options = ["--results", str(results), "--data-licence", "CC BY 4.0", "--name", "Small student"]
    folder = tmp_path / "release"
    assert cli.main(["release", str(model), "--output", str(folder), *options]) == 0
    assert not list(tmp_path.glob(".release-*"))
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder)
    assert done.returncode == 0
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    for text in ("# Small student", "CC BY 4.0", "| 41.2 | 37.5 to 44.0 |", "0.681 to 0.755"):
        assert text in card
    assert "300,000 are needed" in card and "78 people, those of the test set." in card
    # The example needs the package without torch, not only what its runtime requires.
    assert "pip install --no-deps kd_search-" in card and "onnxruntime numpy Pillow" in card
    box = ["10", "10", "40", "80"]
    done = subprocess.run(
        [sys.executable, str(folder / "example.py"), str(picture), *box, str(picture)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[0]) <= 1.0001

    # A second time: the folder is not overwritten.
    capsys.readouterr()
    assert cli.main(["release", str(model), "--output", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--output" in line and str(folder) in line
    model.write_bytes(model.read_bytes()[:-1])
    assert cli.main(["release", str(model), "--output", str(tmp_path / "other")]) == 2
    assert str(model) in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_the_card_of_an_int8_file_has_what_it_lost():
    manifest = read_manifest(manifest_path(exported_network()))
    int8 = {"dataset": "own_test", "float32": {"mAP": 41.25, "top1": 60.0}}
    int8 |= {"int8": {"mAP": 39.75, "top1": 61.0}}
    card = model_card("x", {**manifest, "weights_type": "int8", "int8": int8}, None, None)
    assert "| weights | int8 |" in card
    assert "own_test" in card and card.index("39.8") < card.index("41.2")
    assert "8-bit" not in model_card("x", manifest, None, None)


@pytest.mark.parametrize("name", ["nowhere.onnx"])
def test_a_model_without_its_manifest_is_one_line(tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["release", name, "--output", "out"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("release: ") and f"{name}.json" in line
