"""The study of projects/DetectorKD/bound.py: two teachers, what each row learns from."""

import json

import pytest
import torch
from tiny import REPO

from kd_search.distillation.methods.detector import RegionRegressionTerm
from kd_search.synthetic import PRESETS, generate_dataset
from tests.projects.project_files import load_script, run_script

bound = load_script("DetectorKD", "bound")


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch):
    monkeypatch.chdir(REPO)


def study_of(tmp_path, *more):
    return bound.make_study(bound.parse_args(["--output", str(tmp_path), "--seeds", "1", *more]))


def test_each_row_has_the_teacher_it_is_named_after(tmp_path):
    study = study_of(tmp_path, "--teacher-iterations", "30", "--noisy-iterations", "6")
    good, noisy = study.teachers["teacher"], study.teachers["noisy teacher"]
    assert [t.config.SOLVER.MAX_ITER for t in (good, noisy)] == [30, 6]
    assert good.folder != noisy.folder
    used = {row: run.config.DISTILLATION.TEACHER.WEIGHTS for (row, _), run in study.runs.items()}
    assert used["L2"] == used["L2-B"] == str(good.weights)
    assert used["L2 noisy"] == used["L2-B noisy"] == str(noisy.weights)
    assert study.runs["base", 1].config.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    kinds = {
        r: run.config.DISTILLATION.BOUNDED_REGRESSION.KIND for (r, _), run in study.runs.items()
    }
    assert [kinds[r] for r in ("L2", "L2-B", "L2 noisy", "L2-B noisy")] == ["l2", "bounded"] * 2


def test_truth_is_the_distance_to_the_ground_truth_of_every_positive(tmp_path):
    cfg = study_of(tmp_path, "--rows", "truth").runs["truth", 1].config
    term = RegionRegressionTerm(**RegionRegressionTerm.from_config(cfg))
    generator = torch.Generator().manual_seed(0)
    student, teacher, target = (torch.randn(9, 4, generator=generator) for _ in range(3))
    expected = (student.double() - target.double()).square().sum()
    assert term.loss(student, teacher, target).item() == pytest.approx(expected.item(), rel=1e-6)
    # Of a bound by a perfect teacher it is the limit; of one by this teacher it is not.
    assert term.loss(student, target, target).item() == pytest.approx(expected.item(), rel=1e-6)
    cfg = study_of(tmp_path, "--rows", "L2-B").runs["L2-B", 1].config
    bounded = RegionRegressionTerm(**RegionRegressionTerm.from_config(cfg))
    assert bounded.loss(student, teacher, target) < term.loss(student, teacher, target)


@pytest.mark.e2e
def test_a_tiny_study(tmp_path):
    generate_dataset(tmp_path / "data", PRESETS["tiny"], seed=0, progress=False)
    opts = ["SOLVER.IMS_PER_BATCH", "2"]
    options = ["--rows", "base", "L2-B noisy", "--seeds", 1, "--iterations", 2]
    options += ["--teacher-iterations", 2, "--noisy-iterations", 1, "--opts", *opts]
    options += ["--teacher-opts", *opts, "--output", tmp_path / "out"]
    run_script("DetectorKD", "bound", *options, KD_SEARCH_GENERATED=str(tmp_path / "data"))
    content = json.loads((tmp_path / "out" / "bound.json").read_text())
    rows = [entry["row"] for entry in content["table"]]
    assert rows == ["teacher", "noisy teacher", "base", "L2-B noisy"]
    assert [content["teachers"][name]["iterations"] for name in rows[:2]] == [2, 1]
    assert list(content["table"][2]["metrics"]) == ["AP", "AP50", "AP75"]
