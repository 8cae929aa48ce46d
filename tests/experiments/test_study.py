"""A study from teachers to table, with runs that replace trainings."""

import argparse
import json
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from tiny import REPO

import kd_search.experiments.runs
from kd_search.experiments import (
    Networks,
    Row,
    Study,
    StudyParser,
    TableLayout,
    read_study,
    run_study,
)
from tests.experiments.fake_runs import fake, starts

CFG = CfgNode({"DATASETS": {"TEST": ("somewhere",), "TRAIN": ("elsewhere",)}})


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch):
    monkeypatch.chdir(REPO)
    monkeypatch.setattr(kd_search.experiments.runs, "_POLL_SECONDS", 0.05)


def options(folder: Path, *more: str) -> argparse.Namespace:
    parser = StudyParser("", {"x": Networks("s.yaml", "t.yaml")}, [], "output/x")
    return parser.parse_args(["--opts", "A", "1", "--output", str(folder), *more])


def study(folder: Path, teacher="9", **values) -> Study:
    values = values or {"base": "3", "all": "5"}
    args = options(folder)
    return Study(
        args,
        CFG,
        [Row(name) for name in values],
        {(name, 1): fake(folder / name, value) for name, value in values.items()},
        TableLayout(),
        teachers={"the teacher": fake(folder / "teacher", teacher)},
        metadata={"fact": 1},
        below=lambda table: f"{len(table)} lines\n",
    )


def run(make_study) -> int:
    return run_study(make_study, options(Path()))


def test_teachers_then_students_then_the_table(tmp_path, capsys):
    assert run(lambda args: study(tmp_path)) == 0
    output = capsys.readouterr().out
    assert output.index("teacher: AP 9.0") < output.index("base: AP 3.0")
    assert "| all | 5.0 | +2.0 | 5.0 |\n\n3 lines" in output
    content = json.loads((tmp_path / "ablation.json").read_text())
    assert content["dataset"] == "somewhere" and content["fact"] == 1
    assert content["student_config"] == "s.yaml" and content["overrides"] == ["A", "1"]
    assert content["teachers"]["the teacher"]["metrics"] == {"AP": 9.0}
    assert [run["row"] for run in content["runs"]] == ["base", "all"]
    assert content["title"] == "AP on somewhere"
    assert content["table"][2]["metrics"]["AP"]["seeds"] == {"1": 5.0}
    assert (tmp_path / "ablation.md").read_text().startswith("AP on somewhere\n\n| row |")
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_is_named_after_its_data_set_only(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("kd_search.experiments.study.draw", lambda *args: drawn.append(args[-1]))
    assert run(lambda args: study(tmp_path)) == 0
    assert set(drawn) == {"somewhere"}


def test_nothing_finished_is_no_error(tmp_path):
    empty = study(tmp_path)
    assert "no run" in empty.write_table() == (tmp_path / "ablation.md").read_text()
    assert not (tmp_path / "ablation.png").exists()


def test_no_student_without_its_teacher(tmp_path, capsys):
    broken = study(tmp_path, teacher="fail")
    assert run(lambda args: broken) == 2
    assert "error: teacher: error: the reason" in capsys.readouterr().err
    assert [starts(run) for run in broken.runs.values()] == [0, 0]


def test_failed_students_are_listed_at_the_end(tmp_path, capsys):
    assert run(lambda args: study(tmp_path, base="fail", all="5")) == 1
    captured = capsys.readouterr()
    assert "| all | 5.0 |" in captured.out and "failed: base: error: the reason" in captured.err


def test_wrong_options_are_one_line(capsys):
    def make(args):
        raise ValueError("--rows: 'x'")

    assert run(make) == 2
    assert capsys.readouterr().err == "error: --rows: 'x'\n"


def test_numbers_on_training_images_have_a_table_of_their_own(tmp_path):
    some = study(tmp_path, base="3")
    some.teachers = {}
    some.runs["base", 1].result = lambda: {"metrics": {"AP": 3.0}, "train_metrics": {"AP": 70.0}}
    some.write_table()
    assert "70.0" not in (tmp_path / "ablation.md").read_text()
    text = (tmp_path / "on_train" / "ablation.md").read_text()
    assert text.startswith("AP on elsewhere\n") and "| base | 70.0 |" in text


def recorded(folder: Path, results: Path, weight="", **values) -> Study:
    """A study that writes to ``results``; ``weight`` is an override of each run."""
    made = study(folder, **values)
    for run in [*made.runs.values(), *made.teachers.values()]:
        run.opts = ["SOLVER.GAMMA", weight] if weight else []
    made.args = options(folder, "--results", str(results))
    return made


def test_a_study_goes_on_from_its_results_file_alone(tmp_path, capsys):
    results = tmp_path / "kept.json"
    assert run(lambda args: recorded(tmp_path / "first", results, base="3")) == 0
    before = read_study(results)
    made = recorded(tmp_path / "second", results, base="7", all="5")
    assert run(lambda args: made) == 0
    after = read_study(results)
    assert [(r.row, r.metrics["AP"]) for r in after.runs] == [("base", 3.0), ("all", 5.0)]
    assert after.runs[0] == before.runs[0] and after.protocol == before.protocol
    assert [starts(run) for run in made.runs.values()] == [0, 1]
    # Nothing is left to do: neither is its teacher trained.
    again = recorded(tmp_path / "third", results, base="7", all="5")
    assert run(lambda args: again) == 0
    assert read_study(results).runs == after.runs
    assert read_study(results).teachers == after.teachers
    assert {starts(run) for run in again.all_runs()} == {0}


def test_recorded_runs_of_other_settings_are_run_again(tmp_path):
    results = tmp_path / "kept.json"
    assert run(lambda args: recorded(tmp_path / "first", results, base="3")) == 0
    assert run(lambda args: recorded(tmp_path / "second", results, "0.5", base="7")) == 0
    assert [r.metrics["AP"] for r in read_study(results).runs] == [7.0]


def test_a_command_that_would_drop_recorded_runs_is_refused(tmp_path, capsys):
    results = tmp_path / "kept.json"
    assert run(lambda args: recorded(tmp_path / "first", results, base="3", all="5")) == 0
    before = results.read_bytes()
    less = recorded(tmp_path / "second", results, base="3")
    assert run(lambda args: less) == 2
    error = capsys.readouterr().err
    assert f"{results} has runs that this command leaves out ('all' seed 1)" in error
    assert "--rows" in error and starts(less.runs["base", 1]) == 0
    assert results.read_bytes() == before


def test_recorded_runs_with_another_teacher_are_refused(tmp_path, capsys):
    results = tmp_path / "kept.json"
    assert run(lambda args: recorded(tmp_path / "first", results, base="3")) == 0
    made = recorded(tmp_path / "second", results, teacher="8", base="7", all="5")
    assert run(lambda args: made) == 2
    error = capsys.readouterr().err
    assert str(results) in error and "'the teacher'" in error and "--results" in error
    assert starts(made.runs["all", 1]) == 0
