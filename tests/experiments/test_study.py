"""A study from teachers to table, with runs that stand in for trainings."""

import argparse
import json
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from tiny import REPO

import kd_search.experiments.runs
from kd_search.experiments import (
    Row,
    Study,
    TableLayout,
    add_run_options,
    carry_out,
    check_run_options,
    schedule,
)
from tests.experiments.fake_runs import fake, starts


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch):
    monkeypatch.chdir(REPO)
    monkeypatch.setattr(kd_search.experiments.runs, "_POLL_SECONDS", 0.05)


def study(tmp_path, teacher="9", **values) -> Study:
    values = values or {"base": "3", "all": "5"}
    return Study(
        rows=[Row(name) for name in values],
        runs={(name, 1): fake(tmp_path / name, value) for name, value in values.items()},
        layout=TableLayout(),
        output=tmp_path,
        dataset="somewhere",
        teachers={"the teacher": fake(tmp_path / "teacher", teacher)},
        facts={"fact": 1},
        below=lambda table: f"{len(table)} lines\n",
    )


def test_teachers_then_students_then_the_table(tmp_path, capsys):
    done = study(tmp_path)
    assert carry_out(lambda: done, jobs=1) == 0
    output = capsys.readouterr().out
    assert output.index("teacher: AP 9.0") < output.index("base: AP 3.0")
    assert "| all | 5.0 | +2.0 | 5.0 |" in output and "3 lines" in output
    content = json.loads((tmp_path / "ablation.json").read_text())
    assert content["dataset"] == "somewhere" and content["fact"] == 1
    assert content["teachers"]["the teacher"]["metrics"] == {"AP": 9.0}
    assert [run["row"] for run in content["runs"]] == ["base", "all"]
    assert content["title"] == "AP on somewhere"


def test_no_student_without_its_teacher(tmp_path, capsys):
    broken = study(tmp_path, teacher="fail")
    assert carry_out(lambda: broken, jobs=1) == 2
    assert "error: teacher: error: the reason" in capsys.readouterr().err
    assert [starts(run) for run in broken.runs.values()] == [0, 0]


def test_failed_students_are_told_at_the_end(tmp_path, capsys):
    assert carry_out(lambda: study(tmp_path, base="fail", all="5"), jobs=1) == 1
    captured = capsys.readouterr()
    assert "| all | 5.0 |" in captured.out and "failed: base: error: the reason" in captured.err


def test_wrong_options_are_one_line(capsys):
    def make():
        raise ValueError("--rows: 'x'")

    assert carry_out(make, jobs=1) == 2
    assert capsys.readouterr().err == "error: --rows: 'x'\n"


def test_numbers_on_training_images_have_a_table_of_their_own(tmp_path):
    run = fake(tmp_path / "base", "3")
    some = study(tmp_path, base="3")
    some.teachers, some.runs = {}, {("base", 1): run}
    some.train_dataset = "elsewhere"
    run.result = lambda: {"metrics": {"AP": 3.0}, "train_metrics": {"AP": 70.0}}
    some.write_table()
    assert "70.0" not in (tmp_path / "ablation.md").read_text()
    text = (tmp_path / "on_train" / "ablation.md").read_text()
    assert text.startswith("AP on elsewhere\n") and "| base | 70.0 |" in text


def parser():
    parser = argparse.ArgumentParser()
    add_run_options(parser, ["base", "all"], "output/somewhere")
    return parser


def test_options():
    args = parser().parse_args([])
    assert args.seeds == [1, 2, 3] and args.jobs == 1 and args.rows == [] and args.output is None
    args = parser().parse_args(["--opts", "A", "1", "--output", "there", "--rows", "all"])
    check_run_options(parser(), args)
    assert args.opts == ["A", "1"] and args.output == Path("there") and args.rows == ["all"]


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--opts", "A"], "--opts must be pairs"),
        (["--teacher-opts", "A", "B", "C"], "--teacher-opts must be pairs"),
        (["--jobs", "0"], "--jobs must be at least 1"),
    ],
)
def test_options_that_cannot_be(argv, message, capsys):
    with pytest.raises(SystemExit):
        check_run_options(parser(), parser().parse_args(argv))
    assert message in capsys.readouterr().err


def test_schedule_scales_with_the_iterations():
    cfg = get_cfg()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = 100, (50, 90), 20
    assert schedule(cfg, None) == []
    shorter = schedule(cfg, 10)
    assert shorter == ["SOLVER.MAX_ITER", 10, "SOLVER.STEPS", (5, 9), "SOLVER.WARMUP_ITERS", 2]
    # A longer training needs no longer warm-up.
    assert schedule(cfg, 1000)[-1] == 20
