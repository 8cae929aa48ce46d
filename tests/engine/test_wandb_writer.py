"""The writer to Weights & Biases, with a stub of its package."""

import json
import sys
import types

import pytest

from kd_search.config.ranges import check_ranges
from kd_search.engine.writers import WANDB_RUN_FILE, WandbWriter
from tests.engine.toy import ToyTrainer, read_metrics, start_script, toy_cfg, trained


class StubRun:
    def __init__(self, options):
        self.options, self.rows, self.finished = options, [], 0

    def log(self, scalars, step):
        self.rows.append((step, scalars))

    def finish(self):
        self.finished += 1


@pytest.fixture
def runs(monkeypatch):
    """The runs that were started, in order, with a stub in place of wandb."""
    started = []
    stub = types.ModuleType("wandb")

    def init(**options):
        started.append(StubRun(options))
        return started[-1]

    stub.init = init
    monkeypatch.setitem(sys.modules, "wandb", stub)
    return started


def cfg_of(folder, *overrides):
    return toy_cfg(folder, "WANDB.ENABLED", True, "SOLVER.MAX_ITER", 45, *overrides)


def test_run_gets_config_and_every_line_of_the_metrics_file(runs, tmp_path):
    options = ("WANDB.PROJECT", "p", "WANDB.ENTITY", "e", "WANDB.MODE", "offline")
    trained(ToyTrainer, cfg_of(tmp_path / "out", *options))
    (run,) = runs
    assert {key: run.options[key] for key in ("project", "entity", "name", "mode")} == {
        **{"project": "p", "entity": "e", "name": "out", "mode": "offline"}
    }
    assert run.options["dir"] == str(tmp_path / "out")
    assert run.options["config"]["SOLVER"]["MAX_ITER"] == 45
    json.dumps(run.options["config"])
    steps = [step for step, _ in run.rows]
    assert steps == sorted(steps) and {19, 39, 44} <= set(steps)
    logged = {step: scalars for step, scalars in run.rows}
    for line in read_metrics(tmp_path / "out"):
        assert logged[line["iteration"]]["total_loss"] == line["total_loss"]
    assert run.finished == 1


def test_resumed_training_continues_its_run_and_a_new_one_does_not(runs, tmp_path):
    trained(ToyTrainer, cfg_of(tmp_path, "SOLVER.MAX_ITER", 20))
    trained(ToyTrainer, cfg_of(tmp_path))
    trained(ToyTrainer, cfg_of(tmp_path), resume=False)
    first, second, third = (run.options["id"] for run in runs)
    assert first == second != third
    assert [run.options["resume"] for run in runs] == ["allow"] * 3
    assert (tmp_path / WANDB_RUN_FILE).read_text() == third
    assert min(step for step, _ in runs[1].rows) >= 20


def test_defaults_leave_the_choice_to_the_account_and_the_environment(runs, tmp_path):
    WandbWriter(cfg_of(tmp_path)).start(resumed=False)
    assert runs[0].options["entity"] is None and runs[0].options["mode"] is None


def test_off_by_default(runs, tmp_path):
    trained(ToyTrainer, toy_cfg(tmp_path))
    assert not runs and not (tmp_path / WANDB_RUN_FILE).exists()


def test_missing_package_and_failing_start_are_one_line(runs, tmp_path, monkeypatch):
    writer = WandbWriter(cfg_of(tmp_path))

    def refuse(**options):
        raise RuntimeError("no\nkey")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(ValueError, match="no key.*WANDB.MODE") as error:
        writer.start(resumed=False)
    assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="WANDB.ENABLED.*pip install wandb"):
        writer.start(resumed=False)
    writer.close()


def test_unknown_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match="WANDB.MODE 'later'"):
        check_ranges(cfg_of(tmp_path, "WANDB.MODE", "later"))


@pytest.mark.parametrize("installed", [True, False])
def test_of_two_ranks_one_starts_a_run_and_both_end_without_the_package(
    installed, tmp_path, monkeypatch
):
    module = (
        "import types\n"
        "def init(**options):\n"
        f"    with open({str(tmp_path / 'started')!r}, 'a') as f: f.write('run ')\n"
        "    return types.SimpleNamespace(log=lambda *a, **k: 0, finish=lambda: 0)\n"
    )
    (tmp_path / "wandb.py").write_text(module if installed else "raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    flags = ["--num-gpus", "2", "--dist-url", "auto"]
    process = start_script("toy.py", {}, *flags, str(tmp_path / "out"), "WANDB.ENABLED", "True")
    output, _ = process.communicate(timeout=200)
    if installed:
        assert process.returncode == 0, output
        assert (tmp_path / "started").read_text() == "run "
    else:
        assert process.returncode == 2, output
        assert "pip install wandb" in output and "Traceback" not in output
