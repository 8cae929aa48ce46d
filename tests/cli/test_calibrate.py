"""kd-search calibrate on arrays of a made set, and what searches say by its result."""

import json

import numpy as np
import pytest

from kd_search import cli
from kd_search.runtime.manifest import FORMAT, FORMAT_VERSION, manifest_path, read_manifest
from kd_search.runtime.verdict import verdict
from kd_search.utils.files import read_json, write_json

PEOPLE, EACH = 60, 6


@pytest.fixture
def arrays(tmp_path):
    """Every person in six images of ten people each, with embeddings around a centre."""
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(PEOPLE), EACH)
    images = (people // 10) * EACH + np.tile(np.arange(EACH), PEOPLE)
    boxes = np.stack([30 * (people % 10), 0 * people, 30 * (people % 10) + 20, 0 * people + 50], 1)
    vectors = rng.normal(size=(PEOPLE, 1, 24)) + 0.6 * rng.normal(size=(PEOPLE, EACH, 24))
    vectors = vectors.reshape(-1, 24)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [f"{i}.jpg" for i in range(images.max() + 1)]
    document = {
        "images": [
            {"id": i, "file_name": n, "width": 300, "height": 60} for i, n in enumerate(names)
        ],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [
            {
                **{"id": i, "image_id": int(image), "category_id": 1, "person_id": int(person)},
                "bbox": [int(box[0]), 0, 20, 50],
            }
            for i, (image, person, box) in enumerate(zip(images, people, boxes))
        ],
    }
    (tmp_path / "held_out.json").write_text(json.dumps(document))
    folder = tmp_path / "arrays"
    folder.mkdir()
    (folder / "images.txt").write_text("\n".join(names))
    np.save(folder / "image_index.npy", images)
    np.save(folder / "boxes.npy", boxes.astype(np.float32))
    np.save(folder / "scores.npy", np.full(len(people), 0.9, np.float32))
    np.save(folder / "embeddings.npy", vectors.astype(np.float32))
    np.save(folder / "query_embeddings.npy", np.zeros((0, 24), np.float32))
    return [str(folder), "--json", str(tmp_path / "held_out.json"), "--images", str(tmp_path)]


def manifest(path):
    values = dict.fromkeys(
        ("file", "file_sha256", "file_format", "weights_type", "weights_sha256", "config_sha256"),
        "",
    )
    write_json(
        path,
        {
            **values,
            **{"format": FORMAT, "version": FORMAT_VERSION, "network": "reid", "file_bytes": 1},
            **{"input_format": "RGB", "max_pixels": 1, "embedding_dim": 24, "classes": []},
            **{"training_sets": [], "source_sha256": "", "config": "", "versions": {}},
            **{"parity": None, "calibration": None, "crop_size": [8, 4]},
        },
        sealed=True,
    )


def test_thresholds_are_printed_written_and_drawn(arrays, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manifest(manifest_path("student.onnx"))
    options = ["--output", "out.json", "--plot", "roc.png", "--model", "student.onnx"]
    assert cli.main(["calibrate", *arrays, *options, "--resamples", "50", "--halves", "2"]) == 0
    printed = capsys.readouterr().out
    written = read_json("out.json", sealed=True)
    reached = [p["threshold"] is not None for p in written["points"]]
    # 63,900 comparisons: enough for one in 1,000.
    assert reached == [True, True, False] and "300,000 are needed" in printed
    for point in written["points"][:2]:
        low, high = point["threshold_interval"]
        assert low < point["threshold"] < high
        assert f"{point['threshold']:.3f}" in printed
    assert printed.count("on the others") >= 2
    kept = read_manifest(manifest_path("student.onnx"))["calibration"]
    assert kept == written
    assert verdict(kept, written["points"][1]["threshold"]) == "likely"
    assert verdict(kept, written["points"][0]["threshold"] - 0.01) == "unlikely"
    assert (tmp_path / "roc.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "options, message",
    [
        (["--model", "nowhere.onnx"], "nowhere.onnx.json"),
        (["--score-thresh", "0.95"], "0 detections"),
        (["--output", "."], "--output"),
    ],
)
def test_what_cannot_be_used_is_one_line(arrays, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["calibrate", *arrays, *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("calibrate: ") and message in line
    assert not (tmp_path / "out.json").exists()
