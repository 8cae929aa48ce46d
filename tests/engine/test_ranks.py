"""Several ranks on the CPU (gloo): they agree, and they start and stop in every way."""

import json
import os
import re
import signal

import pytest
import torch

from kd_search.engine import compute_identity_means
from kd_search.utils.folder_lock import alone_in
from tests.engine.toy import ToyNetwork, start_script, toy_input, wait_for_lines


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Results of both ranks of toy_ranks.py under torchrun; one start for many tests."""
    folder = tmp_path_factory.mktemp("ranks")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    # Iteration 3 is not finite on rank 1 alone.
    process = start_script("toy_ranks.py", {"nan": [[3, 1]]}, str(folder), launcher=launcher)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    results = [json.loads((folder / f"rank{r}.json").read_text()) for r in (0, 1)]
    return results, output


def test_nan_on_one_rank_is_skipped_by_both_before_any_table_moves(ranks):
    (first, second), output = ranks
    for result in (first, second):
        training = result["training"]
        assert training["class"] == "DistributedDataParallel"
        assert training["skipped"] == 1 and training["finite"]
    assert first["training"]["tables"] == second["training"]["tables"]
    assert first["training"]["parameters"] == second["training"]["parameters"]
    # Images 14 and 15: batch 3, of two ranks with two images each, second half.
    assert "iteration 3 " in output and "rank 1: 14.jpg, 15.jpg" in output
    assert "rank 0: 12.jpg" not in output


def test_too_many_bad_steps_stop_every_rank_with_the_same_error(ranks):
    first, second = (result["error"] for result in ranks[0])
    assert first == second
    assert "3 steps" in first and "iteration 0: rank 1: 2.jpg, 3.jpg" in first


def test_ranks_know_their_machine_and_resume_together(ranks):
    for rank, result in enumerate(ranks[0]):
        assert result["training"]["local"] == [rank, 2]
        assert result["training"]["resumed_at"] == 8


def test_identity_means_do_not_depend_on_the_split_over_ranks(ranks):
    torch.manual_seed(0)
    network = ToyNetwork()
    alone = compute_identity_means(network, [[toy_input(1, i)] for i in range(7)], 5)
    for result in ranks[0]:
        assert result["means"]["rows"] == alone.rows.tolist()
        assert result["means"]["counts"] == alone.counts.tolist()


def test_tables_that_differ_between_ranks_are_found(ranks):
    for result in ranks[0]:
        assert re.search(r"id_table .*\[1\]", result["agreement"])


def test_sigterm_to_the_launcher_of_cpu_processes_saves_and_ends(tmp_path):
    log = tmp_path / "log"
    flags = ["--num-gpus", "2", "--dist-url", "auto"]
    toy = {"seconds": 0.1, "log": str(log)}
    out = tmp_path / "out"
    words = [*flags, str(out), "SOLVER.MAX_ITER", "100000"]
    process = start_script("toy.py", toy, *words, fork=False)
    wait_for_lines(log, 3, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    finished = int(log.read_text().split()[-1])
    assert (out / "last_checkpoint").read_text() == f"model_{finished:07d}.pth"
    assert "--num-gpus 2" in output


def test_sigterm_to_torchrun_saves_and_ends(tmp_path):
    log, out = tmp_path / "log", tmp_path / "out"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    toy = {"seconds": 0.1, "log": str(log)}
    overrides = [str(out), "SOLVER.MAX_ITER", "100000"]
    process = start_script("toy.py", toy, *overrides, launcher=launcher, fork=False)
    wait_for_lines(log, 3, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0, output
    finished = int(log.read_text().split()[-1])
    assert (out / "last_checkpoint").read_text() == f"model_{finished:07d}.pth"


def test_a_folder_in_use_is_refused_by_all_ranks(tmp_path):
    with alone_in(tmp_path):
        flags = ["--num-gpus", "2", "--dist-url", "auto"]
        process = start_script("toy.py", {}, *flags, str(tmp_path))
        output, _ = process.communicate(timeout=200)
    assert process.returncode == 2, output
    assert re.search(f"error: {tmp_path} .* {os.getpid()} on", output)
    assert "Traceback" not in output
    assert not list(tmp_path.glob("*.pth"))
