"""Runs side by side: finished ones stay, stopped ones are resumed, failures are reported."""

import json
import os
import signal
import threading
import time

import pytest
from tiny import REPO

import kd_search.experiments.runs
from kd_search.experiments import (
    SETTINGS_FILE,
    RunFailed,
    SettingsError,
    iterations_done,
    run_all,
    settings_of,
)
from kd_search.utils.files import write_json
from tests.experiments.fake_runs import fake, starts


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch):
    monkeypatch.chdir(REPO)
    monkeypatch.setattr(kd_search.experiments.runs, "_POLL_SECONDS", 0.05)


def test_finished_runs_are_not_run_again(tmp_path):
    runs = [fake(tmp_path / name, "7") for name in ("a", "b")]
    seen = []
    assert run_all(runs[:1], after_each=lambda: seen.append(1)) == []
    assert run_all(runs, jobs=2, after_each=lambda: seen.append(1)) == []
    assert [starts(run) for run in runs] == [1, 1] and len(seen) == 2
    assert runs[0].result()["metrics"] == {"AP": 7.0}


def test_a_run_waits_for_the_one_whose_weights_it_starts_with(tmp_path):
    first, third = fake(tmp_path / "a", "7"), fake(tmp_path / "c", "7")
    second = fake(tmp_path / "b", "7", "MODEL.WEIGHTS", str(first.weights))
    began = []
    run_all([first, second, third], jobs=2, after_each=lambda: began.append(starts(second)))
    assert began[0] == 0 and [starts(run) for run in (first, second, third)] == [1, 1, 1]


def test_other_settings_in_the_folder_are_refused(tmp_path):
    run_all([fake(tmp_path / "a", "7")])
    with pytest.raises(SettingsError, match="SOLVER.BASE_LR '0.001'.*'0.5'"):
        run_all([fake(tmp_path / "a", "7", "SOLVER.BASE_LR", 0.5)])


def test_keys_of_another_version_of_the_code_do_not_matter(tmp_path):
    run = fake(tmp_path / "a", "7")
    run_all([run])
    settings = json.loads((run.folder / SETTINGS_FILE).read_text())
    del settings["SOLVER.BASE_LR"]
    settings["SOLVER.OLD_KEY"] = "3"
    write_json(run.folder / SETTINGS_FILE, settings)
    assert run.result() is not None


def test_settings_hold_all_but_the_folder(tmp_path):
    one, other = fake(tmp_path / "a", "1"), fake(tmp_path / "b", "1")
    assert settings_of(one.config) == settings_of(other.config)
    changed = fake(tmp_path / "a", "1", "SEED", 5)
    assert settings_of(one.config) != settings_of(changed.config)


@pytest.mark.parametrize(
    "key",
    [
        "MODEL.WEIGHTS",
        "MODEL.TORCHVISION.WEIGHTS",
        "DISTILLATION.TEACHER.WEIGHTS",
        "DISTILLATION.REID_TEACHER.WEIGHTS",
        "DISTILLATION.ID_TABLE.PATH",
        "MODEL.TWO_STEP.REID.WEIGHTS",
    ],
)
def test_other_content_of_a_file_makes_other_settings(tmp_path, key):
    weights = tmp_path / "weights.pth"
    arch = "TwoStepSearch" if "TWO_STEP" in key else "Distiller"
    opts = ["MODEL.META_ARCHITECTURE", arch, key, str(weights)]
    opts += ["DISTILLATION.STUDENT_META_ARCH", "GeneralizedRCNN"]
    weights.write_bytes(b"one")
    before = settings_of(fake(tmp_path / "a", "1", *opts).config)
    weights.write_bytes(b"two")
    after = settings_of(fake(tmp_path / "a", "1", *opts).config)
    assert [name for name in after if after[name] != before[name]] == [f"sha256 of {key}"]


def test_failures_are_reported_and_the_rest_goes_on(tmp_path):
    runs = [fake(tmp_path / "bad", "fail"), fake(tmp_path / "good", "3")]
    (line,) = run_all(runs)
    assert "the reason" in line and str(tmp_path / "bad" / "log.txt") in line
    assert runs[1].result() is not None
    with pytest.raises(RunFailed, match="the reason"):
        run_all(runs[:1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_every_run(tmp_path, number):
    runs = [fake(tmp_path / name, "hang") for name in ("a", "b", "c")]

    def interrupt():
        while not all((run.folder / "ready").exists() for run in runs[:2]):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_all(runs, jobs=2)
    assert [(run.folder / "stopped").exists() for run in runs] == [True, True, False]
    assert starts(runs[2]) == 0


def test_iterations_are_counted_up_to_a_truncated_line(tmp_path):
    assert iterations_done(tmp_path) == 0
    lines = ['{"iteration": 19, "time": 0.1}', '{"iteration": 39}', '{"iterat']
    (tmp_path / "metrics.json").write_text("\n".join(lines))
    assert iterations_done(tmp_path) == 40
