"""Memory of the tensors of a function, measured in torch's allocators."""

import gc
import os
from typing import Callable

import torch
from torch.profiler import ProfilerActivity, profile

# The profiler logs to standard error that it starts, stops and finds no GPU.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")


def traced(function: Callable, device: str = "cpu") -> tuple[int, int]:
    """Run a function and measure what torch allocates on a device during it.

    Resident memory would include the allocator's reserves. Here every allocation counts, those
    inside operators included; two runs on a CPU agree to the byte. The function must not release
    what was allocated before.

    Returns:
        peak: largest number of bytes allocated at one time.
        kept: bytes allocated at the end, the function's result included.
    """
    gc.collect()
    return _traced_on_cpu(function) if device == "cpu" else _traced_on_gpu(function)


def _traced_on_cpu(function: Callable) -> tuple[int, int]:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        held = function()
    # One by one and in order; the profiler's tables only have sums per operator.
    changes = [e for e in run.profiler.kineto_results.events() if e.name() == "[memory]"]
    if not changes:
        raise RuntimeError("the profiler of this torch does not record memory")
    changes.sort(key=lambda event: event.start_ns())
    alive = peak = 0
    for change in changes:
        alive += change.nbytes()
        peak = max(peak, alive)
    del held
    return peak, alive


def _traced_on_gpu(function: Callable) -> tuple[int, int]:
    # Libraries allocate their workspaces on first use, and keep them.
    function()
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    held = function()
    torch.cuda.synchronize()
    peak, alive = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
    del held
    return peak - before, alive - before


def tensor_bytes(*tensors: torch.Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
