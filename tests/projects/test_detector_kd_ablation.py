"""The ablation of projects/DetectorKD: which runs there are, the table, two rows from nothing."""

import json
import os
import subprocess
import sys

import pytest
from tiny import REPO

from kd_search.experiments import RESULT_FILE, SETTINGS_FILE, settings_of
from kd_search.synthetic import (
    PRESETS,
    generate_dataset,
)
from kd_search.utils.files import write_json
from tests.projects.detector_kd import PROJECT
from tests.projects.project_files import load_script

ablate = load_script("DetectorKD", "ablate")


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch):
    monkeypatch.chdir(REPO)


def study_of(tmp_path, *more):
    args = ["--output", str(tmp_path), "--seeds", "1", "2", *more]
    return ablate.make_study(ablate.parse_args(args))


def test_command_line_makes_a_run_for_each_row_and_seed(tmp_path):
    runs = study_of(tmp_path, "--rows", "base", "all", "--iterations", "30").runs
    assert list(runs) == [("base", 1), ("all", 1), ("base", 2), ("all", 2)]
    assert [run.config.SEED for run in runs.values()] == [1, 1, 2, 2]
    assert {run.config.SOLVER.MAX_ITER for run in runs.values()} == {30}
    archs = [run.config.MODEL.META_ARCHITECTURE for run in runs.values()]
    assert archs == ["GeneralizedRCNN", "Distiller"] * 2
    weights = runs["all", 2].config.DISTILLATION.TEACHER.WEIGHTS
    assert weights == str(tmp_path / "teacher" / "model_final.pth")
    assert len({run.folder for run in runs.values()}) == 4


def test_overrides_reach_students_and_teacher_apart(tmp_path):
    more = ["--opts", "SOLVER.BASE_LR", "0.01", "--teacher-opts", "MODEL.FPN.OUT_CHANNELS", "32"]
    study = study_of(tmp_path, "--rows", "base", "all", *more)
    runs = study.runs
    assert {run.config.SOLVER.BASE_LR for run in runs.values()} == {0.01}
    assert {run.config.MODEL.FPN.OUT_CHANNELS for run in runs.values()} == {64}
    assert runs["all", 1].config.DISTILLATION.TEACHER.OPTS == ["MODEL.FPN.OUT_CHANNELS", "32"]
    teacher = study.teachers["teacher"].config
    assert teacher.MODEL.FPN.OUT_CHANNELS == 32 and teacher.SOLVER.BASE_LR == 0.001


def test_schedule_shrinks_with_the_iterations(tmp_path):
    study = study_of(tmp_path, "--iterations", "45", "--opts", "SOLVER.STEPS", "(200, 400)")
    cfg = study.runs["base", 1].config
    # 450 iterations with a warm-up of 50 become 45.
    assert cfg.SOLVER.MAX_ITER == 45 and cfg.SOLVER.WARMUP_ITERS == 5


def test_table_of_finished_runs(tmp_path):
    study = study_of(tmp_path, "--rows", "base", "L2")
    for (row, seed), run in study.runs.items():
        if (row, seed) != ("L2", 2):
            run.folder.mkdir(parents=True)
            write_json(run.folder / SETTINGS_FILE, settings_of(run.config))
            result = {"metrics": {"AP50": {"base": 40.0, "L2": 39.0}[row] + seed}}
            write_json(run.folder / RESULT_FILE, result)
    text = study.write_table()
    assert "| base | 41.5 ± 0.7 | - | 41.0, 42.0 |" in text
    assert "| L2 | 40.0 | -1.0 | 40.0 |" in text
    assert len(json.loads((tmp_path / "ablation.json").read_text())["runs"]) == 3


def test_bad_input_is_one_line(tmp_path):
    command = [sys.executable, str(PROJECT / "ablate.py"), "--output", str(tmp_path), "--rows"]
    done = subprocess.run([*command, "all", "L3"], capture_output=True, text=True)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: --rows: 'L3' is none of") and "Traceback" not in done.stderr


@pytest.mark.e2e
def test_two_rows_from_nothing_and_again(tmp_path):
    data = tmp_path / "data"
    generate_dataset(data, PRESETS["tiny"], seed=0, progress=False)
    opts = ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.CHECKPOINT_PERIOD", "2"]
    command = [sys.executable, str(PROJECT / "ablate.py"), "--output", str(tmp_path / "out")]
    command += ["--rows", "base", "all", "--seeds", "1", "--iterations", "3", "--on-train"]
    command += ["--teacher-iterations", "3", "--opts", *opts, "--teacher-opts", *opts]
    environment = {**os.environ, "KD_SEARCH_GENERATED": str(data), "OMP_NUM_THREADS": "1"}

    def run():
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    output = run()
    assert "[1/1] teacher:" in output and "[2/2] all, seed 1:" in output
    log = (tmp_path / "out" / "all" / "seed1" / "log.txt").read_text()
    for loss in ("region_soft", "anchor_soft", "region_bounded", "anchor_bounded", "hint"):
        assert f"loss_{loss}" in log
    content = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert [entry["row"] for entry in content["table"]] == ["teacher", "base", "all"]
    assert content["runs"][0]["params"] == content["runs"][1]["params"]
    assert content["runs"][0]["train_metrics"].keys() == {"AP", "AP50", "AP75"}
    # One result less: that run alone is taken up again, from its last checkpoint.
    results = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob(RESULT_FILE)}
    assert len(results) == 3
    lost = tmp_path / "out" / "base" / "seed1" / RESULT_FILE
    lost.unlink()
    output = run()
    assert "1 of 2 runs were done before" in output and "[2/2] base, seed 1:" in output
    assert {p for p, t in results.items() if p.stat().st_mtime_ns != t} == {lost}
    again = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert again["table"] == content["table"]
