"""Script of test_separate_disks.py: ranks that resume from folders of their own."""

import json
import os
import sys
from pathlib import Path

import torch

from kd_search.checkpoint import PersonSearchCheckpointer
from tests.engine.toy import ToyNetwork
from tests.gloo import join_group, leave_group


def network_of(seed: int) -> ToyNetwork:
    torch.manual_seed(seed)
    return ToyNetwork()


def resume(folder: Path, rank: int) -> dict:
    """What a rank with a fresh network gets."""
    network = network_of(10 + rank)
    checkpointer = PersonSearchCheckpointer(network, str(folder))
    try:
        extra = checkpointer.resume_or_load("")
    except ValueError as error:
        return {"error": str(error)}
    weights = {k: v.double().sum().item() for k, v in network.state_dict().items()}
    return {"weights": weights, "iteration": extra.get("iteration"), "resumed": extra["resumed"]}


def save(folder: Path, seed: int) -> None:
    """A checkpoint of this rank alone."""
    folder.mkdir(parents=True)
    checkpointer = PersonSearchCheckpointer(network_of(seed), str(folder), save_to_disk=True)
    checkpointer.save("model_0000003", iteration=3)


def main(rank: int, num_ranks: int, folder: Path) -> None:
    join_group(rank, num_ranks, folder)
    cases = {"main": (0, None), "both": (0, 1), "other": (None, 1), "none": (None, None)}
    results = {}
    # Another disk under the same path: relative paths in a folder of this rank.
    disk = folder / f"disk{rank}"
    disk.mkdir()
    os.chdir(disk)
    for name, seeds in cases.items():
        if seeds[rank] is not None:
            save(Path(name), seeds[rank])
        results[name] = resume(Path(name), rank)
    (folder / f"rank{rank}.json").write_text(json.dumps(results))
    leave_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
