"""Resuming two ranks whose output folders are on disks of their own machines."""

import json
from pathlib import Path

import pytest

from tests.engine.separate_disks import network_of
from tests.gloo import start_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Results of both ranks: case to what the rank got."""
    folder = tmp_path_factory.mktemp("disks")
    start_ranks(Path(__file__).with_name("separate_disks.py"), 2, folder)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("case", ["main", "both"])
def test_all_ranks_resume_the_checkpoint_of_rank_0(ranks, case):
    # In "both", rank 1 has a file of the same name with other weights.
    saved = {k: v.double().sum().item() for k, v in network_of(0).state_dict().items()}
    for rank in ranks:
        assert rank[case]["weights"] == saved
        assert rank[case]["iteration"] == 3
        assert rank[case]["resumed"] == f"{case}/model_0000003.pth"


def test_a_checkpoint_on_another_machine_than_that_of_rank_0_is_an_error_on_all(ranks):
    for rank in ranks:
        assert "rank 0 has no checkpoint" in rank["other"]["error"]
        assert "rank 1 has one" in rank["other"]["error"]


def test_without_a_checkpoint_the_training_starts(ranks):
    for number, rank in enumerate(ranks):
        assert rank["none"]["resumed"] == ""
        fresh = network_of(10 + number).state_dict()
        assert rank["none"]["weights"] == {k: v.double().sum().item() for k, v in fresh.items()}
