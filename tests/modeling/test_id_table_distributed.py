"""The identity table over two gloo processes against one process with the joint batch.

Run as a script, this file is one of the two processes.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from gloo import join_group, leave_group, start_ranks
from torch.nn.functional import normalize

from kd_search.modeling.id_table import IDTable

NUM_IDS, QUEUE_SIZE, DIM = 6, 5, 7
#: Embeddings of rank 0 and rank 1 in each step: uneven, one side empty, both empty, and more
#: people than the queue has slots.
SHARES = [(4, 2), (0, 3), (5, 0), (0, 0), (11, 9), (1, 1)]
POISONED_STEP = 4


def share(step, rank):
    """The (n, DIM) embeddings and (n,) identities of a rank in a step."""
    count = SHARES[step][rank]
    generator = torch.Generator().manual_seed(100 * step + rank)
    embeddings = normalize(torch.randn(count, DIM, generator=generator), dim=1)
    person_ids = torch.randint(-1, NUM_IDS, (count,), generator=generator)
    if step == POISONED_STEP and rank == 1:
        embeddings[3] = float("nan")
    return embeddings, person_ids


def make_table(**kwargs):
    return IDTable(num_ids=NUM_IDS, queue_size=QUEUE_SIZE, embedding_dim=DIM, **kwargs)


# Each scenario drives a table by ``shares(step) -> (embeddings, person_ids)`` of who runs it.


def commit_every_step(table, shares):
    for step in range(len(SHARES)):
        table(*shares(step))
        table.commit()


def commit_in_the_next_forward(table, shares):
    for step in range(len(SHARES)):
        table(*shares(step))
    table.commit()


def commit_after_several_forwards(table, shares):
    for step in range(len(SHARES)):
        table.stage(*shares(step))
        if step % 3 == 2:
            table.commit()


def discard_some_steps(table, shares):
    for step in range(len(SHARES)):
        table(*shares(step))
        if step % 2:
            table.discard()
        else:
            table.commit()


SCENARIOS = {
    "commit_every_step": (commit_every_step, {}),
    "commit_in_the_next_forward": (commit_in_the_next_forward, {"momentum": 0.9}),
    "commit_after_several_forwards": (commit_after_several_forwards, {}),
    "discard_some_steps": (discard_some_steps, {}),
    "frozen": (commit_every_step, {"frozen": True}),
}


def one_process(name):
    """The table after the joint batches: the share of rank 0, then that of rank 1."""
    drive, kwargs = SCENARIOS[name]
    table = make_table(**kwargs)
    drive(table, lambda step: [torch.cat(parts) for parts in zip(share(step, 0), share(step, 1))])
    return table


def run_rank(rank, num_ranks, folder):
    """Drive every scenario as one of two ranks; write what became of the tables."""
    join_group(rank, num_ranks, folder)
    result = {}
    for name, (drive, kwargs) in SCENARIOS.items():
        table = make_table(**kwargs)
        drive(table, lambda step: share(step, rank))
        result[name] = {
            "fingerprint": table.fingerprint(),
            "queue_ptr": int(table.queue_ptr),
            "num_non_finite": table.num_non_finite,
        }
    # A rank that staged nothing at all still takes part.
    table = make_table()
    if rank == 1:
        table.stage(*share(0, 1))
    table.commit()
    result["only_rank_1"] = {"fingerprint": table.fingerprint()}
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(result))
    leave_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    start_ranks(__file__, 2, folder)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", SCENARIOS)
def test_both_ranks_hold_the_table_of_one_process(two_ranks, name):
    table = one_process(name)
    expected = {
        "fingerprint": table.fingerprint(),
        "queue_ptr": int(table.queue_ptr),
        "num_non_finite": 1,
    }
    assert table.fingerprint() != make_table().fingerprint()
    assert two_ranks[0][name] == expected
    assert two_ranks[1][name] == expected


def test_rank_with_nothing_staged_takes_part(two_ranks):
    table = make_table()
    table.stage(*share(0, 1))
    table.commit()
    for rank in two_ranks:
        assert rank["only_rank_1"]["fingerprint"] == table.fingerprint()


def test_the_shares_would_give_different_tables_if_not_gathered():
    """The test above can fail: what each rank saw alone differs."""
    alone = []
    for rank in range(2):
        table = make_table()
        commit_every_step(table, lambda step, rank=rank: share(step, rank))
        alone.append(table.fingerprint())
    assert len({*alone, one_process("commit_every_step").fingerprint()}) == 3


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
