"""Runs trainings as processes, several at a time, that can be stopped and taken up again."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Optional

from tqdm import tqdm

from kd_search.experiments.run_folder import (
    WEIGHTS_FILE,
    build_run_config,
    iterations_done,
    read_result,
    settings_of,
)

LOG_FILE = "log.txt"
_POLL_SECONDS = 1.0
_STOPPED = (130, 143, -signal.SIGINT, -signal.SIGTERM)


class RunFailed(RuntimeError):  # noqa: N818  it says what happened
    """A run that everything else waits for has failed."""


@dataclass
class Run:
    """One training and its folder."""

    name: str
    config_file: str
    #: KEY VALUE overrides.
    opts: list
    folder: Path

    @cached_property
    def config(self):
        return build_run_config(self.config_file, list(map(str, self.opts)), self.folder)

    @property
    def iterations(self) -> int:
        return self.config.SOLVER.MAX_ITER

    @property
    def weights(self) -> Path:
        """Where its trained network will be."""
        return self.folder / WEIGHTS_FILE

    def result(self) -> Optional[dict[str, Any]]:
        """What came out; ``None`` where it is not finished.

        Raises:
            ValueError: its folder holds a run with other settings.
        """
        return read_result(self.folder, settings_of(self.config))

    def command(self, *, on_train: bool = False, core: Optional[int] = None) -> list[str]:
        """The command that trains and evaluates it, or goes on with it."""
        command = [sys.executable, "-u", "-m", "kd_search.experiments.train_run"]
        command += ["--config-file", self.config_file, "--output", str(self.folder)]
        command += ["--on-train"] if on_train else []
        command += [] if core is None else ["--core", str(core)]
        return [*command, *map(str, self.opts)]


@dataclass
class _Working:
    run: Run
    process: subprocess.Popen
    core: Optional[int]
    start: float


def run_all(
    runs: Sequence[Run],
    *,
    jobs: int = 1,
    on_train: bool = False,
    after_each: Callable[[], Any] = lambda: None,
) -> list[str]:
    """Run what has no result yet.

    Args:
        runs: in the order in which they are started.
        jobs: so many at a time, each in one thread; more than one are kept on a core each.
        on_train: evaluate on the training set too.
        after_each: called when a run has ended well.

    Returns:
        a line for each run that failed. A single run that fails raises instead.

    Raises:
        KeyboardInterrupt: after SIGINT or SIGTERM, when all runs have stopped with a checkpoint.
        RunFailed: the only run failed; the line says where its log is.
        ValueError: the folder of a run holds one with other settings.
    """
    waiting = [run for run in runs if run.result() is None]
    if not waiting:
        return []
    if len(waiting) < len(runs):
        print(f"{len(runs) - len(waiting)} of {len(runs)} runs were done before", flush=True)
    cores = _cores(jobs)
    failed: list[str] = []
    working: list[_Working] = []
    progress = _Progress(runs, waiting)
    with _terminate_as_interrupt(), _stopped_at_the_end(working):
        while waiting or working:
            while waiting and len(working) < jobs:
                core = cores.pop(0)
                working.append(_start(waiting.pop(0), on_train, core))
            time.sleep(_POLL_SECONDS)
            progress.show([w.run for w in working])
            for ended in [w for w in working if w.process.poll() is not None]:
                working.remove(ended)
                cores.append(ended.core)
                failure = _failure(ended)
                progress.end(ended.run, time.monotonic() - ended.start, failure)
                if failure:
                    failed.append(failure)
                else:
                    after_each()
    progress.close()
    if failed and len(runs) == 1:
        raise RunFailed(failed[0])
    return failed


def _cores(jobs: int) -> list[Optional[int]]:
    if jobs == 1 or not hasattr(os, "sched_getaffinity"):
        return [None] * jobs
    cores = sorted(os.sched_getaffinity(0))
    if jobs > len(cores):
        raise ValueError(f"--jobs {jobs} is more than the {len(cores)} cores there are")
    return cores[:jobs]


def _start(run: Run, on_train: bool, core: Optional[int]) -> _Working:
    run.folder.mkdir(parents=True, exist_ok=True)
    with open(run.folder / LOG_FILE, "ab") as log:
        process = subprocess.Popen(
            run.command(on_train=on_train, core=core),
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            # Ctrl-C reaches this process alone, which then stops all of them in order.
            start_new_session=True,
        )
    return _Working(run, process, core, time.monotonic())


def _failure(ended: _Working) -> str:
    """Why a process has ended without a result; empty if it has one."""
    code = ended.process.returncode
    log = ended.run.folder / LOG_FILE
    if code == 0 and ended.run.result() is not None:
        return ""
    if code in _STOPPED:
        return f"{ended.run.name}: it was stopped from outside"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"{ended.run.name}: {lines[-1] if lines else f'exit status {code}'} (see {log})"


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Inside, SIGTERM does what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number, frame):
        raise KeyboardInterrupt

    # SIGINT too: started in the background, a process ignores it unless told otherwise.
    before = {n: signal.signal(n, interrupt) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _stopped_at_the_end(working: list[_Working]) -> Iterator[None]:
    """Leave no process behind: they are asked to stop, which they do with a checkpoint."""
    try:
        yield
    except BaseException:
        # Whoever interrupts twice does not want to wait.
        try:
            for w in working:
                w.process.send_signal(signal.SIGTERM)
            if working:
                print("\nstopping, with a checkpoint of every run", file=sys.stderr, flush=True)
            for w in working:
                w.process.wait()
        except KeyboardInterrupt:
            for w in working:
                w.process.kill()
        raise


class _Progress:
    """A bar over the iterations of all runs, and a line for each that ends."""

    def __init__(self, runs: Sequence[Run], waiting: Sequence[Run]):
        self.number = len(runs) - len(waiting)
        self.of = len(runs)
        self.todo = {run.name: run.iterations for run in waiting}
        self.before = {run.name: iterations_done(run.folder) for run in waiting}
        self.done = dict(self.before)
        self.start = time.monotonic()
        self.bar = tqdm(
            total=sum(self.todo.values()),
            initial=sum(self.done.values()),
            desc="iterations",
            smoothing=0.02,
            disable=None,
        )

    def show(self, runs: Sequence[Run]) -> None:
        for run in runs:
            self.done[run.name] = max(self.done[run.name], iterations_done(run.folder))
        self.bar.update(sum(self.done.values()) - self.bar.n)

    def end(self, run: Run, seconds: float, failure: str) -> None:
        self.number += 1
        if failure:
            # What it would have done takes no more time.
            self.todo[run.name] = self.done[run.name]
            what = f"FAILED: {failure}"
        else:
            self.done[run.name] = self.todo[run.name]
            metrics = list(run.result()["metrics"].items())[:2]
            what = ", ".join(f"{name} {value:.1f}" for name, value in metrics)
        line = f"[{self.number}/{self.of}] {run.name}: {what}, {_duration(seconds)}"
        left = sum(self.todo.values()) - sum(self.done.values())
        made = sum(self.done.values()) - sum(self.before.values())
        if left > 0 and made > 0:
            spent = time.monotonic() - self.start
            line += f"; about {_duration(spent * left / made)} left"
        self.bar.write(line)
        sys.stdout.flush()

    def close(self) -> None:
        self.bar.close()


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
