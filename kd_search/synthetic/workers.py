"""Processes that draw pictures."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Callable

import cv2


def run_jobs(make: Callable[[Any], Any], jobs: Sequence[Any], workers: int) -> Iterator[Any]:
    """What ``make`` returns for every job, in their order.

    Args:
        make: function of a module.
        jobs: its arguments, one each.
        workers: processes; 1 or less works in this one.
    """
    if workers <= 1:
        yield from map(make, jobs)
        return
    # "spawn": a fork of a process that already runs torch or OpenCV threads may hang. An executor
    # and not a Pool, which waits forever for a worker that was killed.
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
    )
    try:
        yield from pool.map(make, jobs, chunksize=4)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    cv2.setNumThreads(1)
    # Ctrl-C reaches the whole process group; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Workers of an executor whose process was killed would wait for work forever.
    multiprocessing.parent_process().join()
    os._exit(1)
