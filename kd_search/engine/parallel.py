"""Small pieces for several ranks: the DDP wrap, joint decisions, and the tables all ranks share."""

import contextlib
import inspect
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kd_search.folder_lock import hold_folder, release_folder
from kd_search.modeling.id_table import IDTable


def wrap_model(model: nn.Module) -> nn.Module:
    """Wrap a model for data-parallel training where there are several ranks, on GPU or CPU.

    Detectron2's ``create_ddp_model`` names a GPU even for a model on the CPU. Buffers are not sent
    around: ID tables are updated alike on all ranks, and batch-norm statistics are per rank, as in
    Detectron2.
    """
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    # torch is replacing one argument by the other.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    keep = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    device_ids = None if device.type == "cpu" else [device.index]
    return DistributedDataParallel(model, device_ids=device_ids, **{keep: False})


def unwrap_model(model: nn.Module) -> nn.Module:
    """The model inside a DDP wrap, or the model itself."""
    return model.module if isinstance(model, DistributedDataParallel) else model


Result = TypeVar("Result")


def fail_together(work: Callable[[], Result]) -> Result:
    """Do the work of this rank; a collective call, after which all ranks are well or none is.

    Without it, a rank that stops with an error leaves the others waiting for what it would have
    sent.

    Raises:
        Exception: what ``work`` raised here; a ValueError or RuntimeError, by the kind of what
            happened there, where it failed on another rank alone.
    """
    result, error = None, None
    try:
        result = work()
    except Exception as caught:  # whatever it is, it is raised again
        error = caught
    facts = error and (isinstance(error, ValueError), str(error) or type(error).__name__)
    problems = comm.all_gather(facts)
    if error is not None:
        raise error
    for rank, problem in enumerate(problems):
        if problem is not None:
            kind = ValueError if problem[0] else RuntimeError
            raise kind(f"rank {rank} stopped: {problem[1]}")
    return result


def hold_together(folders: Sequence[str]) -> list[str]:
    """Reserve folders for a run: rank 0 for all ranks; a collective call.

    Returns:
        on rank 0, what is to be logged about folders that were taken over.

    Raises:
        FolderInUseError, OSError: as :func:`kd_search.folder_lock.hold_folder`; on the other ranks
            as :func:`fail_together`. Then none of the folders is held.
    """

    def work() -> list[str]:
        if not comm.is_main_process():
            return []
        with contextlib.ExitStack() as stack:
            messages = []
            for folder in folders:
                messages.append(hold_folder(folder))
                stack.callback(release_folder, folder)
            stack.pop_all()
        return [message for message in messages if message]

    return fail_together(work)


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum a tensor of the same shape over all ranks, in place; every rank must call it."""
    if comm.get_world_size() > 1:
        dist.all_reduce(values)
    return values


def id_tables(model: nn.Module) -> dict[str, IDTable]:
    """Every ID table of a model by its name, in the same order on all ranks."""
    return {n: m for n, m in unwrap_model(model).named_modules() if isinstance(m, IDTable)}
