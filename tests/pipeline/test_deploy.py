"""The student as files: what is left out and why, and the calibration in manifest and report."""

from types import SimpleNamespace

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from html_page import Page
from tiny import tiny_cfg

from kd_search.evaluation import DetectionSet, save_detections
from kd_search.pipeline import deploy
from kd_search.pipeline.deploy import calibrate_student, export_student
from kd_search.runtime.manifest import FORMAT, FORMAT_VERSION, manifest_path, read_manifest
from kd_search.runtime.verdict import verdict
from kd_search.utils.files import write_json
from kd_search.visualization import page
from kd_search.visualization.deployment import Deployment, deployment_section

SET, PEOPLE, EACH = "pipeline_deploy_test", 50, 6


@pytest.fixture
def evaluated(tmp_path):
    """Folder of a training with detections of everybody in a made set: (folder, config)."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(PEOPLE, 1, 24)) + 0.6 * rng.normal(size=(PEOPLE, EACH, 24))
    vectors = (vectors / np.linalg.norm(vectors, axis=2, keepdims=True)).transpose(1, 0, 2)
    boxes = [[30 * person, 0, 30 * person + 20, 50] for person in range(PEOPLE)]
    people = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "person_id": person}
        for person, box in enumerate(boxes)
    ]
    dicts = [
        {"file_name": f"{i}.jpg", "image_id": i, "height": 60, "width": 1500, "annotations": people}
        for i in range(EACH)
    ]
    detections = DetectionSet(
        list(range(EACH)),
        PEOPLE * np.arange(EACH + 1),
        np.tile(np.array(boxes, np.float32), (EACH, 1)),
        np.full(PEOPLE * EACH, 0.9, np.float32),
        vectors.reshape(-1, 24).astype(np.float32),
        np.zeros(0, np.int64),
        np.zeros((0, 24), np.float32),
    )
    folder = tmp_path / "run" / "inference" / SET
    folder.mkdir(parents=True)
    save_detections(folder / "person_search_detections.npz", detections)
    DatasetCatalog.register(SET, lambda: dicts)
    yield tmp_path / "run", tiny_cfg("fpn", "DATASETS.TEST", (SET,))
    DatasetCatalog.remove(SET)


def test_the_calibration_is_in_the_manifest_and_names_its_people(evaluated, tmp_path):
    folder, cfg = evaluated
    model, lines = tmp_path / "student.onnx", []
    write_manifest(model)
    document = calibrate_student(cfg, folder, model, lines.append)
    # 36,750 comparisons of different people.
    assert [point["threshold"] is not None for point in document["points"]] == [True, True, False]
    assert (document["dataset"], document["num_people"]) == (SET, PEOPLE)
    assert "results are reported on" in document["note"] and len(document["halves"]) == 3
    kept = read_manifest(tmp_path / "student.onnx.json")["calibration"]
    assert kept["points"][0]["threshold"] == document["points"][0]["threshold"]
    assert kept["note"] == document["note"]
    assert verdict(kept, document["points"][1]["threshold"]) == "likely"
    assert any("300,000 are needed" in line for line in lines)


def test_too_few_people_leave_the_model_without_a_calibration(evaluated, tmp_path):
    folder, cfg = evaluated
    cfg.TEST.PERSON_SEARCH.SCORE_THRESH = 0.95
    model, lines = tmp_path / "student.onnx", []
    write_manifest(model, calibration={"points": []})
    document = calibrate_student(cfg, folder, model, lines.append)
    assert document.keys() == {"dataset", "reason"} and "0 detections" in lines[0]
    assert read_manifest(tmp_path / "student.onnx.json")["calibration"] is None


def test_the_report_has_files_thresholds_and_a_plot(evaluated):
    folder, cfg = evaluated
    document = calibrate_student(cfg, folder, None, lambda line: None)
    files = {"onnx": ("student.onnx", 3 * 2**20)}
    deployment = Deployment(files, {"torchscript": "a part has no trace"}, document)
    found = Page(page.page("A report", ["<h1>A report</h1>", deployment_section(deployment)]))
    rows = {row[0]: row[1:] for row in found.rows}
    assert rows["student.onnx"] == ["kd_search.runtime, without torch", "3.0 MiB"]
    point = document["points"][0]
    low, high = point["threshold_interval"]
    assert rows["1 in 100"][0] == f"{point['threshold']:.3f} ({low:.3f} to {high:.3f})"
    assert rows["1 in 10,000"] == ["none", ""]
    half = document["halves"][1][0]
    assert rows["2"][:2] == ["100", f"{half['threshold']:.3f}"] and "(" in rows["2"][2]
    text = " ".join(found.texts)
    assert "a part has no trace" in text and document["note"] in text
    assert "300,000 are needed" in text
    assert "img" in [tag for tag, _ in found.tags]


@pytest.fixture
def student(tmp_path, monkeypatch):
    """An exporter of two formats that fail with what is in the returned dict."""
    errors = {}

    def exporter(form):
        def export(model, cfg, weights, path):
            if form in errors:
                raise errors[form]
            path.write_text("new")
            return {"max_difference": {"boxes": 1e-6, "scores": 2e-6}}

        return export

    monkeypatch.setattr(deploy, "load_network", lambda cfg, weights: None)
    for form in deploy.ENDINGS:
        monkeypatch.setattr(deploy, f"_export_{form}", exporter(form))
    return SimpleNamespace(errors=errors, stem=tmp_path / "student", lines=[])


def export(student):
    return export_student(tiny_cfg(), student.stem, student.stem, student.lines.append)


def test_both_formats_are_written(student):
    record = export(student)
    assert record["files"] == {"onnx": "student.onnx", "torchscript": "student.ts"}
    assert not record["left_out"] and "2.0e-06" in student.lines[0]


@pytest.mark.parametrize("error", [ValueError, RuntimeError])
def test_a_refused_format_is_left_out_and_its_older_file_removed(student, error):
    export(student)
    write_manifest(student.stem.with_suffix(".onnx"))
    student.errors["onnx"] = error("windows depend on the size\nmore")
    record = export(student)
    assert record["files"] == {"torchscript": "student.ts"}
    assert record["left_out"] == {"onnx": "windows depend on the size"}
    assert "no student.onnx: windows depend on the size" in student.lines
    assert [path.name for path in student.stem.parent.glob("student.*")] == ["student.ts"]


def test_a_network_without_any_format_is_an_error(student):
    student.errors.update(onnx=ValueError("first"), torchscript=RuntimeError("second"))
    with pytest.raises(ValueError, match="first; second"):
        export(student)


def write_manifest(model, calibration=None):
    text = ("file", "file_sha256", "file_format", "weights_type", "weights_sha256", "config_sha256")
    write_json(
        manifest_path(model),
        {
            **dict.fromkeys(text, ""),
            **{"format": FORMAT, "version": FORMAT_VERSION, "network": "reid", "file_bytes": 1},
            **{"input_format": "RGB", "max_pixels": 1, "embedding_dim": 24, "classes": []},
            **{"training_sets": [], "source_sha256": "", "config": "", "versions": {}},
            **{"parity": None, "calibration": calibration, "crop_size": [8, 4]},
        },
        sealed=True,
    )
