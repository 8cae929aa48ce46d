"""CPU threads of a training: as many as there are cores, and none that spins while it waits.

Nothing here imports torch, for :func:`wait_passively` must run before torch loads OpenMP.
"""

import os
from math import ceil
from pathlib import Path
from typing import Optional

#: Each says how OpenMP's threads wait, or how many there are: where one is set the user decides.
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
_NUMBER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_THREAD_LIMIT")


def wait_passively() -> None:
    """Let OpenMP's threads sleep where they wait for each other.

    By default they spin. On a machine that others use, one that has lost its core then keeps the
    others spinning until it is back: far more processor time, and many times the wall time, for
    the same bits. Call it before anything imports torch: OpenMP reads its settings when it is
    loaded. Processes that are started later inherit them. What the user has set stays.
    """
    if not any(name in os.environ for name in _WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def limit_threads(num_processes: int = 1) -> None:
    """Give this process its share of the cores that it may use; call it before any computation.

    The number does not depend on the load of the machine: another number of threads rounds
    otherwise, and a resumed training would not end as one that never stopped.

    Args:
        num_processes: how many like this one run on the machine.
    """
    if any(name in os.environ for name in _NUMBER):
        return
    import torch

    share = max(1, usable_cores() // num_processes)
    torch.set_num_threads(min(share, torch.get_num_threads()))


def usable_cores() -> int:
    """Cores that this process may use: by its affinity, and by the CPU quota of its cgroups.

    torch knows nothing of quotas: in a container with two cores of a machine of 64, it starts 64
    threads.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, ceil(quota)))


def cpu_quota(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> Optional[float]:
    """The least CPU quota, in cores, of this process's cgroups (version 1 or 2); ``None``: none.

    Args:
        root: where cgroups are mounted.
        own: the file that says which ones are those of this process.
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
        # A container may see its own cgroup as the root, under the path that the host knows.
        folder = top / path.lstrip("/")
        quotas += [_quota_of(f) for f in (folder, *folder.parents) if f == top or top in f.parents]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(folder: Path) -> Optional[float]:
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        # "max" in version 2 and -1 in version 1 are no limit.
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else None
    except (OSError, ValueError):
        return None
