"""The ablation of projects/GlobalKnowledge: rows, runs, starts, and a few rows from nothing."""

import json

import pytest
import torch
from tiny import REPO

from kd_search.synthetic import OBJECTS_PRESETS, PRESETS, generate_dataset, generate_objects
from tests.projects.project_files import finish, load_script, run_script

ablate = load_script("GlobalKnowledge", "ablate")
ROWS = ablate.ROWS
FEATURE = ["WeightedFeatureTerm"]
GLOBAL = [*FEATURE, "GlobalKnowledgeTerm"]


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch):
    monkeypatch.chdir(REPO)


def study_of(tmp_path, *more):
    args = ["--output", str(tmp_path), "--seeds", "1", "2", *more]
    return ablate.make_study(ablate.parse_args(args))


def test_each_row_has_the_one_before_and_more(tmp_path):
    runs = study_of(tmp_path, "--iterations", "30").runs
    names = [row.name for row in ROWS]
    assert names == ["none", "feature", "+weights", "+global", "+soft"]
    assert list(runs) == [(name, seed) for seed in (1, 2) for name in names]
    assert len({run.folder for run in runs.values()}) == 10
    assert {run.config.SOLVER.MAX_ITER for run in runs.values()} == {30}
    alone, *taught = [runs[name, 2].config for name in names]
    assert alone.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    terms = [cfg.DISTILLATION.TERMS for cfg in taught]
    assert terms == [FEATURE, FEATURE, GLOBAL, [*GLOBAL, "WeightedSoftLabelTerm"]]
    weighted = [cfg.DISTILLATION.GLOBAL_KNOWLEDGE.WEIGHTED for cfg in taught]
    assert weighted == [False, True, True, True]
    for cfg in taught:
        assert cfg.MODEL.META_ARCHITECTURE == "Distiller" and cfg.SEED == 2
        assert cfg.DISTILLATION.TEACHER.WEIGHTS == str(tmp_path / "teacher" / "model_final.pth")
        # All rows have the same network.
        assert {**cfg.MODEL, "META_ARCHITECTURE": ""} == {**alone.MODEL, "META_ARCHITECTURE": ""}


def test_prototypes_of_identities_are_a_row_to_be_named(tmp_path, monkeypatch):
    names = ["--rows", "+soft", "+soft, identities"]
    generate_dataset(tmp_path / "data", PRESETS["tiny"], seed=0, progress=False)
    monkeypatch.setenv("KD_SEARCH_GENERATED", str(tmp_path / "data"))
    study = study_of(tmp_path, "--set", "person", *names)
    one, clusters = (
        study.runs[row, 1].config.DISTILLATION for row in ("+soft", "+soft, identities")
    )
    assert one.TERMS == clusters.TERMS
    one, clusters = one.GLOBAL_KNOWLEDGE, clusters.GLOBAL_KNOWLEDGE
    assert (one.GROUPS, clusters.GROUPS) == ("class", "identity")
    assert abs(clusters.CLUSTERS * clusters.PER_CLASS - one.PER_CLASS) <= 5
    assert "+soft, identities" not in [row.name for row in study_of(tmp_path / "all").rows]


@pytest.mark.parametrize(
    "name, arch, data",
    [
        ("objects", "GeneralizedRCNN", "kd_objects_test"),
        ("retinanet", "RetinaNet", "kd_objects_test"),
        ("coco128", "GeneralizedRCNN", "kd_coco128"),
    ],
)
def test_sets_of_networks(name, arch, data, tmp_path):
    study = study_of(tmp_path, "--set", name, "--rows", "none", "+soft")
    assert study.cfg.DATASETS.TEST == (data,) and study.layout.base == "none"
    none, soft = (study.runs[row, 1].config for row in ("none", "+soft"))
    assert none.MODEL.META_ARCHITECTURE == soft.DISTILLATION.STUDENT_META_ARCH == arch
    teacher = study.teachers["teacher"].config
    assert teacher.MODEL.META_ARCHITECTURE == arch and teacher.DATASETS == soft.DATASETS


def test_all_rows_go_on_from_the_start_of_their_seed(tmp_path):
    more = ["--rows", "none", "+weights", "--iterations", "40", "--start-iterations", "60"]
    study = study_of(tmp_path, *more)
    runs = study.runs
    assert [row.name for row in study.rows] == ["start", "none", "+weights"]
    assert list(study.first) == [runs["start", 1], runs["start", 2]]
    for seed in (1, 2):
        start = runs["start", seed]
        assert start.config.SOLVER.MAX_ITER == 60 and start.config.SEED == seed
        assert start.config.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
        assert not start.config.MODEL.WEIGHTS
        for name in ("none", "+weights"):
            cfg = runs[name, seed].config
            assert cfg.MODEL.WEIGHTS == str(start.weights) and cfg.SOLVER.MAX_ITER == 40


def test_overrides_reach_students_and_teacher_apart(tmp_path):
    more = ["--opts", "SOLVER.BASE_LR", "0.01", "--teacher-opts", "MODEL.FPN.OUT_CHANNELS", "32"]
    study = study_of(tmp_path, "--rows", "none", "feature", *more)
    assert {run.config.SOLVER.BASE_LR for run in study.runs.values()} == {0.01}
    taught = study.runs["feature", 1].config
    assert taught.MODEL.FPN.OUT_CHANNELS == 64
    assert taught.DISTILLATION.TEACHER.OPTS == ["MODEL.FPN.OUT_CHANNELS", "32"]
    teacher = study.teachers["teacher"].config
    assert teacher.MODEL.FPN.OUT_CHANNELS == 32 and teacher.SOLVER.BASE_LR == 0.004


def test_a_teacher_that_is_there_is_not_trained(tmp_path):
    study = study_of(tmp_path, "--rows", "feature", "--teacher-weights", "there.pth")
    assert study.teachers == {}
    assert study.runs["feature", 1].config.DISTILLATION.TEACHER.WEIGHTS == "there.pth"


def test_table_of_finished_runs(tmp_path):
    study = study_of(tmp_path, "--rows", "none", "+global")
    for (row, seed), run in study.runs.items():
        finish(run, {"AP50": {"none": 40.0, "+global": 42.0}[row] + seed})
    text = study.write_table()
    assert "| none | 41.5 ± 0.7 | - | - | 41.0, 42.0 |" in text
    assert "| +global | 43.5 ± 0.7 | +2.0 ± 0.0 | +2.0 to +2.0 | 43.0, 44.0 |" in text
    assert (tmp_path / "ablation.png").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--rows", "none", "+pair"], "error: --rows: '+pair'"),
        (["--start-iterations", "-1"], "--start-iterations must"),
    ],
)
def test_bad_input_is_one_line(tmp_path, options, message, capsys):
    try:
        status = ablate.main(["--output", str(tmp_path), *options])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.e2e
def test_rows_from_nothing(tmp_path):
    data, output = tmp_path / "data", tmp_path / "out"
    generate_objects(data, OBJECTS_PRESETS["tiny"], seed=0, progress=False)
    small = ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.CHECKPOINT_PERIOD", "2"]
    options = ["--output", output, "--rows", "feature", "+soft", "--seeds", 1, "--iterations", 3]
    options += ["--start-iterations", 2, "--teacher-iterations", 2, "--teacher-opts", *small]
    options += ["--opts", *small, "DISTILLATION.GLOBAL_KNOWLEDGE.PERIOD", 2]
    printed = run_script("GlobalKnowledge", "ablate", *options, KD_SEARCH_OBJECTS=str(data))
    assert "[1/2] start, seed 1:" in printed and "+soft, seed 1:" in printed
    rows = ("feature", "+soft")
    logs = {name: (output / name / "seed1" / "log.txt").read_text() for name in rows}
    assert "loss_feature_background" in logs["feature"]
    assert "loss_global_knowledge" not in logs["feature"]
    for loss in ("loss_feature_foreground", "loss_global_knowledge", "loss_weighted_soft"):
        assert loss in logs["+soft"]
    content = json.loads((output / "ablation.json").read_text())
    assert [e["row"] for e in content["table"]] == ["teacher", "start", *rows]
    # Prototypes are made where they are needed.
    for name in rows:
        saved = torch.load(output / name / "seed1" / "model_final.pth", weights_only=True)
        assert bool(saved["prototypes"]["filled"].any()) == (name == "+soft")
