"""The ablation of projects/DetectorKD: rows, runs, the table, two rows from nothing."""

import json
import shlex

import pytest
from detectron2.config import get_cfg
from tiny import REPO

from kd_search import add_kd_search_config
from kd_search.experiments import RESULT_FILE, choose_rows
from kd_search.synthetic import PRESETS, generate_dataset
from tests.projects.project_files import finish, load_script, run_script

ablate = load_script("DetectorKD", "ablate")
ROWS = ablate.ROWS


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
            finish(run, {"AP50": {"base": 40.0, "L2": 39.0}[row] + seed})
    text = study.write_table()
    assert "| base | 41.5 ± 0.7 | - | 41.0, 42.0 |" in text
    assert "| L2 | 40.0 | -1.0 | 40.0 |" in text
    assert len(json.loads((tmp_path / "ablation.json").read_text())["runs"]) == 3


def test_bad_input_is_one_line(tmp_path, capsys):
    assert ablate.main(["--output", str(tmp_path), "--rows", "all", "L3"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --rows: 'L3'")


def test_rows_are_those_of_the_paper():
    table_4 = {row.name: row.paper for row in ROWS if row.paper}
    assert table_4 == {
        "base": (54.7, 49.3),
        "L2": (54.6, 48.5),
        "L2-B": (55.9, 50.1),
        "CLS": (57.4, 50.8),
        "CLS-W": (57.7, 51.3),
        "Hints": (56.9, 50.3),
        "Hints-A": (58.0, 52.1),
        "L2-B+CLS-W": (58.4, 51.7),
        "all": (59.4, 53.7),
    }


def config_of(name, arch="GeneralizedRCNN"):
    cfg = get_cfg()
    add_kd_search_config(cfg)
    (row,) = choose_rows(ROWS, [name])
    args = ablate.parse_args(["--teacher-config", "teacher.yaml"])
    # As text, the way they reach a run.
    cfg.merge_from_list([str(x) for x in row.student_opts(arch, args, "teacher.pth")])
    return cfg


def test_rows_set_what_they_are_named_after():
    base = config_of("base")
    assert base.MODEL.META_ARCHITECTURE == "GeneralizedRCNN" and not base.DISTILLATION.TERMS
    l2, bounded = config_of("L2").DISTILLATION, config_of("L2-B").DISTILLATION
    assert l2.BOUNDED_REGRESSION.KIND == "l2" and bounded.BOUNDED_REGRESSION.KIND == "bounded"
    assert l2.TERMS == bounded.TERMS == ["RegionRegressionTerm", "AnchorRegressionTerm"]
    cls, weighted = config_of("CLS").DISTILLATION, config_of("CLS-W").DISTILLATION
    assert cls.SOFT_LABELS.BACKGROUND_WEIGHT == 1.0
    assert weighted.SOFT_LABELS.BACKGROUND_WEIGHT == 1.5
    assert not config_of("Hints").DISTILLATION.HINT.ADAPTATION
    everything = config_of("all")
    assert everything.MODEL.META_ARCHITECTURE == "Distiller"
    assert len(everything.DISTILLATION.TERMS) == 5
    assert everything.DISTILLATION.HINT.ADAPTATION
    assert everything.DISTILLATION.TEACHER.WEIGHTS == "teacher.pth"


def test_one_stage_students_have_no_region_terms():
    terms = config_of("all", "RetinaNet").DISTILLATION.TERMS
    assert terms == ["AnchorRegressionTerm", "AnchorClassTerm", "HintTerm"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """``run(folder, *options)`` of the tiny set, a folder in which two rows were trained, and what
    was printed."""
    folder = tmp_path_factory.mktemp("study")
    generate_dataset(folder / "data", PRESETS["tiny"], seed=0, progress=False)

    def run(output, *options):
        places = ["--output", output, "--results", output.with_suffix(".json")]
        environment = {"KD_SEARCH_GENERATED": str(folder / "data")}
        return run_script("DetectorKD", "ablate", *options, *places, **environment)

    opts = ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.CHECKPOINT_PERIOD", "2"]
    options = ["--rows", "base", "all", "--seeds", 1, "--on-train"]
    options += ["--iterations", 3, "--teacher-iterations", 3, "--opts", *opts]
    options += ["--teacher-opts", *opts]
    return run, folder / "out", run(folder / "out", *options), options


@pytest.mark.e2e
def test_two_rows_from_nothing_and_again(trained):
    run, out, output, options = trained
    assert "[1/1] teacher:" in output and "[2/2] all, seed 1:" in output
    log = (out / "all" / "seed1" / "log.txt").read_text()
    for loss in ("region_soft", "anchor_soft", "region_bounded", "anchor_bounded", "hint"):
        assert f"loss_{loss}" in log
    content = json.loads((out / "ablation.json").read_text())
    assert [entry["row"] for entry in content["table"]] == ["teacher", "base", "all"]
    assert content["runs"][0]["params"] == content["runs"][1]["params"]
    assert content["runs"][0]["train_metrics"].keys() == {"AP", "AP50", "AP75"}
    # One result less: that run alone is taken up again, from its last checkpoint.
    results = {p: p.stat().st_mtime_ns for p in out.rglob(RESULT_FILE)}
    assert len(results) == 3
    lost = out / "base" / "seed1" / RESULT_FILE
    lost.unlink()
    # A results file has all that a study needs of its runs.
    out.with_suffix(".json").unlink()
    output = run(out, *options)
    assert "1 of 2 runs were done before" in output and "[2/2] base, seed 1:" in output
    assert {p for p, t in results.items() if p.stat().st_mtime_ns != t} == {lost}
    again = json.loads((out / "ablation.json").read_text())
    assert again["table"] == content["table"]


@pytest.mark.e2e
def test_a_study_from_its_recorded_command_has_the_same_numbers(trained, tmp_path):
    run, out, _, _ = trained
    first = json.loads(out.with_suffix(".json").read_text())
    python, script, *recorded = shlex.split(first["command"])
    assert (python, script) == ("python", "projects/DetectorKD/ablate.py")
    run(tmp_path / "second", *recorded)
    second = json.loads((tmp_path / "second.json").read_text())
    assert second["command"] == first["command"]
    for before, after in zip(first["runs"], second["runs"]):
        for key in ("row", "seed", "metrics", "config_file", "opts"):
            assert after[key] == before[key]
    base = [study["runs"][0]["config_sha256"] for study in (first, second)]
    assert base[0] == base[1]
    assert first["environments"][0]["data"] == second["environments"][0]["data"]
