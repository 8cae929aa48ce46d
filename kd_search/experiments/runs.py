"""Runs trainings as processes, several at a time, that can be stopped and resumed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Optional

from detectron2.config import CfgNode
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


class RunFailed(RuntimeError):  # noqa: N818  reads as a sentence where it is raised
    """A run that all others depend on has failed."""


@dataclass
class Run:
    """One training and its folder."""

    name: str
    config_file: str
    #: KEY VALUE overrides.
    opts: list[Any]
    folder: Path
    #: Results file in which the choices of the study must be recorded before the run is tested.
    choices: Optional[Path] = None
    #: Modules to import before, which register what the config names.
    imports: tuple[str, ...] = ()

    @cached_property
    def config(self) -> CfgNode:
        return build_run_config(self.config_file, list(map(str, self.opts)), self.folder)

    @property
    def weights(self) -> Path:
        """Where its trained weights are written."""
        return self.folder / WEIGHTS_FILE

    def result(self) -> Optional[dict[str, Any]]:
        """Content of the result file; ``None`` where the run is not finished.

        Raises:
            ValueError: the folder holds a run with other settings.
        """
        return read_result(self.folder, settings_of(self.config))

    def command(self, *, on_train: bool = False, core: Optional[int] = None) -> list[str]:
        """The command that trains and evaluates it, or resumes it."""
        command = [sys.executable, "-u", "-m", "kd_search.experiments.train_run"]
        command += ["--config-file", self.config_file, "--output", str(self.folder)]
        command += ["--on-train"] if on_train else []
        command += [] if core is None else ["--core", str(core)]
        command += [] if self.choices is None else ["--choices", str(self.choices)]
        command += [word for name in self.imports for word in ("--import", name)]
        return [*command, *map(str, self.opts)]


@dataclass
class _Process:
    run: Run
    process: subprocess.Popen
    core: Optional[int]
    start: float = field(default_factory=time.monotonic)

    def failure(self) -> str:
        """Why it ended without a result; empty if there is one."""
        code, log = self.process.returncode, self.run.folder / LOG_FILE
        if code == 0 and self.run.result() is not None:
            return ""
        if code in _STOPPED:
            return f"{self.run.name}: it was stopped from outside"
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return f"{self.run.name}: {lines[-1] if lines else f'exit status {code}'} (see {log})"


def run_all(
    runs: Sequence[Run],
    *,
    jobs: int = 1,
    on_train: bool = False,
    after_each: Callable[[], Any] = lambda: None,
) -> list[str]:
    """Run everything that has no result yet.

    Args:
        runs: in the order in which they are started.
        jobs: number of processes at a time, each with one thread; several are pinned to one core
            each.
        on_train: evaluate on the training set too.
        after_each: called after each successful run.

    Returns:
        a line for each failed run. A single run that fails raises instead.

    Raises:
        KeyboardInterrupt: after SIGINT or SIGTERM, when all runs have stopped with a checkpoint.
        RunFailed: the only run failed; the message names its log.
        ValueError: the folder of a run holds one with other settings, or too many ``jobs``.
    """
    waiting = [run for run in runs if run.result() is None]
    if not waiting:
        return []
    if len(waiting) < len(runs):
        print(f"{len(runs) - len(waiting)} of {len(runs)} runs were done before", flush=True)
    cores = _cores(jobs)
    failed: list[str] = []
    working: list[_Process] = []
    progress = _Progress(len(runs), waiting)
    with _stopped_by_signals(working):
        while waiting or working:
            while len(working) < jobs:
                ready = _first_ready(waiting, [*waiting, *(w.run for w in working)])
                if ready is None:
                    break
                waiting.remove(ready)
                working.append(_start(ready, on_train, cores.pop(0)))
            time.sleep(_POLL_SECONDS)
            progress.update([w.run for w in working])
            for ended in [w for w in working if w.process.poll() is not None]:
                working.remove(ended)
                cores.append(ended.core)
                failure = ended.failure()
                progress.end(ended, failure)
                if failure:
                    failed.append(failure)
                else:
                    after_each()
    progress.bar.close()
    if failed and len(runs) == 1:
        raise RunFailed(failed[0])
    return failed


def _first_ready(waiting: Sequence[Run], unfinished: Sequence[Run]) -> Optional[Run]:
    """The first run that does not start with the weights of an unfinished one."""

    def is_ready(run: Run) -> bool:
        values = set(map(str, run.opts))
        return not any(str(o.weights) in values for o in unfinished if o is not run)

    return next(filter(is_ready, waiting), None)


def _cores(jobs: int) -> list[Optional[int]]:
    if jobs == 1 or not hasattr(os, "sched_getaffinity"):
        return [None] * jobs
    cores: list[Optional[int]] = [*sorted(os.sched_getaffinity(0))]
    if jobs > len(cores):
        raise ValueError(f"--jobs {jobs} is more than the {len(cores)} available cores")
    return cores[:jobs]


def _start(run: Run, on_train: bool, core: Optional[int]) -> _Process:
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
    return _Process(run, process, core)


@contextmanager
def _stopped_by_signals(working: list[_Process]) -> Iterator[None]:
    """SIGTERM and SIGINT raise KeyboardInterrupt inside. Any exception stops all processes, which
    write a checkpoint on SIGTERM."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    # SIGINT too: a process started in the background ignores it by default.
    is_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    except BaseException:
        try:
            for w in working:
                w.process.send_signal(signal.SIGTERM)
            if working:
                print("\nstopping, with a checkpoint of every run", file=sys.stderr, flush=True)
            for w in working:
                w.process.wait()
        except KeyboardInterrupt:  # a second interrupt does not wait
            for w in working:
                w.process.kill()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Progress:
    """A bar over the iterations of all runs, and a line for each run that ends."""

    def __init__(self, total: int, waiting: Sequence[Run]) -> None:
        self.ended, self.total = total - len(waiting), total
        self.done = {run.name: iterations_done(run.folder) for run in waiting}
        self.resumed = sum(self.done.values())
        self.start = time.monotonic()
        self.bar = tqdm(
            total=sum(run.config.SOLVER.MAX_ITER for run in waiting),
            initial=self.resumed,
            desc="iterations",
            smoothing=0.02,
            disable=None,
        )

    def update(self, runs: Sequence[Run]) -> None:
        for run in runs:
            self.done[run.name] = max(self.done[run.name], iterations_done(run.folder))
        self.bar.update(sum(self.done.values()) - self.bar.n)

    def end(self, ended: _Process, failure: str) -> None:
        run, now = ended.run, time.monotonic()
        self.ended += 1
        if failure:
            self.bar.total -= run.config.SOLVER.MAX_ITER - self.done[run.name]
            what = f"FAILED: {failure}"
        else:
            self.done[run.name] = run.config.SOLVER.MAX_ITER
            metrics = list((run.result() or {})["metrics"].items())[:2]
            what = ", ".join(f"{name} {value:.1f}" for name, value in metrics)
        duration = _duration(now - ended.start)
        line = f"[{self.ended}/{self.total}] {run.name}: {what}, {duration}"
        done = sum(self.done.values())
        if self.bar.total > done > self.resumed:
            left = (now - self.start) * (self.bar.total - done) / (done - self.resumed)
            line += f"; about {_duration(left)} left"
        self.bar.write(line)
        sys.stdout.flush()


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
