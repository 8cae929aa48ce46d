"""The batch script for SLURM, with stubs of srun, scontrol and torchrun."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "slurm.sbatch"

STUBS = {
    # Options, then the command; the real one runs it on every machine.
    "srun": 'while [[ $1 == --* ]]; do shift; done\nSLURM_NODEID=0 exec "$@"\n',
    "scontrol": """case $1 in
        show) echo first; echo second ;;
        *) echo "$@" >> requeued ;;
    esac\n""",
    # Ends at SIGTERM, as a training that has saved, or by itself.
    "torchrun": """echo "$@" > arguments
    trap 'echo saved > checkpoint; exit 1' TERM
    for _ in $(seq ${STEPS:-600}); do sleep 0.05; done
    exit ${STATUS:-0}\n""",
}


@pytest.fixture
def start(tmp_path):
    processes = []
    stubs = tmp_path / "bin"
    stubs.mkdir()
    for name, text in STUBS.items():
        (stubs / name).write_text(f"#!/bin/bash\n{text}")
        (stubs / name).chmod(0o755)

    def run(*arguments, **more):
        slurm = {"JOB_ID": "1234", "JOB_NODELIST": "n[1-2]", "NNODES": "2", "GPUS_ON_NODE": "4"}
        environment = {
            **os.environ,
            **{f"SLURM_{key}": value for key, value in slurm.items()},
            **more,
            "PATH": f"{stubs}:{os.environ['PATH']}",
        }
        processes.append(subprocess.Popen([SCRIPT, *arguments], cwd=tmp_path, env=environment))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()


def wait_for(path):
    deadline = time.monotonic() + 30
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_torchrun_gets_machines_processes_and_the_arguments(start, tmp_path):
    process = start("--config-file", "a b.yaml", STEPS="1")
    assert process.wait(60) == 0
    words = (tmp_path / "arguments").read_text()
    for part in ("--nnodes 2", "--node_rank 0", "--nproc_per_node 4", "--master_addr first"):
        assert part in words
    assert words.rstrip().endswith("tools/train_net.py --resume --config-file a b.yaml")
    assert not (tmp_path / "requeued").exists()


@pytest.mark.parametrize("number, requeued", [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_signals_stop_the_training_and_only_the_time_limit_requeues(
    start, tmp_path, number, requeued
):
    process = start()
    wait_for(tmp_path / "arguments")
    time.sleep(0.2)
    process.send_signal(number)
    assert process.wait(60) == 1
    assert (tmp_path / "checkpoint").exists()
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 1234\n"


def test_a_failed_training_is_not_requeued(start, tmp_path):
    assert start(STEPS="1", STATUS="2").wait(60) == 2
    assert not (tmp_path / "requeued").exists()
