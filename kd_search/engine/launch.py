"""Starts a training script: alone, as processes of one or more machines, or under torchrun."""

import linecache
import logging
import multiprocessing
import os
import signal
import socket
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm
from torch import multiprocessing as mp

from kd_search.utils.threads import limit_threads, wait_passively

logger = logging.getLogger(__name__)

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_TIMEOUT = timedelta(minutes=30)
#: Exit status for bad input.
BAD_INPUT = 2


def launch(main: Callable[[Namespace], Any], args: Namespace) -> Any:
    """Run ``main(args)`` in as many processes as the arguments or torchrun specify.

    Args:
        main: defined at the top level of a module, so that other processes can import it.
        args: of Detectron2's ``default_argument_parser``: ``num_gpus``, ``num_machines``,
            ``machine_rank``, ``dist_url`` ("auto" picks a free port). torchrun overrides these.
            Without a GPU, ``num_gpus`` is the number of CPU processes.

    Returns:
        the result of ``main``, where it ran in this process.

    Raises:
        SystemExit: 2 for bad input (see :func:`is_bad_input`), after one line on stderr; 130 and
            143 after SIGINT and SIGTERM.
    """
    if all(name in os.environ for name in _TORCHRUN):
        return _run_under_torchrun(main, args)
    if args.num_gpus * args.num_machines <= 1:
        limit_threads()
        return _run(main, args)
    wait_passively()  # the processes inherit it
    try:
        if torch.cuda.is_available():
            detectron2_launch(
                _run,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(main, args),
            )
        else:
            _spawn_on_cpu(main, args)
    except mp.ProcessExitedException as error:
        # The process has printed the reason.
        if error.exit_code not in (BAD_INPUT, 128 + signal.SIGINT, 128 + signal.SIGTERM):
            raise
        sys.exit(error.exit_code)


def _run(main: Callable[[Namespace], Any], args: Namespace) -> Any:
    try:
        return main(args)
    except KeyboardInterrupt:
        # multiprocessing would give a spawned process exit status 0.
        sys.exit(128 + signal.SIGINT)
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        if not is_bad_input(error):
            raise
        # The error of a loader worker contains its traceback; the message is the last line.
        print(f"error: {str(error).strip().splitlines()[-1]}", file=sys.stderr)
        sys.exit(BAD_INPUT)


def is_bad_input(error: BaseException) -> bool:
    """Return whether the error reports bad input, and not a bug that needs its traceback.

    That is an error class of kd_search, or any error from a ``raise`` statement of kd_search.
    """
    if type(error).__module__.startswith("kd_search."):
        return True
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    # A function in C has no frame: what ``int("x")`` raises ends in the frame of its caller.
    statement = linecache.getline(frame.f_code.co_filename, line, frame.f_globals).lstrip()
    is_ours = frame.f_globals.get("__name__", "").startswith("kd_search.")
    return is_ours and statement.startswith("raise ")


def _run_under_torchrun(main: Callable[[Namespace], Any], args: Namespace) -> Any:
    if args.num_gpus > 1 or args.num_machines > 1:
        logger.warning("Running under torchrun: --num-gpus and --num-machines are ignored")
    if int(os.environ["WORLD_SIZE"]) == 1:
        return _run(main, args)
    local_rank = int(os.environ["LOCAL_RANK"])
    return _with_process_group(
        main, args, "env://", local_rank, int(os.environ["LOCAL_WORLD_SIZE"])
    )


def _spawn_on_cpu(main: Callable[[Namespace], Any], args: Namespace) -> None:
    """Start processes on this machine, which Detectron2 0.5 does with GPUs only."""
    url = args.dist_url
    if url == "auto":
        if args.num_machines > 1:
            raise ValueError("--dist-url auto works on one machine only: set tcp://HOST:PORT")
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            url = f"tcp://127.0.0.1:{s.getsockname()[1]}"
    logger.warning("No GPU: --num-gpus %d starts as many CPU processes", args.num_gpus)
    context = mp.start_processes(
        _cpu_worker, args=(main, args, url), nprocs=args.num_gpus, join=False
    )

    def forward(number: int, frame: Any) -> None:
        # A terminal sends Ctrl-C to the processes as well. They ignore a SIGTERM after it; a second
        # SIGINT would stop them before they have saved.
        for process in context.processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGTERM)

    previous = {s: signal.signal(s, forward) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not context.join():
            pass
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _cpu_worker(
    local_rank: int, main: Callable[[Namespace], Any], args: Namespace, url: str
) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        # The parent was killed while this process was starting, and will not end it.
        sys.exit(128 + signal.SIGKILL)
    limit_threads(args.num_gpus)
    rank = args.machine_rank * args.num_gpus + local_rank
    world_size = args.num_gpus * args.num_machines
    _with_process_group(main, args, url, local_rank, args.num_gpus, rank, world_size)


def _with_process_group(
    main: Callable[[Namespace], Any],
    args: Namespace,
    url: str,
    local_rank: int,
    local_size: int,
    rank: int = -1,
    world_size: int = -1,
) -> Any:
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local_rank)
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(
        backend, init_method=url, timeout=_TIMEOUT, rank=rank, world_size=world_size
    )
    _create_local_process_group(local_size)
    comm.synchronize()
    result = _run(main, args)
    # All processes must be done with the group before one destroys it.
    comm.synchronize()
    dist.destroy_process_group()
    return result


def _create_local_process_group(local_size: int) -> None:
    """Set the groups of ranks on one machine; Detectron2 0.5 has no function for it."""
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(local_size)
        return
    for first in range(0, dist.get_world_size(), local_size):
        group = dist.new_group(list(range(first, first + local_size)))
        if first <= dist.get_rank() < first + local_size:
            comm._LOCAL_PROCESS_GROUP = group
