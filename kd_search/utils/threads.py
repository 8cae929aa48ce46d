"""CPU threads of a training: no more than usable cores, and no spinning while they wait.

This module does not import torch at the top, because :func:`wait_passively` must run before torch
loads OpenMP.
"""

from __future__ import annotations

import os
from math import ceil
from pathlib import Path

#: Variables for how OpenMP's threads wait and for their number. If one is set, it is respected.
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
_NUMBER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_THREAD_LIMIT")


def wait_passively() -> None:
    """Make OpenMP's threads sleep while they wait for each other.

    By default they spin. On a busy machine a thread that has lost its core keeps the others
    spinning until it is back, at far more processor time and many times the wall time for the same
    result. Call this before anything imports torch: OpenMP reads its settings when it is loaded.
    Child processes inherit them. Variables that the user has set are kept.
    """
    if not any(name in os.environ for name in _WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def limit_threads(num_processes: int = 1) -> None:
    """Limit torch's threads to this process's share of the usable cores, before any computation.

    The number does not depend on the load of the machine, because rounding depends on the number of
    threads and a resumed training must equal one that never stopped.

    Args:
        num_processes: processes of this kind on the machine.
    """
    if any(name in os.environ for name in _NUMBER):
        return
    import torch

    share = max(1, usable_cores() // num_processes)
    torch.set_num_threads(min(share, torch.get_num_threads()))


def usable_cores() -> int:
    """Return the cores that this process may use, by its affinity and the quota of its cgroups.

    torch ignores quotas: in a container with two cores of a machine of 64 it starts 64 threads.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, ceil(quota)))


def cpu_quota(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> float | None:
    """Return the lowest CPU quota, in cores, of this process's cgroups (version 1 or 2), if any.

    Args:
        root: mount point of the cgroups.
        own: the file that lists those of this process.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "cpu" if controllers else root
        # A container may have its own cgroup mounted as the root, under the path of the host.
        folder = top / path.lstrip("/")
        quotas += [_quota_of(f) for f in (folder, *folder.parents) if f == top or top in f.parents]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        # "max" in version 2 and -1 in version 1 mean no limit.
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else None
    except (OSError, ValueError):
        return None
