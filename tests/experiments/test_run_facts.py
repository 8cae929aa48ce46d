"""What a run records about its surroundings: data, code, config and queries."""

import copy
import json
import subprocess

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from tiny import REPO

import kd_search
from kd_search.experiments import unpack_queries
from kd_search.experiments.run_facts import (
    code_version,
    config_digest,
    data_digest,
    environment_of,
    per_query_of,
    shown_metrics,
)
from kd_search.experiments.run_folder import build_run_config, settings_of
from tests.experiments.fake_runs import CONFIG


@pytest.fixture
def register():
    names = []

    def add(records):
        names.append(f"facts_{len(names)}")
        DatasetCatalog.register(names[-1], lambda: records)
        return names[-1]

    yield add
    for name in names:
        DatasetCatalog.remove(name)


def records_in(folder):
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"12345")
    annotations = [{"bbox": [1.0, 2.0, 3.0, 4.0], "person_id": p} for p in (4, -1, 7)]
    return [
        {
            "file_name": str(folder / "a.jpg"),
            "size": np.array([5, 6]),
            "annotations": annotations,
        }
    ]


def test_a_data_set_is_its_content_wherever_it_is(tmp_path, register):
    records = records_in(tmp_path / "here")
    found = data_digest(register(records))
    assert found["images"] == 1 and found["people"] == 2
    assert found == data_digest(register(records_in(tmp_path / "there")))
    moved = copy.deepcopy(records)
    moved[0]["annotations"][0]["bbox"][0] = 1.5
    assert data_digest(register(moved))["sha256"] != found["sha256"]
    (tmp_path / "here" / "a.jpg").write_bytes(b"123456")
    assert data_digest(register(records))["sha256"] != found["sha256"]


def test_a_set_without_people_has_none(register):
    assert "people" not in data_digest(register([{"file_name": "no.jpg", "annotations": []}]))


def test_samples_of_crops_have_people(register):
    samples = [{"file_names": ["a.jpg"], "person_id": p} for p in (1, 1, 3, -1)]
    assert data_digest(register(samples))["people"] == 2


def test_the_commit_is_that_of_the_checkout_of_the_package(tmp_path, monkeypatch):
    command = ["git", "-C", str(REPO), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    found = code_version()
    if done.returncode:  # an archive of the sources
        assert found is None
    else:
        assert found["commit"] == done.stdout.strip() and found["modified"] in (True, False)
    monkeypatch.setattr(kd_search, "__file__", str(tmp_path / "kd_search" / "__init__.py"))
    assert code_version() is None
    # Installed below an unrelated checkout.
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "kd_search").mkdir()
    (tmp_path / "kd_search" / "__init__.py").touch()
    assert code_version() is None


def test_results_files_that_a_study_writes_are_no_change_of_the_code(tmp_path, monkeypatch):
    files = ("kd_search/__init__.py", "projects/X/results/study.json", "projects/X/study.py")
    for path in (tmp_path / name for name in files):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("0")
    identity = ["-c", "user.name=N", "-c", "user.email=n@example.org"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    monkeypatch.setattr(kd_search, "__file__", str(tmp_path / "kd_search" / "__init__.py"))
    (tmp_path / files[1]).write_text("1")
    assert code_version()["modified"] is False
    (tmp_path / files[2]).write_text("1")
    assert code_version()["modified"] is True


def test_surroundings_of_a_run(tmp_path, register, monkeypatch):
    monkeypatch.chdir(REPO)
    name = register(records_in(tmp_path / "here"))
    cfg = build_run_config(CONFIG, ["DATASETS.TEST", f"('{name}',)"], tmp_path)
    cfg.defrost()
    cfg.DATASETS.TRAIN = (name,)
    found = environment_of(cfg)
    assert {"python", "torch", "detectron2", "kd_search"} <= found["versions"].keys()
    assert found["hardware"]["cores"] >= found["hardware"]["threads"] == 1
    assert found["data"] == {name: data_digest(name)}
    json.dumps(found, allow_nan=False)


def test_a_config_is_known_by_the_content_of_its_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(REPO)

    def digest(weights, *opts):
        opts = ["MODEL.WEIGHTS", str(weights), *opts]
        return config_digest(settings_of(build_run_config(CONFIG, opts, tmp_path)))

    for name, content in (("one", b"1"), ("same", b"1"), ("other", b"2")):
        (tmp_path / name).write_bytes(content)
    assert digest(tmp_path / "one") == digest(tmp_path / "same")
    assert digest(tmp_path / "one") != digest(tmp_path / "other")
    assert digest(tmp_path / "one") != digest(tmp_path / "one", "SOLVER.BASE_LR", "0.5")


def query(number, ap):
    return {
        "query_id": number,
        "image_id": number,
        "person_id": 1,
        "bbox": [0.0, 0.0, 1.0, 1.0],
        "AP": ap,
        "first_hit_rank": 1 if ap else None,
        "num_gt": 0 if ap is None else 1,
        "num_found": 1 if ap else 0,
        "matches": [],
    }


def test_queries_of_a_search_and_of_each_setting_of_re_id(tmp_path):
    assert per_query_of(tmp_path) == {}
    rows = [query(0, 50.0), query(1, None), query(2, 25.0)]
    (tmp_path / "person_search_results.json").write_text(json.dumps({"queries": rows}))
    found = unpack_queries(per_query_of(tmp_path)["mAP"])
    assert np.allclose(found, [50, np.nan, 25], atol=1e-3, equal_nan=True)
    reid = tmp_path / "reid"
    reid.mkdir()
    settings = {"image-to-video": rows, "video-to-video": rows[:1]}
    (reid / "reid_results.json").write_text(json.dumps({"queries": settings}))
    assert {k: len(unpack_queries(v)) for k, v in per_query_of(reid).items()} == {
        "i2v_mAP": 3,
        "v2v_mAP": 1,
    }
    (reid / "reid_results.json").write_text(json.dumps({"queries": {"video-to-video": rows}}))
    assert list(per_query_of(reid)) == ["reid_mAP"]


def test_other_queries_have_another_mark(tmp_path):
    rows = [query(0, 50.0)]
    marks = set()
    for change in ({}, {"bbox": [0.0, 0.0, 2.0, 1.0]}, {"person_id": 2}, {"AP": 10.0}):
        (tmp_path / "person_search_results.json").write_text(
            json.dumps({"queries": [{**rows[0], **change}]})
        )
        marks.add(per_query_of(tmp_path)["mAP"]["queries"])
    assert len(marks) == 3  # the average precision is no part of the question


def test_time_at_test_is_shown_beside_the_metrics_of_the_test_set():
    run = {"metrics": {"mAP": 40.0, "top1": None}, "train_metrics": {"AP": 3.0}, "test_ms": 12.5}
    assert shown_metrics(run) == {"mAP": 40.0, "test_ms": 12.5}
    assert shown_metrics(run, "train_metrics") == {"AP": 3.0}
    # Not of a run that an older version recorded, nor of one that was not evaluated.
    assert shown_metrics({"metrics": {"mAP": 40.0}}) == {"mAP": 40.0}
    assert shown_metrics({"metrics": {}, "test_ms": 12.5}) == {}
