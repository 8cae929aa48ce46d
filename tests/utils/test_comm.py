"""Joint batches of several ranks, and errors on one of them, against one process.

Run as a script, this file is one of the processes.
"""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from gloo import join_group, leave_group, start_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kd_search.utils.comm import StoppedElsewhereError, join_rows, joint_share, meet_at_end

CPU = torch.device("cpu")
#: Rows of every rank, by the number of ranks: uneven, and one rank without any.
COUNTS = {2: [3, 2], 3: [4, 0, 1]}


class Network(nn.Module):
    """A layer before the gather, one after it, and a loss over all pairs of rows."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.before = nn.Parameter(torch.randn(4, 3, generator=generator, dtype=torch.float64))
        self.behind = nn.Parameter(torch.randn(3, 2, generator=generator, dtype=torch.float64))

    def forward(self, rows, ids):
        joined, weights, ids = join_rows((rows @ self.before).tanh(), rows[:, 0], ids)
        mapped = joined @ self.behind
        relations = (mapped @ mapped.T).sin() * (ids[:, None] != ids[None, :])
        return (relations * weights).sum() / max(len(ids), 1) ** 2


def share(rank, counts):
    """The (n, 4) rows and (n,) identities of a rank."""
    generator = torch.Generator().manual_seed(0)
    total = sum(counts)
    rows = torch.randn(total, 4, generator=generator, dtype=torch.float64)
    ids = torch.randint(-1, 3, (total,), generator=generator)
    return rows.split(counts)[rank], ids.split(counts)[rank]


def gradients(network, rank, counts, dtype=torch.float64):
    """Loss and gradients; other types than float64 under autocast, the loss scaled as by AMP."""
    network, (rows, ids) = (
        network.to(torch.promote_types(dtype, torch.float32)),
        share(rank, counts),
    )
    wrapped = DistributedDataParallel(network) if dist.is_initialized() else network
    scale = 1.0 if dtype == torch.float64 else 1024.0
    with torch.autocast("cpu", torch.bfloat16, enabled=scale != 1):
        loss = wrapped(rows.to(network.before.dtype), ids)
    (loss * scale).backward()
    return {
        "loss": loss.detach(),
        "before": network.before.grad / scale,
        "behind": network.behind.grad / scale,
    }


def kinds_of_tensors(rank, counts):
    """Halves beside empty float32 rows, booleans, and integers of any size."""
    count = counts[rank]
    tensors = (
        torch.full((count, 2), 0.5 + rank, dtype=torch.float16 if count else torch.float32),
        torch.arange(count) + (1 << 40) * rank,
        torch.arange(count) % 2 == 0,
        torch.full((count, 1), rank, dtype=torch.float64),
    )
    return join_rows(*tensors)


def no_rows():
    rows = torch.zeros(0, 2, requires_grad=True)
    rows, ids = join_rows(rows, torch.zeros(0, dtype=torch.int64))
    rows.sum().backward()
    return [tuple(rows.shape), tuple(ids.shape)]


def failures(rank, num_ranks):
    """Errors of this rank by scenario; after each, all ranks must be ready for the next."""
    last = num_ranks - 1
    found = {}

    def run(name, forward):
        try:
            forward()
            found[name] = ""
        except (FloatingPointError, ValueError) as error:
            found[name] = f"{type(error).__name__}: {error}"
        found[name, "met"] = meet_at_end(CPU, rank, int(bool(found[name])), 7)

    def stops(after):
        for turn in range(3):
            if rank == last and turn == after:
                raise FloatingPointError("stopped on purpose")
            join_rows(torch.ones(rank + 1, 2))
            joint_share(torch.ones(rank + 1, dtype=torch.bool))

    def not_finite():
        rows = torch.ones(2, 2, requires_grad=True)
        join_rows(rows * (float("inf") if rank == last else 1.0))

    def without_gradient():
        joined = join_rows(torch.full((1, 2), float("nan") if rank == last else 1.0))
        assert int(joined[0].isnan().sum()) == 2

    for after in range(4):
        run(f"stops after {after}", lambda after=after: stops(after))
    run("not finite", not_finite)
    run("without gradient", without_gradient)
    run("columns", lambda: join_rows(torch.ones(2, 2 + rank)))
    return found


def shares(rank, counts):
    counted = torch.arange(5) < counts[rank]
    with torch.no_grad():
        local = joint_share(counted)
    return [joint_share(counted), local, joint_share(torch.zeros(3, dtype=torch.bool))]


def run_rank(rank, num_ranks, folder):
    join_group(rank, num_ranks, folder)
    counts = COUNTS[num_ranks]
    result = {
        "gradients": gradients(Network(), rank, counts),
        "autocast": gradients(Network(), rank, counts, torch.bfloat16),
        "gradients_of_no_rows": gradients(Network(), rank, [0] * num_ranks),
        "kinds": kinds_of_tensors(rank, counts),
        "no_rows": no_rows(),
        "failures": failures(rank, num_ranks),
        "shares": shares(rank, counts),
        "alive": dist.get_world_size(),
    }
    torch.save(result, Path(folder) / f"{num_ranks}_{rank}.pt")
    leave_group()


@pytest.fixture(scope="module", params=sorted(COUNTS))
def ranks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    num_ranks = request.param
    start_ranks(__file__, num_ranks, folder)
    return [torch.load(folder / f"{num_ranks}_{rank}.pt") for rank in range(num_ranks)]


@pytest.mark.parametrize(
    "name, dtype, tolerance",
    [("gradients", torch.float64, 1e-12), ("autocast", torch.bfloat16, 0.03)],
)
def test_the_mean_gradient_is_that_of_one_process(ranks, name, dtype, tolerance):
    expected = gradients(Network(), 0, [sum(COUNTS[len(ranks)])], dtype)
    for rank in ranks:
        for key, value in expected.items():
            assert value.abs().max() > 0.01
            difference = (rank[name][key] - value).abs().max()
            assert difference < tolerance * value.abs().max(), key


def test_ranks_without_rows_have_gradients_of_zero(ranks):
    for rank in ranks:
        for value in rank["gradients_of_no_rows"].values():
            assert value.eq(0).all()
        assert rank["no_rows"] == [(0, 2), (0,)]


def test_every_type_comes_back_rank_after_rank(ranks):
    counts = COUNTS[len(ranks)]
    for result in ranks:
        halves, large, flags, doubles = result["kinds"]
        assert halves.dtype == torch.float32 and doubles.dtype == torch.float64
        assert large.dtype == torch.int64 and flags.dtype == torch.bool
        of_rank = [rank for rank, n in enumerate(counts) for _ in range(n)]
        place = [i for n in counts for i in range(n)]
        assert halves.tolist() == [[0.5 + r] * 2 for r in of_rank]
        assert large.tolist() == [i + (1 << 40) * r for r, i in zip(of_rank, place)]
        assert flags.tolist() == [i % 2 == 0 for i in place]
        assert doubles.tolist() == [[r] for r in of_rank]


def test_a_rank_that_stops_stops_the_others(ranks):
    last = len(ranks) - 1
    for rank, result in enumerate(ranks):
        found = result["failures"]
        for after in range(3):
            error = found[f"stops after {after}"]
            if rank == last:
                assert error == "FloatingPointError: stopped on purpose"
            else:
                assert StoppedElsewhereError.__name__ in error and f"rank {last}" in error
        assert found["stops after 3"] == ""
        assert ("StoppedElsewhereError" in found["not finite"]) == (rank != last)
        assert found["not finite"] and found["without gradient"] == ""
        assert found["columns"].startswith("ValueError") and "[2, 3" in found["columns"]
        for name in ("stops after 0", "stops after 2", "not finite", "columns"):
            assert found[name, "met"] == [[r, 1, 7] for r in range(last + 1)]
        assert found["stops after 3", "met"] == [[r, 0, 7] for r in range(last + 1)]


def test_shares_make_the_joint_mean(ranks):
    counts = COUNTS[len(ranks)]
    for rank, result in enumerate(ranks):
        share, local, of_no_rows = result["shares"]
        assert share == pytest.approx(len(ranks) * counts[rank] / sum(counts))
        assert (local, of_no_rows) == (1.0, 0.0)


def test_one_process_gets_its_own_tensors():
    rows, ids = torch.ones(2, 3, dtype=torch.float16), torch.tensor([1, 2])
    joined = join_rows(rows, ids)
    assert joined[0] is rows and joined[1] is ids
    assert joint_share(torch.tensor([True, False])) == 1.0
    assert meet_at_end(CPU, 1, False, 3) == [[1, 0, 3]]


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
