"""Processes of a test file that share a gloo group."""

import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from tests.forked import Forked

REPO = Path(__file__).resolve().parents[1]


def start_ranks(script, num_ranks: int, folder, *arguments: str) -> None:
    """Run ``script RANK NUM_RANKS FOLDER ARGUMENTS`` for every rank; all must succeed."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    paths = [str(REPO), str(REPO / "tests"), env.get("PYTHONPATH", "")]
    env["PYTHONPATH"] = os.pathsep.join(paths)
    ranks = [
        Forked(
            [sys.executable, script, rank, num_ranks, folder, *arguments],
            stderr=subprocess.STDOUT,
            env=env,
        )
        for rank in range(num_ranks)
    ]
    try:
        outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * num_ranks, "\n".join(outputs)


def join_group(rank: int, num_ranks: int, folder) -> None:
    """Join the group of :func:`start_ranks`, on one thread."""
    torch.set_num_threads(1)
    store = (Path(folder) / f"store{num_ranks}").as_uri()
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=num_ranks)


def leave_group() -> None:
    """Wait for all ranks, then leave."""
    dist.barrier()
    dist.destroy_process_group()
