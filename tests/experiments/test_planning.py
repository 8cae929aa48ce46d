"""From options to runs: what a teacher and its students are trained with."""

from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg
from tiny import REPO

from kd_search.experiments import (
    Networks,
    Row,
    StudyParser,
    build_run_config,
    choose_rows,
    config_value,
    schedule,
    student_arch,
    student_runs,
    study_metadata,
    teacher_run,
)

SETS = {
    "small": Networks(
        "projects/DetectorKD/configs/objects/student_r18w25_fpn64_distilled.yaml",
        "projects/DetectorKD/configs/objects/teacher_r18_fpn64.yaml",
    ),
    "other": Networks("student.yaml", "teacher.yaml"),
}


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch):
    monkeypatch.chdir(REPO)


def options(*argv):
    parser = StudyParser("What it does.\n\n    as it stands", SETS, ["a", "b"], "output/somewhere")
    return parser.parse_args(list(map(str, argv)))


def test_options_have_defaults_that_depend_on_the_set():
    args = options()
    assert args.seeds == [1, 2, 3] and args.jobs == 1 and args.rows == [] and not args.on_train
    assert (args.student_config, args.teacher_config) == (
        SETS["small"].student,
        SETS["small"].teacher,
    )
    assert args.output == Path("output/somewhere/ablation_small")
    args = options("--set", "other", "--teacher-config", "mine.yaml", "--output", "there")
    assert (args.student_config, args.teacher_config) == ("student.yaml", "mine.yaml")
    assert args.output == Path("there")


@pytest.mark.parametrize(
    "argv, option",
    [
        (["--opts", "A"], "--opts"),
        (["--teacher-opts", "A", "B", "C"], "--teacher-opts"),
        (["--jobs", "0"], "--jobs"),
    ],
)
def test_wrong_options_are_usage_errors(argv, option, capsys):
    with pytest.raises(SystemExit):
        options(*argv)
    assert f"error: {option} must be" in capsys.readouterr().err


def test_the_architecture_of_a_student_is_that_beneath_the_distiller(tmp_path):
    distilled = build_run_config(SETS["small"].student, [], tmp_path)
    assert distilled.MODEL.META_ARCHITECTURE == "Distiller"
    arch = student_arch(distilled)
    plain = ["MODEL.META_ARCHITECTURE", arch]
    assert arch == student_arch(build_run_config(SETS["small"].student, plain, tmp_path))
    assert arch == "GeneralizedRCNN"


def test_a_teacher_has_its_own_options_after_those_of_the_study(tmp_path):
    args = options(
        "--output", tmp_path, "--teacher-iterations", 10, "--teacher-opts", "SOLVER.BASE_LR", "2.0"
    )
    run = teacher_run(args, 5, name="big", folder="big", opts=["SOLVER.BASE_LR", 1.0])
    assert run.config.SEED == 5 and run.config.SOLVER.BASE_LR == 2.0
    assert run.config.SOLVER.MAX_ITER == 10 and run.folder == tmp_path / "big"
    assert study_metadata(args)["teacher_overrides"] == ["SOLVER.BASE_LR", "2.0"]


def test_students_run_seed_by_seed_and_options_win(tmp_path):
    args = options("--output", tmp_path, "--seeds", 3, 4, "--opts", "SOLVER.BASE_LR", "2.0")
    cfg = build_run_config(args.student_config, args.opts, tmp_path)
    runs = student_runs(
        args,
        cfg,
        [Row("a"), Row("b")],
        lambda row, seed: ["SOLVER.BASE_LR", 1.0, "SOLVER.MOMENTUM", seed / 10],
        folder_of=lambda row: f"in_{row.name}",
        iterations=8,
    )
    assert list(runs) == [("a", 3), ("b", 3), ("a", 4), ("b", 4)]
    run = runs["b", 4]
    assert run.folder == tmp_path / "in_b/seed4" and run.config.SOLVER.MAX_ITER == 8
    solver = run.config.SOLVER
    assert (solver.BASE_LR, solver.MOMENTUM, run.config.SEED) == (2.0, 0.4, 4)


def test_schedule_scales_with_the_iterations():
    cfg = get_cfg()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = 100, (50, 90), 20
    assert schedule(cfg, None) == []
    shorter = schedule(cfg, 10)
    assert shorter == ["SOLVER.MAX_ITER", 10, "SOLVER.STEPS", (5, 9), "SOLVER.WARMUP_ITERS", 2]
    # A longer training needs no longer warm-up.
    assert schedule(cfg, 1000)[-1] == 20


def test_a_row_of_terms_names_them_and_the_teacher():
    args = options("--teacher-config", "t.yaml", "--teacher-opts", "A", "1")
    row = Row("pair", {"DISTILLATION.DKD.MARGIN": 0.2}, terms=("PairRelationTerm",))
    opts = row.student_opts("Net", args, "t.pth", "REID_TEACHER")
    assert dict(zip(opts[::2], opts[1::2])) == {
        "MODEL.META_ARCHITECTURE": "Distiller",
        "DISTILLATION.STUDENT_META_ARCH": "Net",
        "DISTILLATION.TERMS": ["PairRelationTerm"],
        "DISTILLATION.REID_TEACHER.CONFIG_FILE": "t.yaml",
        "DISTILLATION.REID_TEACHER.WEIGHTS": "t.pth",
        "DISTILLATION.REID_TEACHER.OPTS": ["A", "1"],
        "DISTILLATION.DKD.MARGIN": 0.2,
    }
    assert Row("alone").student_opts("Net", args, "t.pth") == ["MODEL.META_ARCHITECTURE", "Net"]


def test_rows_that_change_nothing():
    cfg = CfgNode({"A": {"B": 1, "C": [2]}})
    assert not Row("same", {"A.B": 1, "A.C": [2]}).changes(cfg) and not Row("nothing").changes(cfg)
    other = Row("other", {"A.B": 1, "A.C": [3]})
    assert other.changes(cfg) and other.opts() == ["A.B", 1, "A.C", [3]]
    assert config_value(cfg, "A.C") == [2] and config_value(cfg, "A") == cfg.A
    assert config_value(cfg, "A.D") is None and config_value(cfg, "A.B.C") is None


def test_rows_are_chosen_in_the_order_of_the_table():
    rows = [Row(name) for name in ("base", "L2", "all")]
    assert [row.name for row in choose_rows(rows, ["all", "base"])] == ["base", "all"]
    assert choose_rows(rows, []) == rows
    with pytest.raises(ValueError, match="--rows: 'L3' .* base, L2, all"):
        choose_rows(rows, ["base", "L3"])
