"""The demo on a tiny set: run, killed and run again, and the files that it writes.

It is the pipeline of ``kd-search distill``, whose options are tested on the same folder.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser

import pytest
import torch
import yaml
from tiny import REPO

from kd_search.cli import main

pytestmark = pytest.mark.e2e
MODELS = ("teacher", "student", "student_distilled")
TIMED = ("latency_ms", "latency_quartiles_ms")


def start(folder) -> subprocess.Popen:
    command = [sys.executable, "-u", str(REPO / "tools/demo.py"), "--preset", "tiny"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--output", folder.name],
        cwd=folder.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        # A process started from a background job ignores Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run(folder) -> str:
    process = start(folder)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-3000:]
    return output


def interrupt(folder, line: str, sent: int, after: float) -> int:
    """Send a signal some seconds after a line was printed; the exit status."""
    process = start(folder)
    for printed in process.stdout:
        if line in printed:
            time.sleep(after)
            process.send_signal(sent)
            break
    process.communicate(timeout=120)
    return process.returncode


def numbers(folder) -> dict:
    metrics = json.loads((folder / "metrics.json").read_text())
    return {m: {k: v for k, v in metrics[m].items() if k not in TIMED} for m in MODELS}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "straight"
    return folder, run(folder)


def test_metrics_file_has_the_documented_keys(straight):
    folder, output = straight
    metrics = json.loads((folder / "metrics.json").read_text())
    for model in MODELS:
        assert set(metrics[model]) == {
            *("mAP", "top1", "top5", "top10", "det_AP", "det_recall"),
            *("params", *TIMED),
        }
        first, third = metrics[model]["latency_quartiles_ms"]
        assert 0 < first <= metrics[model]["latency_ms"] <= third
        for key in ("mAP", "top1", "top5", "top10", "det_AP", "det_recall"):
            assert 0 <= metrics[model][key] <= 100
    assert metrics["student"]["params"] == metrics["student_distilled"]["params"]
    assert metrics["seed"] == 1 and "torch" in metrics["versions"]
    assert set(metrics["seconds"]) >= {"data", "teacher", "table", "student", "evaluate", "export"}
    for task in range(1, 13):
        assert f"[{task}/12]" in output
    assert "eta:" in output and "loss_id_table" in output
    assert "all trainings: 67 % done, about" in output


def test_comparisons_have_intervals_and_p_values(straight):
    folder, output = straight
    metrics = json.loads((folder / "metrics.json").read_text())
    found = metrics["comparisons"]
    pairs = [(one["baseline"], one["model"]) for one in found]
    assert pairs[0] == ("Plain student", "Distilled student")
    assert ("Teacher", "Distilled student") in pairs
    for one in found:
        interval = one["difference"]
        assert interval["low"] <= interval["mean"] <= interval["high"]
        assert 0 < one["p_value"] <= 1 and one["num_queries"] == 8
    by_model = {one["model"]: one["mean_b"] for one in found}
    assert by_model["Distilled student"] == pytest.approx(metrics["student_distilled"]["mAP"])
    assert "8 queries" in output


def test_report_is_valid_html_and_self_contained(straight):
    folder, _ = straight
    text = (folder / "report.html").read_text()
    HTMLParser().feed(text)
    assert "http://" not in text and "https://" not in text
    assert text.count("data:image/") >= 4


def test_a_second_run_repeats_no_step(straight):
    folder, _ = straight
    before = numbers(folder)
    output = run(folder)
    assert output.count("done before") == 12
    assert numbers(folder) == before


def test_interrupted_runs_resume_and_end_with_the_same_numbers(straight, tmp_path):
    folder = tmp_path / "interrupted"
    assert interrupt(folder, "[3/12]", signal.SIGINT, 1.0) == 130
    assert interrupt(folder, "[5/12]", signal.SIGKILL, 1.0) == -signal.SIGKILL
    run(folder)
    assert numbers(folder) == numbers(straight[0])


def test_other_settings_are_refused(straight):
    folder, _ = straight
    command = [sys.executable, str(REPO / "tools/demo.py"), "--preset", "tiny", "--seed", "7"]
    done = subprocess.run([*command, "--output", str(folder)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--output" in done.stderr and "Traceback" not in done.stderr


def test_without_opencv_the_demo_says_what_to_install(tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("kd_search.synthetic")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert main(["demo", "--preset", "tiny", "--output", str(tmp_path / "demo")]) == 2
    error = capsys.readouterr().err
    assert "pip install opencv-python-headless" in error and "[1/12]" in error


# kd-search distill on a copy of the folder -------------------------------------------------------


@pytest.fixture
def project(straight, tmp_path):
    """A copy: paths of results count from the folder, those of data are of the original."""
    return shutil.copytree(straight[0], tmp_path / "copy")


def plan(capsys, *words) -> dict[str, str]:
    """State of the tasks by description, of --dry-run."""
    assert main(["distill", "--dry-run", *map(str, words)]) == 0
    lines = capsys.readouterr().out.splitlines()
    tasks = [line.split("] ", 1)[1] for line in lines if line.startswith("[")]
    return {task.split(":")[0].split(None, 1)[1]: task.split(": ", 1)[1] for task in tasks}


def weights(folder) -> dict:
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def test_a_folder_that_was_moved_is_still_done(project, capsys):
    states = plan(capsys, project)
    assert len(states) == 12 and set(states.values()) == {"done"}


def test_a_change_of_the_test_repeats_the_evaluation_alone(project, capsys):
    states = plan(capsys, project, "TEST.PERSON_SEARCH.SCORE_THRESH", "0.4")
    assert "SCORE_THRESH was 0.5, is 0.4" in states["evaluate student"]
    assert states["compare the networks query by query"].startswith("changed")
    done = [name for name, state in states.items() if state == "done"]
    assert len(done) == 7 and "train the teacher" in done


def test_a_change_of_one_config_repeats_what_depends_on_it(project, capsys):
    path = project / "configs" / "teacher.yaml"
    content = yaml.safe_load(path.read_text())
    content["SOLVER"] = {"WEIGHT_DECAY": 0.02}
    path.write_text(yaml.safe_dump(content))
    states = plan(capsys, project)
    assert "WEIGHT_DECAY was 0.01, is 0.02" in states["train the teacher"]
    assert states["train the student with the teacher"].startswith("changed")
    assert states["train the student without the teacher"] == "done"
    assert states["evaluate student"] == "done"


def test_one_step_alone_keeps_the_earlier_run(project, capsys):
    before = weights(project / "student")
    opts = ["SOLVER.WEIGHT_DECAY", "0.5", "SOLVER.BASE_LR", "0.1"]
    assert main(["distill", str(project), "--only", "student", *opts]) == 0
    assert "ran student" in capsys.readouterr().out
    after, kept = weights(project / "student"), weights(project / "student.old1")
    assert all(torch.equal(before[key], kept[key]) for key in before)
    assert not all(torch.equal(before[key], after[key]) for key in before)
    assert main(["distill", str(project), "--only", "compare", *opts]) == 2
    assert "--only compare needs evaluate.teacher" in capsys.readouterr().err


def test_other_terms_and_several_seeds(project, capsys):
    words = ["distill", str(project), "--terms", "HintTerm", "--seeds", "1", "2"]
    assert main(words) == 0
    output = capsys.readouterr().out
    assert "train the teacher: done before" in output
    assert "without the teacher, seed 1: done before" in output
    assert "By seed:" in output and "(seed 2)" in output
    metrics = json.loads((project / "metrics.json").read_text())
    assert metrics["terms"] == ["HintTerm"]
    assert metrics["seeds"]["student"].keys() == {"1", "2"}
    pair = metrics["comparisons"][0]
    assert pair["by_seed"].keys() == {"1", "2"}
    for seed, folder in (("1", project), ("2", project / "seed2")):
        found = metrics["seeds"]["student_distilled"][seed]["mAP"]
        assert pair["by_seed"][seed]["mean_b"] == pytest.approx(found)
        cfg = yaml.safe_load((folder / "student_HintTerm" / "config.yaml").read_text())
        assert cfg["SEED"] == int(seed) and cfg["MODEL"]["OIM"]["ENABLED"]
        assert cfg["DISTILLATION"]["TEACHER"]["WEIGHTS"].startswith(str(project))
    # The run with the table is still there.
    assert (project / "student_distilled" / "model_final.pth").exists()
    assert not list(project.glob("*.old*"))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--terms", "IdentityProbabilityTerm"], "DISTILLATION.REID_TEACHER.CONFIG_FILE"),
        (["--terms", "HindTerm"], "HindTerm is none of"),
        (["--only", "pupil"], "--only pupil"),
        (["SOLVER.MAX_ITERS", "3"], "SOLVER.MAX_ITER?"),
        (["SOLVER.MAX_ITER"], "SOLVER.MAX_ITER"),
        (["SOLVER.MAX_ITER", "3", "--dry-run"], "--dry-run"),
    ],
)
def test_wrong_options_of_distill_are_one_line(straight, capsys, words, named):
    before = sorted(os.listdir(straight[0]))
    assert main(["distill", str(straight[0]), *words]) == 2
    error = capsys.readouterr().err
    assert named in error and "Traceback" not in error
    assert sorted(os.listdir(straight[0])) == before


def test_a_folder_that_is_no_project_is_one_line(tmp_path, capsys):
    assert main(["distill", str(tmp_path)]) == 2
    assert f"kd-search init {tmp_path}" in capsys.readouterr().err


def test_a_project_of_plain_files_as_a_process(straight, tmp_path, capsys):
    data = straight[0] / "data"
    command = [sys.executable, "-m", "kd_search"]
    options = ["--train", data / "train.json", "--images", data / "train/images"]
    options += ["--test", data / "test.json", "--test-images", data / "test/images"]
    options += ["--queries", data / "query_info.txt"]
    words = ["init", "shop", *map(str, options)]
    made = subprocess.run([*command, *words], capture_output=True, text=True, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "people are" in made.stdout and "kd-search distill shop" in made.stdout
    states = plan(capsys, tmp_path / "shop")
    assert states["check the data"] == "done" and states["evaluate student"] == "to do"
    assert sorted(os.listdir(tmp_path / "shop")) == ["configs", "project.yaml", "steps"]
