"""Collective operations: batches over several ranks, errors on all ranks, sums.

A loss over pairs of people is not the mean of the losses over each rank's people. So every rank
computes the loss of the joint batch from the rows of all ranks, and backpropagates into its own
rows. With E_r the rows of rank r, L(E_1, ..., E_R; w) the joint loss and w the weights, some of
which L may read itself, the gradient of one process with the joint batch is::

    dL/dw + sum_r (dE_r/dw)^T dL/dE_r

DistributedDataParallel takes the mean over ranks of g_r, the gradient on rank r. All ranks compute
the same L from the same rows, so rank r has dL/dw and dL/dE_r without communication. With::

    g_r = dL/dw + R (dE_r/dw)^T dL/dE_r

that mean is the gradient above: the backward of the gather returns the gradient of this rank's rows
times R. It makes no collective call, whose order among those of DDP could differ between ranks.

A mean over rows that are not compared with each other needs only the number of rows of each rank.
With s_r the sum over the n_r rows of rank r, the joint mean is the mean over ranks of::

    R s_r / sum n = (R n_r / sum n) (s_r / n_r)

Each collective call in a forward pass begins with a meeting, in which each rank sends its position.
A rank whose forward pass stops early calls :func:`meet_at_end`. The others read that at their next
meeting and stop as well, so that no rank waits forever. Other collective calls in a forward pass,
such as those of SyncBN, do not take part in this.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

Result = TypeVar("Result")
_INSIDE, _AT_END = 0, 1


class StoppedElsewhereError(FloatingPointError):
    """Raised in a forward pass because that of another rank has stopped."""


def several_ranks() -> bool:
    """Return whether this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def join_rows(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Return the rows of all ranks, rank after rank; a collective call.

    A meeting and at most two collectives on tensors, without pickle. A single rank returns the
    tensors unchanged.

    Args:
        tensors: (n,) or (n, D), all with this rank's n rows, which may be 0 and differ between
            ranks; D and types as on the other ranks, except that half precision may meet float32.

    Returns:
        (N,) or (N, D), equal on all ranks. Floating-point tensors have float32 at least, and a
        gradient whose mean over ranks is that of one process (see above); others keep their type.

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
    # float32 at least: a rank without people may have empty rows of another type.
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
    """Return R n_r / sum n, the factor from the mean over this rank's rows to its joint share.

    A collective call if gradients are enabled; otherwise 1.

    Args:
        counted: (B,) bool, the n_r rows of this rank that the mean is taken over.

    Raises:
        StoppedElsewhereError: the forward pass of another rank has stopped.
    """
    if not (several_ranks() and torch.is_grad_enabled()):
        return 1.0
    reports = _meet_inside(counted.device, int(counted.sum()), 0, 0)
    counts = [count for count, *_ in reports]
    return len(counts) * counts[dist.get_rank()] / max(sum(counts), 1)


def meet_at_end(device: torch.device, *numbers: int) -> list[list[int]]:
    """Exchange three numbers with all ranks after a forward pass; a collective call.

    A rank whose forward pass stopped calls it as well; the others find out at their next meeting.

    Returns:
        The numbers of each rank.
    """
    while True:
        reports = _meet(device, _AT_END, *numbers)
        if all(place == _AT_END for place, *_ in reports):
            return [rest for _, *rest in reports]


def _announce(tables: list[torch.Tensor]) -> list[int]:
    """Exchange the shape of what is gathered; return the number of rows of each rank."""
    columns = sum(table.shape[1] for table in tables)
    wrong = any(t.requires_grad and not bool(torch.isfinite(t).all()) for t in tables)
    reports = _meet_inside(tables[0].device, len(tables[0]), columns, int(wrong))
    if wrong:
        raise FloatingPointError("embeddings or logits of this rank's batch are not finite")
    others = [rank for rank, (_, _, is_wrong) in enumerate(reports) if is_wrong]
    if others:
        raise StoppedElsewhereError(f"embeddings or logits of rank {others[0]} are not finite")
    return [count for count, *_ in reports]


def _join_packed(
    tables: list[torch.Tensor], dtype: torch.dtype, counts: list[int]
) -> Sequence[torch.Tensor]:
    """Gather the rows of several (n, D_i) in one collective, in ``dtype`` or a wider type."""
    if not tables:
        return []
    for table in tables:
        dtype = torch.promote_types(dtype, table.dtype)
    packed = torch.cat([table.to(dtype) for table in tables], dim=1)
    if max(counts):
        packed = _JoinRows.apply(packed, counts)
    return torch.split_with_sizes(packed, [table.shape[1] for table in tables], dim=1)


def _meet_inside(device: torch.device, count: int, columns: int, wrong: int) -> list[list[int]]:
    reports = _meet(device, _INSIDE, count, columns, wrong)
    stopped = [rank for rank, (place, *_) in enumerate(reports) if place == _AT_END]
    if stopped:
        raise StoppedElsewhereError(f"the forward pass of rank {stopped[0]} has stopped")
    if len({width for _, _, width, _ in reports}) > 1:
        widths = [width for _, _, width, _ in reports]
        raise ValueError(f"ranks gather different numbers of columns: {widths}")
    return [rest for _, *rest in reports]


def _meet(device: torch.device, *numbers: int) -> list[list[int]]:
    own = torch.tensor(numbers, dtype=torch.int64)
    if not several_ranks():
        return [own.tolist()]
    return torch.stack(_all_gather(own.to(_transport(device)))).tolist()


class _JoinRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        rank = dist.get_rank()
        ctx.num_ranks, ctx.own = len(counts), (sum(counts[:rank]), counts[rank])
        padded = rows.new_zeros((max(counts), rows.shape[1]), device=_transport(rows.device))
        padded[: len(rows)] = rows
        parts = [part[:n] for part, n in zip(_all_gather(padded), counts)]
        return torch.cat(parts).to(rows.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient.narrow(0, *ctx.own) * ctx.num_ranks, None


def _all_gather(tensor: torch.Tensor) -> list[torch.Tensor]:
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, tensor)
    return gathered


def _transport(device: torch.device) -> torch.device:
    # gloo gathers CPU tensors only, every other backend those of its device.
    return torch.device("cpu") if dist.get_backend() == "gloo" else device


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the model inside of DistributedDataParallel, or the model itself."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def fail_together(work: Callable[[], Result]) -> Result:
    """Call ``work`` and raise on all ranks if it fails on one; a collective call.

    Without it, the other ranks would wait forever for the one that stopped with an error.

    Raises:
        Exception: that of ``work`` on this rank. Otherwise, if ``work`` has raised a ValueError on
            another rank, a ValueError, and a RuntimeError for any other exception there.
    """
    error = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    report = error and (isinstance(error, ValueError), str(error) or type(error).__name__)
    problems = comm.all_gather(report)
    if error is not None:
        raise error
    for rank, problem in enumerate(problems):
        if problem is not None:
            kind = ValueError if problem[0] else RuntimeError
            raise kind(f"rank {rank} stopped: {problem[1]}")
    return result


def from_main_rank(value: Any) -> Any:
    """Return the value of rank 0 on all ranks; a collective call.

    Args:
        value: anything that can be pickled, with tensors on the CPU; of rank 0 alone it counts.
    """
    if comm.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=comm._get_global_gloo_group())
    return box[0]


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum a tensor of one shape over all ranks, in place; a collective call."""
    if comm.get_world_size() > 1:
        dist.all_reduce(values)
    return values
