"""From options to runs: what a teacher and its students are trained with."""

import pytest
from tiny import REPO

from kd_search.experiments import (
    Networks,
    Row,
    TermsRow,
    add_network_options,
    add_run_options,
    build_run_config,
    check_run_options,
    facts_of,
    fill_in_set,
    student_arch,
    student_runs,
    study_parser,
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


def options(tmp_path, *argv):
    parser = study_parser("What it does.\n\n    as it stands")
    add_network_options(parser, SETS, "small")
    add_run_options(parser, ["a", "b"], "output/somewhere")
    args = parser.parse_args(["--output", str(tmp_path), *argv])
    check_run_options(parser, args)
    fill_in_set(args, SETS, "output/somewhere")
    return args


def test_the_set_stands_for_what_was_not_given(tmp_path):
    args = options(tmp_path, "--teacher-config", "mine.yaml")
    assert (args.student_config, args.teacher_config) == (SETS["small"].student, "mine.yaml")
    assert args.output == tmp_path
    args.output = None
    fill_in_set(args, SETS, "output/somewhere")
    assert str(args.output) == "output/somewhere/ablation_small"


def test_the_architecture_of_a_student_is_that_beneath_the_distiller(tmp_path):
    distilled = build_run_config(SETS["small"].student, [], tmp_path)
    assert distilled.MODEL.META_ARCHITECTURE == "Distiller"
    arch = student_arch(distilled)
    plain = ["MODEL.META_ARCHITECTURE", arch]
    assert arch == student_arch(build_run_config(SETS["small"].student, plain, tmp_path))
    assert arch == "GeneralizedRCNN"


def test_a_teacher_has_its_own_options_after_those_of_the_study(tmp_path):
    args = options(
        tmp_path, "--teacher-iterations", "10", "--teacher-opts", "SOLVER.BASE_LR", "2.0"
    )
    run = teacher_run(args, 5, name="big", folder="big", opts=["SOLVER.BASE_LR", 1.0])
    assert run.config.SEED == 5 and run.config.SOLVER.BASE_LR == 2.0
    assert run.iterations == 10 and run.folder == tmp_path / "big"
    assert facts_of(args)["teacher_overrides"] == ["SOLVER.BASE_LR", "2.0"]


def test_students_run_seed_by_seed_and_options_win(tmp_path):
    args = options(tmp_path, "--seeds", "3", "4", "--opts", "SOLVER.BASE_LR", "2.0")
    cfg = build_run_config(args.student_config, args.opts, tmp_path)
    rows = [Row("a"), Row("b")]
    runs = student_runs(
        args,
        cfg,
        rows,
        lambda row, seed: ["SOLVER.BASE_LR", 1.0, "SOLVER.MOMENTUM", seed / 10],
        folder_of=lambda row: f"in_{row.name}",
        iterations=8,
    )
    assert list(runs) == [("a", 3), ("b", 3), ("a", 4), ("b", 4)]
    run = runs["b", 4]
    assert run.folder == tmp_path / "in_b/seed4" and run.iterations == 8
    solver = run.config.SOLVER
    assert (solver.BASE_LR, solver.MOMENTUM, run.config.SEED) == (2.0, 0.4, 4)


def test_a_row_of_terms_names_them_and_the_teacher():
    row = TermsRow("pair", {"DISTILLATION.DKD.MARGIN": 0.2}, terms=("PairRelationTerm",))
    opts = row.student_opts("Net", "t.yaml", "t.pth", ["A", "1"], teacher="REID_TEACHER")
    assert dict(zip(opts[::2], opts[1::2])) == {
        "MODEL.META_ARCHITECTURE": "Distiller",
        "DISTILLATION.STUDENT_META_ARCH": "Net",
        "DISTILLATION.TERMS": ["PairRelationTerm"],
        "DISTILLATION.REID_TEACHER.CONFIG_FILE": "t.yaml",
        "DISTILLATION.REID_TEACHER.WEIGHTS": "t.pth",
        "DISTILLATION.REID_TEACHER.OPTS": ["A", "1"],
        "DISTILLATION.DKD.MARGIN": 0.2,
    }
    alone = TermsRow("alone").student_opts("Net", "t.yaml", "t.pth")
    assert alone == ["MODEL.META_ARCHITECTURE", "Net"]
