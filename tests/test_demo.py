"""The demo on a tiny set: run, killed and run again, and the files that it writes.

It is the pipeline of ``kd-search distill``, whose options are tested on the same folder.
"""

import json
import os
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser

import pytest
from tiny import REPO

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
