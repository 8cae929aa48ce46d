"""One batch over several ranks: the rows of all of them, with gradient, and where ranks meet.

A loss over pairs of people is not the mean of what every rank finds among its own people. So every
rank computes the loss of the joint batch from the rows of all ranks, and sends gradient back into
its own rows. With E_r the rows of rank r, L(E_1, ..., E_R; w) the joint loss and w the weights, of
which L may read some itself, one process with the joint batch has the gradient::

    dL/dw + sum_r (dE_r/dw)^T dL/dE_r

DistributedDataParallel takes the mean over ranks of g_r, the gradient on rank r. All ranks compute
the same L from the same rows, so rank r knows dL/dw and dL/dE_r without asking the others. With::

    g_r = dL/dw + R (dE_r/dw)^T dL/dE_r

that mean is the gradient above: the backward of the gather returns the gradient of this rank's rows
times R. It makes no collective call, whose place among those of DDP could differ between ranks.

The mean of rows that are compared with no other needs the number of rows of other ranks alone. With
s_r the sum over the n_r rows of rank r, the joint mean is the mean over ranks of::

    R s_r / sum n = (R n_r / sum n) (s_r / n_r)

Every collective call in a forward pass begins with a meeting, at which each rank says where it is.
A rank whose forward pass stopped early goes on to :func:`meet_at_end`; the others find that out at
their next meeting, stop as well, and follow. No rank is left waiting. Collective calls of others in
a forward pass, those of SyncBN, know nothing of it.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

_INSIDE, _AT_END = 0, 1


class StoppedElsewhereError(FloatingPointError):
    """The forward pass was given up because that of another rank stopped."""


def several_ranks() -> bool:
    """Whether there are others to share a batch with."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def join_rows(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Return the rows of all ranks, rank after rank; a collective call.

    One meeting and at most two collectives on plain tensors, no pickle. With a single rank, the
    tensors as they are.

    Args:
        tensors: (n,) or (n, D), all with this rank's n rows, which may be 0 and differ between
            ranks; D and types as on the other ranks, except that halves may meet float32.

    Returns:
        (N,) or (N, D), equal on all ranks. Floating ones in float32 at least, with a gradient that
        the mean over ranks turns into that of one process (see above); others in their own type.

    Raises:
        FloatingPointError: rows of this rank that carry gradient are not finite.
        StoppedElsewhereError: those of another rank are not, or its forward pass has stopped.
        ValueError: ranks gather different numbers of columns.
    """
    if not several_ranks():
        return list(tensors)
    tables = [t if t.dim() == 2 else t[:, None] for t in tensors]
    counts = _announce(tables)
    floating = [t for t in tables if t.is_floating_point()]
    others = [t for t in tables if not t.is_floating_point()]
    # Halves in float32: a rank without anybody may have made its empty rows in another type.
    rows = {
        True: iter(_join_packed(floating, torch.float32, counts)),
        False: iter(_join_packed(others, torch.int64, counts)),
    }
    joined = []
    for tensor in tensors:
        table, dtype = next(rows[tensor.is_floating_point()]), tensor.dtype
        if tensor.is_floating_point():
            dtype = torch.promote_types(dtype, torch.float32)
        joined.append(table.reshape(len(table), *tensor.shape[1:]).to(dtype))
    return joined


def joint_share(counted: torch.Tensor) -> float:
    """Return R n_r / sum n: times it, the mean over this rank's rows is its part of the joint mean.

    A collective call where gradients are enabled; a pass without any trains nothing and needs none.

    Args:
        counted: (B,) bool, the n_r rows of this rank that the mean is taken over.

    Raises:
        StoppedElsewhereError: the forward pass of another rank has stopped.
    """
    if not (several_ranks() and torch.is_grad_enabled()):
        return 1.0
    facts = _meet_inside(counted.device, int(counted.sum()), 0, 0)
    counts = [count for count, *_ in facts]
    return len(counts) * counts[dist.get_rank()] / max(sum(counts), 1)


def meet_at_end(device: torch.device, *numbers: int) -> list[list[int]]:
    """Exchange three numbers with all ranks after a forward pass; a collective call.

    Also what a rank does whose forward pass stopped: the others are told, wherever they are in
    theirs.

    Returns:
        the numbers of every rank.
    """
    while True:
        facts = _meet(device, _AT_END, *numbers)
        if all(place == _AT_END for place, *_ in facts):
            return [rest for _, *rest in facts]


def _announce(tables: list[torch.Tensor]) -> list[int]:
    """Tell the other ranks what is gathered; returns the number of rows of every rank."""
    columns = sum(table.shape[1] for table in tables)
    wrong = any(t.requires_grad and not bool(torch.isfinite(t).all()) for t in tables)
    facts = _meet_inside(tables[0].device, len(tables[0]), columns, int(wrong))
    if wrong:
        raise FloatingPointError("embeddings or logits of this rank's batch are not finite")
    others = [rank for rank, (_, _, is_wrong) in enumerate(facts) if is_wrong]
    if others:
        raise StoppedElsewhereError(f"embeddings or logits of rank {others[0]} are not finite")
    return [count for count, *_ in facts]


def _join_packed(
    tables: list[torch.Tensor], dtype: torch.dtype, counts: list[int]
) -> Sequence[torch.Tensor]:
    """The rows of all ranks of several (n, D_i) in one collective; ``dtype`` or a wider one."""
    if not tables:
        return []
    for table in tables:
        dtype = torch.promote_types(dtype, table.dtype)
    packed = torch.cat([table.to(dtype) for table in tables], dim=1)
    if max(counts):
        packed = _JoinRows.apply(packed, counts)
    return packed.split([table.shape[1] for table in tables], dim=1)


def _meet_inside(device: torch.device, count: int, columns: int, wrong: int) -> list[list[int]]:
    facts = _meet(device, _INSIDE, count, columns, wrong)
    stopped = [rank for rank, (place, *_) in enumerate(facts) if place == _AT_END]
    if stopped:
        raise StoppedElsewhereError(f"the forward pass of rank {stopped[0]} has stopped")
    if len({width for _, _, width, _ in facts}) > 1:
        widths = [width for _, _, width, _ in facts]
        raise ValueError(f"ranks gather different numbers of columns: {widths}")
    return [rest for _, *rest in facts]


def _meet(device: torch.device, *facts: int) -> list[list[int]]:
    own = torch.tensor(facts, dtype=torch.int64)
    if not several_ranks():
        return [own.tolist()]
    return torch.stack(_all_gather(own.to(_transport(device)))).tolist()


class _JoinRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        rank = dist.get_rank()
        ctx.num_ranks, ctx.own = len(counts), (sum(counts[:rank]), counts[rank])
        padded = rows.new_zeros((max(counts), rows.shape[1]), device=_transport(rows.device))
        padded[: len(rows)] = rows
        parts = [part[:n] for part, n in zip(_all_gather(padded), counts)]
        return torch.cat(parts).to(rows.device)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        return gradient.narrow(0, *ctx.own) * ctx.num_ranks, None


def _all_gather(tensor: torch.Tensor) -> list[torch.Tensor]:
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, tensor)
    return gathered


def _transport(device: torch.device) -> torch.device:
    # gloo gathers tensors of the CPU only; every other backend those of its own device.
    return torch.device("cpu") if dist.get_backend() == "gloo" else device
