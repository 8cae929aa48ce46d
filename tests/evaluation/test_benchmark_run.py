"""The benchmark runner: exit status, JSON, and rows that are judged by their own limits."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks._harness import Harness

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run(folder, *arguments):
    return subprocess.run(
        [sys.executable, str(folder / "run.py"), *arguments], capture_output=True, text=True
    )


@pytest.fixture
def folder(tmp_path):
    """A copy of the runner with two benchmarks of its own."""
    for name in ("run.py", "_harness.py"):
        shutil.copy(BENCHMARKS / name, tmp_path / name)
    module = """
import os

def run(harness):
    assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "1"
    return [harness.row("case", ours_s=1.0, reference_s={reference}, equal=True, limit=2.0,
                        ratio_is="speed-up")]
"""
    (tmp_path / "fast.py").write_text(module.format(reference=3.0))
    (tmp_path / "slow.py").write_text(module.format(reference=1.5))
    return tmp_path


def test_a_good_benchmark_exits_with_0_and_writes_its_rows(folder):
    done = run(folder, "fast", "--json", str(folder / "out.json"))
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "out.json").read_text())
    assert set(report) == {"name", "versions", "rows"}
    assert report["name"] == "fast" and report["versions"]["threads"] == 1
    assert report["rows"] == [
        {
            "case": "case",
            "ours_s": 1.0,
            "reference_s": 3.0,
            "ratio": 3.0,
            "ratio_is": "speed-up",
            "equal": True,
            "limit": 2.0,
            "ok": True,
        }
    ]


def test_a_row_that_misses_its_limit_makes_the_exit_status_1(folder):
    done = run(folder, "slow", "--json", str(folder / "out.json"))
    assert done.returncode == 1
    assert json.loads((folder / "out.json").read_text())["rows"][0]["ok"] is False


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nothing"], "unknown benchmark 'nothing'; there are: fast, slow"),
        (["_harness"], "unknown benchmark '_harness'"),
        (["fast", "--scale"], "--scale: only gallery, prototypes, search_eval can"),
        (["fast", "--repeats", "0"], "must be at least 1"),
        (["fast", "--json", "no/such/folder/out.json"], "its folder does not exist"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_status_2(folder, arguments, message):
    done = run(folder, *arguments)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_search_eval_is_there():
    done = run(BENCHMARKS, "no_such_benchmark")
    assert done.returncode == 2 and "search_eval" in done.stderr


@pytest.mark.parametrize(
    "ratio_is, ours_s, reference_s, equal, ratio, ok",
    [
        ("speed-up", 1.0, 2.0, True, 2.0, True),
        ("speed-up", 1.0, 1.9, True, 1.9, False),
        ("speed-up", 1.0, 9.0, False, 9.0, False),
        ("overhead", 4.0, 2.0, None, 2.0, True),
        ("overhead", 4.2, 2.0, None, 2.1, False),
        ("overhead", 4.0, 2.0, False, 2.0, False),
    ],
)
def test_a_row_is_judged_by_its_kind_of_ratio(ratio_is, ours_s, reference_s, equal, ratio, ok):
    row = Harness().row(
        "case", ours_s=ours_s, reference_s=reference_s, equal=equal, limit=2.0, ratio_is=ratio_is
    )
    assert row["ratio"] == pytest.approx(ratio)
    assert row["ok"] is ok


def test_a_row_of_times_needs_a_kind_of_ratio():
    with pytest.raises(ValueError, match="speed-up or overhead"):
        Harness().row("x", ours_s=1, reference_s=1, equal=True, limit=1, ratio_is="ratio")


@pytest.mark.parametrize("value, ok", [(1.5, True), (1.51, False)])
def test_a_value_row_has_no_times(value, ok):
    row = Harness().value_row("memory", value=value, unit="GB", limit=1.5)
    assert row["ok"] is ok
    assert row["ours_s"] is row["reference_s"] is row["ratio"] is None


def test_compare_takes_turns_and_counts_only_what_comes_after_the_warm_up():
    calls = []
    timing = Harness().compare(
        lambda state: calls.append(("ours", state)),
        lambda state: calls.append(("reference", state)),
        setup=lambda: len(calls),
        repeats=2,
        warmup=1,
    )
    assert [name for name, _ in calls] == ["ours", "reference"] * 3
    assert [state for _, state in calls] == list(range(6))
    assert len(timing.ours) == len(timing.reference) == 2
    assert timing.ours_s > 0 and timing.reference_s > 0
