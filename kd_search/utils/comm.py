"""Collective operations on top of ``detectron2.utils.comm``."""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel


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


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum a tensor of the same shape over all ranks, in place; every rank must call it."""
    if comm.get_world_size() > 1:
        dist.all_reduce(values)
    return values
