"""The ablation of projects/VKD: rows, runs, curves over frames, and a few rows from nothing."""

import dataclasses
import json

import pytest
from tiny import REPO
from vkd_study import STUDIES

from kd_search.experiments import read_study, settings_of
from kd_search.synthetic import TRACKLETS_PRESETS, generate_tracklets
from tests.projects.project_files import finish, load_script, run_script

ablate, views = load_script("VKD", "ablate"), load_script("VKD", "views")


@pytest.fixture(scope="module")
def tracklets(tmp_path_factory):
    root = tmp_path_factory.mktemp("tracklets")
    generate_tracklets(root, TRACKLETS_PRESETS["tiny"], seed=0, progress=False)
    return root


@pytest.fixture
def study_of(tmp_path, tracklets, monkeypatch):
    """From options to a study of tiny generated tracklets in ``tmp_path / "out"``."""
    monkeypatch.chdir(REPO)
    monkeypatch.setenv("KD_SEARCH_TRACKLETS", str(tracklets))
    # Its files have the names of Market-1501.
    monkeypatch.setenv("KD_SEARCH_MARKET_CROPS", str(tracklets))

    def make(*options):
        args = ["--set", "generated", "--output", str(tmp_path / "out"), "--seeds", "1", "2"]
        return ablate.make_study(ablate.parse_args([*args, *options]))

    return make


def test_students_learn_from_the_teacher_of_their_seed(study_of):
    study = study_of("--iterations", "20")
    assert [run.config.SEED for run in study.first] == [1, 2]
    rows = [row.name for row in STUDIES["terms"]]
    assert list(study.runs) == [(row, seed) for seed in (1, 2) for row in rows]
    for seed, teacher in zip((1, 2), study.first):
        assert study.runs["teacher", seed] is teacher
        for name in rows[1:]:
            cfg = study.runs[name, seed].config
            assert cfg.SEED == seed and cfg.SOLVER.MAX_ITER == 20
            assert cfg.DISTILLATION.TEACHER.WEIGHTS == str(teacher.weights)
            assert cfg.DISTILLATION.INIT_FROM_TEACHER
    assert len({run.folder for run in study.runs.values()}) == 2 * len(rows)
    assert study.layout.base == "teacher" and study.layout.stem == "terms"


def test_rows_set_what_they_are_named_after(study_of):
    def of(study, name):
        return study.runs[name, 1].config

    study = study_of()
    losses = {}
    for row in STUDIES["terms"][1:]:
        cfg = of(study, row.name)
        node, terms = cfg.MODEL.REID_NETWORK, cfg.DISTILLATION.TERMS
        flags = [node.CLS_WEIGHT > 0, node.TRIPLET_WEIGHT > 0]
        flags += ["ViewLogitsTerm" in terms, "DistancePreservationTerm" in terms]
        names = zip(("CE", "TR", "KD", "DP"), flags)
        losses[row.name] = "+".join(name for name, flag in names if flag)
    assert losses == {
        "task": "CE+TR",
        "task+KD": "CE+TR+KD",
        "task+DP": "CE+TR+DP",
        "KD+DP": "KD+DP",
        "CE+KD+DP": "CE+KD+DP",
        "TR+KD+DP": "TR+KD+DP",
        "all": "CE+TR+KD+DP",
    }
    study = study_of("--study", "views")
    views = {r.name: of(study, r.name).MODEL.REID_NETWORK.TRAIN_VIEWS for r in study.rows[1:]}
    assert views == {f"M={n}": n for n in (1, 2, 4, 8)}
    study = study_of("--study", "sources")
    sources = {row.name: of(study, row.name).REID_DATA.VIEWS.SOURCE for row in study.rows[1:]}
    assert sources == {
        "cameras": "cameras",
        "tracklets": "tracklets",
        "frames": "frames",
        "one tracklet": "tracklet",
    }
    study = study_of("--study", "logits")
    for name in ("kl", "mse"):
        assert of(study, name).DISTILLATION.VKD.LOGITS_DISTANCE == name
    study = study_of("--study", "starts")
    kept = [set(of(study, row.name).DISTILLATION.INIT_FROM_TEACHER) for row in study.rows[1:]]
    assert kept[0] == {"backbone", "neck", "classifier"}
    assert kept[1] == kept[2] == {"backbone"}
    assert of(study, "task, backbone kept").DISTILLATION.TERMS == []
    assert len(of(study, "all, backbone kept").DISTILLATION.TERMS) == 2
    assert kept[3] - kept[4] == {"backbone.res4"} and kept[4] < kept[3]


def test_student_of_several_studies_is_trained_once(study_of):
    studies = {name: study_of("--study", name) for name in STUDIES if name != "cross"}
    shared = {
        **{"terms": "all", "views": "M=2", "sources": "cameras"},
        **{"logits": "kl", "starts": "res5 reinitialized"},
    }
    same = [studies[name].runs[row, 2] for name, row in shared.items()]
    assert len({run.folder for run in same}) == 1
    assert all(settings_of(run.config) == settings_of(same[0].config) for run in same)
    other = study_of("--study", "views", "--opts", "MODEL.REID_NETWORK.TRAIN_VIEWS", "4").runs
    assert other["M=4", 1].folder == same[0].folder.parent / "seed1" != other["M=2", 1].folder
    folders = {r.folder for s in studies.values() for r in s.runs.values()}
    assert len(folders) == 2 * (8 + 3 + 3 + 1 + 4)


def test_overrides_reach_students_and_teachers_separately(study_of):
    opts = ["--opts", "SOLVER.BASE_LR", "0.01", "--teacher-opts", "MODEL.RESNETS.DEPTH", "34"]
    study = study_of("--rows", "teacher", "all", "--teacher-iterations", "60", *opts)
    student, teacher = study.runs["all", 1].config, study.first[0].config
    assert student.SOLVER.BASE_LR == 0.01 and student.MODEL.RESNETS.DEPTH == 18
    assert student.DISTILLATION.TEACHER.OPTS == ["MODEL.RESNETS.DEPTH", "34"]
    assert teacher.SOLVER.BASE_LR == 0.001 and teacher.MODEL.RESNETS.DEPTH == 34
    # 600 iterations with a warm-up of 60 become 60.
    assert teacher.SOLVER.MAX_ITER == 60 and teacher.SOLVER.WARMUP_ITERS == 6


def test_cross_students_start_from_their_own_stage_1(study_of):
    study = study_of("--set", "market_cross", "--study", "cross", "--own-iterations", "30")
    assert len(study.first) == 4 and study.layout.base == "own stage 1"
    teacher, own = study.runs["teacher", 2], study.runs["own stage 1", 2]
    assert teacher.config.MODEL.BACKBONE.NAME != own.config.MODEL.BACKBONE.NAME
    assert own.config.SOLVER.MAX_ITER == 30 != teacher.config.SOLVER.MAX_ITER
    learns_from = {"task": teacher, "self": own, "cross": teacher}
    for name, source in learns_from.items():
        cfg = study.runs[name, 2].config
        assert cfg.MODEL.WEIGHTS == str(own.weights) and not cfg.DISTILLATION.INIT_FROM_TEACHER
        assert cfg.DISTILLATION.TEACHER.WEIGHTS == str(source.weights)
        assert cfg.DISTILLATION.TEACHER.CONFIG_FILE == source.config_file
        assert bool(cfg.DISTILLATION.TERMS) == (name != "task")
    with pytest.raises(ValueError, match="cross.*market_cross"):
        study_of("--study", "cross")


def test_unknown_rows_are_refused(study_of):
    with pytest.raises(ValueError, match="--rows: 'M=2'.*task"):
        study_of("--rows", "M=2")


def test_table_of_finished_runs(study_of, tmp_path):
    study = study_of("--rows", "teacher", "all")
    for (row, seed), run in study.runs.items():
        finish(run, {"i2v_mAP": {"teacher": 40.0, "all": 42.0}[row] + seed, "v2v_mAP": 50.0})
    lines = study.write_table().splitlines()
    assert lines[2] == (
        "| row | i2v_mAP | v2v_mAP | i2v_mAP above teacher | 95 % over seeds | i2v_mAP by seed |"
    )
    assert lines[4] == "| teacher | 41.5 ± 0.7 | 50.0 ± 0.0 | - | - | 41.0, 42.0 |"
    assert lines[5] == "| all | 43.5 ± 0.7 | 50.0 ± 0.0 | +2.0 ± 0.0 | +2.0 to +2.0 | 43.0, 44.0 |"
    assert len(lines) == 6
    assert (tmp_path / "out" / "terms.png").exists()


def test_curves_over_frames_by_hand(tmp_path):
    curves = {
        "teacher": {1: {1: {"i2v_mAP": 10.0}, 2: {"i2v_mAP": 12.0}}, 4: {1: {"i2v_mAP": 20.0}}},
        "all": {1: {1: {"i2v_mAP": 30.0}}, 4: {1: {"i2v_mAP": 33.0}, 2: {"i2v_mAP": 33.0}}},
    }
    assert views.markdown(curves, [1, 4]).splitlines() == [
        "| i2v_mAP by frames | 1 | 4 |",
        "| --- | --- | --- |",
        "| teacher | 11.0 ± 1.4 | 20.0 |",
        "| all | 30.0 | 33.0 ± 0.0 |",
    ]
    views.draw(curves, [1, 4], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_curves_need_a_finished_run(study_of):
    with pytest.raises(ValueError, match="out has no finished run"):
        views.measure(study_of(), [1])


@pytest.mark.e2e
def test_teacher_and_student_from_nothing_and_their_curves(tmp_path, tracklets):
    small = ["MODEL.RESNETS.WIDTH_MULTIPLIER", "0.125", "REID_DATA.SIZE", "[64,32]"]
    small += ["REID_DATA.IDS_PER_BATCH", "4", "SOLVER.IMS_PER_BATCH", "8"]
    common = ["--set", "generated", "--output", str(tmp_path / "out"), "--seeds", "1"]
    common += ["--rows", "teacher", "all", "--iterations", "3", "--teacher-iterations", "3"]
    common += ["--opts", *small, "--teacher-opts", *small]

    def run(script, *more):
        return run_script("VKD", script, *common, *more, KD_SEARCH_TRACKLETS=str(tracklets))

    output = run("ablate")
    assert "[1/1] teacher, seed 1:" in output and "[2/2] all, seed 1:" in output
    log = (tmp_path / "out" / "all" / "seed1" / "log.txt").read_text()
    for loss in ("reid_cls", "reid_triplet", "view_logits", "distance_preservation"):
        assert f"loss_{loss}" in log
    copied = log.split("Initialised from the teacher:", 1)[1].split("\n[", 1)[0]
    assert "  backbone.res4." in copied and "  backbone.res5." not in copied
    content = json.loads((tmp_path / "out" / "terms.json").read_text())
    assert [entry["row"] for entry in content["table"]] == ["teacher", "all"]
    metrics = content["table"][1]["metrics"]
    assert list(metrics) == ["i2v_mAP", "i2v_top1", "v2v_mAP", "v2v_top1"]

    output = run("views", "--frames", "1", "4")
    assert "| i2v_mAP by frames | 1 | 4 |" in output
    curves = json.loads((tmp_path / "out" / "frames_terms.json").read_text())["curves"]
    # The ablation was evaluated with 4 frames.
    for name, value in metrics.items():
        assert curves["all"]["4"]["1"][name] == pytest.approx(value["mean"])
    known = tmp_path / "out" / "all" / "seed1" / "frames.json"
    before = known.stat().st_mtime_ns
    assert run("views", "--frames", "1", "4") == output
    assert known.stat().st_mtime_ns == before


@pytest.mark.e2e
def test_cross_student_with_settings_chosen_on_held_out_identities(tmp_path):
    crops = tmp_path / "crops"
    people = dataclasses.replace(TRACKLETS_PRESETS["tiny"], num_train_ids=15)
    generate_tracklets(crops, people, seed=0, progress=False)
    candidates = tmp_path / "candidates.yaml"
    candidates.write_text("default: [{SOLVER.BASE_LR: 0.01}]")
    small = ["REID_DATA.SIZE", "[64,32]", "REID_DATA.IDS_PER_BATCH", "4"]
    small += ["SOLVER.IMS_PER_BATCH", "8", "MODEL.RESNETS.WIDTH_MULTIPLIER", "0.125"]
    common = ["--set", "market_cross", "--study", "cross", "--output", tmp_path / "out"]
    common += ["--seeds", "1", "--candidates", candidates, "--rows", "own stage 1", "cross"]
    common += ["--iterations", "2", "--teacher-iterations", "2", "--own-iterations", "2"]
    teacher = [*small, "MODEL.TORCHVISION.WEIGHTS", ""]
    output = run_script(
        *("VKD", "ablate", *common, "--opts", *small, "--teacher-opts", *teacher),
        KD_SEARCH_MARKET_CROPS=str(crops),
    )
    assert "cross candidate1, seed 1:" in output and "cross, seed 1:" in output
    protocol = read_study(tmp_path / "out" / "cross.json").protocol
    assert [c.row for c in protocol.candidates] == ["cross"]
    facts = protocol.validation
    assert facts["of"] == "market1501_split_tracklets_train"
    assert facts["people"] > 1 and facts["queries"] > 0
    log = (tmp_path / "out/validation/cross/candidate1/seed1/log.txt").read_text()
    assert "market1501_split_tracklets_train_val" in log
