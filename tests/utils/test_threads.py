"""How many threads a training starts, and how they wait for each other."""

import os
import re
import subprocess
import sys

import pytest
import torch
from tiny import REPO

from kd_search.utils import threads


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("OMP_", "GOMP_", "KMP_", "MKL_")):
            monkeypatch.delenv(name)


NETWORK = ("--config-file", "absent.yaml", "--output", "absent.png")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("train_net.py", NETWORK[:2]),
        ("search.py", (*NETWORK, "--query", __file__, "--gallery", str(REPO / "docs"))),
        ("build_id_table.py", NETWORK),
    ],
)
def test_openmp_waits_passively_in_scripts(script, words):
    """OpenMP itself says so, when torch loads it; a config that is absent ends the script."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(REPO / "tools" / script), *words],
        env={**os.environ, "OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    # GNU's counts how often it looks before it sleeps, LLVM's for how many milliseconds.
    spins = re.findall(r"(?:GOMP_SPINCOUNT|KMP_BLOCKTIME) *= *'?(\w+)", done.stderr)
    assert spins and all(re.fullmatch("0(ms)?", spin) for spin in spins)


def test_importing_the_module_does_not_load_torch():
    code = "import sys, kd_search.utils.threads; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=REPO) == "False\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "100000"), ("KMP_BLOCKTIME", "200")],
)
def test_how_threads_wait_is_left_to_who_has_said_it(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    before = dict(os.environ)
    threads.wait_passively()
    assert dict(os.environ) == before


def test_cores_are_shared_by_processes_and_never_more_than_may_be_used(monkeypatch):
    monkeypatch.setattr(threads, "usable_cores", lambda: 3)
    for processes, expected in ((1, 3), (2, 1), (8, 1)):
        torch.set_num_threads(4)
        threads.limit_threads(processes)
        assert torch.get_num_threads() == expected
    # Fewer than the cores stay fewer.
    torch.set_num_threads(2)
    threads.limit_threads()
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_THREAD_LIMIT"])
def test_a_number_of_threads_that_is_set_stays(monkeypatch, name):
    monkeypatch.setattr(threads, "usable_cores", lambda: 1)
    monkeypatch.setenv(name, "2")
    torch.set_num_threads(2)
    threads.limit_threads()
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("quota", "cores"), [(None, 8), (2.0, 2), (1.5, 2), (0.2, 1), (64.0, 8)])
def test_usable_cores_are_those_of_affinity_and_quota(monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(threads, "cpu_quota", lambda: quota)
    assert threads.usable_cores() == cores


def cgroups(tmp_path, own: str, **files: str):
    """A mounted tree with these files (``__`` for ``/``), and the file that names the own ones."""
    for name, content in files.items():
        file = tmp_path / "root" / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    (tmp_path / "own").write_text(own)
    return tmp_path / "root", tmp_path / "own"


def test_quota_of_version_2_is_the_least_on_the_way_up(tmp_path):
    files = {
        "job__cpu.max": "400000 100000\n",
        "job__step__cpu.max": "max 100000\n",
        "cpu.max": "800000 100000\n",
        "other__cpu.max": "1000 100000\n",
    }
    assert threads.cpu_quota(*cgroups(tmp_path, "0::/job/step\n", **files)) == 4.0


def test_quota_of_a_container_that_sees_itself_as_the_root(tmp_path):
    files = {"cpu.max": "150000 100000\n"}
    assert threads.cpu_quota(*cgroups(tmp_path, "0::/host/docker/1234\n", **files)) == 1.5


def test_quota_of_version_1(tmp_path):
    own = "5:memory:/job\n4:cpu,cpuacct:/job\n1:name=systemd:/\n0::/\n"
    files = {
        "cpu__job__cpu.cfs_quota_us": "200000\n",
        "cpu__job__cpu.cfs_period_us": "100000\n",
        "cpu__cpu.cfs_quota_us": "-1\n",
        "cpu__cpu.cfs_period_us": "100000\n",
    }
    assert threads.cpu_quota(*cgroups(tmp_path, own, **files)) == 2.0


@pytest.mark.parametrize("content", ["max 100000", "", "many", "-1 100000"])
def test_no_quota(tmp_path, content):
    root, own = cgroups(tmp_path, "0::/\n", **{"cpu.max": content})
    assert threads.cpu_quota(root, own) is None
    assert threads.cpu_quota(root, tmp_path / "absent") is None
