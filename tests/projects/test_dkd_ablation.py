"""The ablation of projects/DKD: rows, runs, sensitivity, grids, and a few rows from nothing."""

import json

import pytest
from tiny import REPO

from kd_search.experiments import RESULT_FILE, TableLayout, settings_of, summarise
from kd_search.synthetic import PRESETS, generate_dataset
from tests.projects.project_files import finish, load_script, run_script

ablate = load_script("DKD", "ablate")
TERMS, grid_rows = ablate.TERMS, ablate.grid_rows


@pytest.fixture
def study_of(tmp_path, monkeypatch):
    """From options to a study of a tiny generated set in ``tmp_path / "out"``."""
    monkeypatch.chdir(REPO)
    data = tmp_path / "data"
    generate_dataset(data, PRESETS["tiny"], seed=0, progress=False)
    monkeypatch.setenv("KD_SEARCH_GENERATED", str(data))

    def make(*options):
        args = ["--output", str(tmp_path / "out"), "--seeds", "1", "2", *options]
        return ablate.make_study(ablate.parse_args(args))

    return make


def test_rows_of_the_grid():
    names = [row.name for row in grid_rows([], [])]
    assert len(names) == 1 + 4 * 3 and names[:3] == [
        "none",
        "probability, no-SIA",
        "probability, ISA",
    ]
    names = [row.name for row in grid_rows(["all", "none"], ["ISA+FSA", "no-SIA"])]
    assert names == ["none", "all, no-SIA", "all, ISA+FSA"]
    with pytest.raises(ValueError, match="--rows: 'pair'"):
        grid_rows(["pair"], [])
    with pytest.raises(ValueError, match="--sia: 'FSA'"):
        grid_rows([], ["FSA"])


def test_terms_of_the_rows():
    names = {"probability": "IdentityProbabilityTerm", "pair": "PairRelationTerm"}
    names["triplet"] = "TripletRelationTerm"
    everything = tuple(names.values())
    assert TERMS["all"] == everything and TERMS["none"] == ()
    assert TERMS["+pair"] == everything[:2] and TERMS["+triplet"] == (everything[0], everything[2])


def test_runs_are_what_they_are_named_after(study_of):
    study = study_of("--rows", "none", "+triplet", "--iterations", "30")
    runs = study.runs
    columns = ("no-SIA", "ISA", "ISA+FSA")
    names = ["none", *(f"+triplet, {name}" for name in columns)]
    assert list(runs) == [(name, seed) for seed in (1, 2) for name in names]
    assert len({run.folder for run in runs.values()}) == 8
    assert {run.config.SOLVER.MAX_ITER for run in runs.values()} == {30}
    assert [run.config.SEED for run in runs.values()] == [1] * 4 + [2] * 4

    alone = runs["none", 1].config
    assert alone.MODEL.META_ARCHITECTURE == "PersonSearchRCNN"
    taught = [runs[name, 2].config for name in names[1:]]
    for cfg in taught:
        assert cfg.MODEL.META_ARCHITECTURE == "Distiller"
        assert cfg.DISTILLATION.TERMS == ["IdentityProbabilityTerm", "TripletRelationTerm"]
        # All rows have the same network.
        assert {**cfg.MODEL, "META_ARCHITECTURE": ""} == {**alone.MODEL, "META_ARCHITECTURE": ""}
    assert [cfg.DISTILLATION.SIA.FEATURE_LEVEL for cfg in taught] == [False, False, True]

    plain, moved = study.teachers["teacher"], study.teachers["teacher, ISA"]
    assert not plain.config.REID_DATA.SIA.IMAGE_LEVEL and moved.config.REID_DATA.SIA.IMAGE_LEVEL
    weights = [cfg.DISTILLATION.REID_TEACHER.WEIGHTS for cfg in taught]
    assert weights == [str(plain.weights), str(moved.weights), str(moved.weights)]
    # Features of boxes that stay are kept, by no two runs in one place.
    caches = [run.config.DISTILLATION.REID_TEACHER.CACHE_DIR for run in runs.values()]
    assert [bool(cache) for cache in caches] == [False, True, True, False] * 2
    assert len(set(caches)) == 5


def test_teachers_without_a_student_are_not_trained(study_of):
    assert study_of("--rows", "none").teachers == {}
    assert list(study_of("--rows", "all", "--sia", "ISA+FSA").teachers) == ["teacher, ISA"]


def test_overrides_reach_students_and_teachers_separately(study_of):
    opts = ["--opts", "SOLVER.BASE_LR", "0.01", "--teacher-opts", "MODEL.RESNETS.DEPTH", "34"]
    study = study_of("--rows", "all", "--sia", "ISA", "--teacher-iterations", "60", *opts)
    student, teacher = study.runs["all, ISA", 1].config, study.teachers["teacher, ISA"].config
    assert student.SOLVER.BASE_LR == 0.01 and student.MODEL.RESNETS.DEPTH == 18
    assert student.DISTILLATION.REID_TEACHER.OPTS == ["MODEL.RESNETS.DEPTH", "34"]
    assert teacher.SOLVER.BASE_LR == 0.001 and teacher.MODEL.RESNETS.DEPTH == 34
    # 600 iterations with a warm-up of 60 become 60.
    assert teacher.SOLVER.MAX_ITER == 60 and teacher.SOLVER.WARMUP_ITERS == 6


def test_sensitivity_varies_one_key_of_all_terms(study_of):
    study = study_of("--sensitivity", "MARGIN", "0.1", "0.30", "0.5")
    assert [row.name for row in study.rows] == ["MARGIN 0.1", "MARGIN 0.30", "MARGIN 0.5"]
    margins = [study.runs[row.name, 1].config.DISTILLATION.DKD.MARGIN for row in study.rows]
    assert margins == [0.1, 0.3, 0.5]
    assert study.layout.base == "MARGIN 0.30" and study.layout.stem == "sensitivity_MARGIN"
    # The default is the row of all terms: not trained a second time.
    grid = study_of("--rows", "all", "--sia", "ISA+FSA")
    same, default = study.runs["MARGIN 0.30", 1], grid.runs["all, ISA+FSA", 1]
    assert same.folder == default.folder and settings_of(same.config) == settings_of(default.config)
    assert len({run.folder for run in study.runs.values()}) == 6


def test_sensitivity_adds_the_default(study_of):
    study = study_of("--sensitivity", "KL_DIRECTION", "teacher_student", "--sia", "no-SIA")
    names = ["KL_DIRECTION student_teacher", "KL_DIRECTION teacher_student"]
    assert [row.name for row in study.rows] == names and study.layout.base == names[0]
    assert list(study.teachers) == ["teacher"]
    study = study_of("--sensitivity", "DISTILLATION.SIA.LIMIT", "5.0")
    assert [row.name for row in study.rows] == ["LIMIT 20.0", "LIMIT 5.0"]


def test_sensitivity_names_the_keys_there_are(study_of):
    with pytest.raises(ValueError, match="--sensitivity: 'MARGINS'.*PROBABILITY_WEIGHT"):
        study_of("--sensitivity", "MARGINS", "1")
    with pytest.raises(SystemExit):
        study_of("--sensitivity", "MARGIN")
    with pytest.raises(SystemExit):
        study_of("--sensitivity", "MARGIN", "1", "--rows", "all")


def test_grids_have_terms_down_and_augmentations_across():
    rows = grid_rows(["none", "all"], ["no-SIA", "ISA"])
    results = {
        ("none", 1): {"mAP": 20.0, "top1": 30.0},
        ("all, no-SIA", 1): {"mAP": 21.0, "top1": 31.0},
        ("all, no-SIA", 2): {"mAP": 23.0, "top1": 31.0},
    }
    table = summarise([row.name for row in rows], results, {}, TableLayout(base="none"))
    assert ablate.grids(table, rows, ["no-SIA", "ISA"]).splitlines() == [
        "| mAP | no-SIA | ISA |",
        "| --- | --- | --- |",
        "| none | 20.0 |  |",
        "| all | 22.0 ± 1.4 | - |",
        "",
        "| top1 | no-SIA | ISA |",
        "| --- | --- | --- |",
        "| none | 30.0 |  |",
        "| all | 31.0 ± 0.0 | - |",
    ]


def test_two_steps_are_a_detector_and_the_teacher_with_moved_boxes(study_of):
    study = study_of("--rows", "none", "two steps", "--teacher-opts", "REID_DATA.PAD", "3")
    assert list(study.teachers) == ["teacher, ISA"]
    cfg = study.runs["two steps", 1].config
    assert cfg.MODEL.META_ARCHITECTURE == "TwoStepSearch" and cfg.INPUT.WITH_ORIGINAL_IMAGE
    assert cfg.MODEL.ROI_HEADS.NAME == "StandardROIHeads"
    reid = cfg.MODEL.TWO_STEP.REID
    assert reid.WEIGHTS == str(study.teachers["teacher, ISA"].weights)
    assert reid.OPTS == ["REID_DATA.PAD", "3"]
    # It has to be named.
    assert ("two steps", 1) not in study_of().runs


def test_table_of_finished_runs(study_of, tmp_path):
    study = study_of("--rows", "none", "all", "--sia", "ISA")
    for (row, seed), run in study.runs.items():
        finish(run, {"mAP": {"none": 40.0, "all, ISA": 42.0}[row] + seed, "top1": 50.0})
    text = study.write_table()
    assert "| all, ISA | 43.5 ± 0.7 | 50.0 ± 0.0 | +2.0 ± 0.0 | +2.0 to +2.0 | 43.0, 44.0 |" in text
    assert "| all | 43.5 ± 0.7 |" in text
    assert (tmp_path / "out" / "ablation.png").exists()


@pytest.mark.e2e
@pytest.mark.usefixtures("study_of")
def test_rows_from_nothing_and_again(tmp_path):
    small = ["MODEL.RESNETS.WIDTH_MULTIPLIER", "0.25", "SOLVER.CHECKPOINT_PERIOD", "2"]
    options = ["--output", tmp_path / "out", "--rows", "none", "all", "two steps"]
    options += ["--sia", "ISA", "ISA+FSA", "--seeds", 1]
    options += ["--iterations", 3, "--teacher-iterations", 3]
    options += ["--opts", *small, "SOLVER.IMS_PER_BATCH", 2]
    options += ["--teacher-opts", *small, "SOLVER.IMS_PER_BATCH", 8, "REID_DATA.IDS_PER_BATCH", 4]

    def run():
        return run_script("DKD", "ablate", *options, KD_SEARCH_GENERATED=str(tmp_path / "data"))

    run()
    for name in ("ISA", "ISA+FSA"):
        log = (tmp_path / "out" / name / "all" / "seed1" / "metrics.json").read_text()
        for loss in ("loss_probability", "loss_pair_relation", "loss_triplet_relation"):
            assert loss in log
    content = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert [e["row"] for e in content["table"]] == [
        "teacher, ISA",
        "none",
        "two steps",
        "all, ISA",
        "all, ISA+FSA",
    ]
    # Of every row, processor time at test; of every search, its accuracy.
    assert all(e["metrics"]["test_ms"]["mean"] > 0 for e in content["table"])
    assert all("mAP" in e["metrics"] for e in content["table"][1:])
    assert "reid_mAP" in content["table"][0]["metrics"] and "mAP" in content["table"][1]["metrics"]
    results = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob(RESULT_FILE)}
    assert len(results) == 5
    run()
    assert {p: p.stat().st_mtime_ns for p in results} == results
    assert json.loads((tmp_path / "out" / "ablation.json").read_text()) == content
