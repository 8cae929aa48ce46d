"""Progress over all trainings of a project."""

import time
from collections.abc import Sequence
from typing import Optional

from detectron2.engine import HookBase

from kd_search.pipeline.console import Console
from kd_search.pipeline.steps import Task

_EVERY = 20


class WholeProgress:
    """Counts the iterations of all trainings, and estimates the time that is left."""

    def __init__(self, tasks: Sequence[Task], console: Optional[Console] = None):
        """
        Args:
            tasks: those with iterations are trainings.
            console: shows the progress.
        """
        self.console = console or Console()
        self._left = {task.name: task.iterations for task in tasks if task.iterations}
        self._total = sum(self._left.values())
        #: Step of a training, as those of several seeds take equally long.
        self._step = {task.name: task.step for task in tasks}
        self._seconds: dict[str, float] = {}

    def done(self, name: str) -> None:
        """Count a training that has been done, or that will not run."""
        if name in self._left:
            self._left[name] = 0

    def hook(self, name: str) -> HookBase:
        """Hook of a training that shows the progress every 20 iterations."""
        return _Hook(self, name)

    def update(self, name: str, left: int, seconds: float) -> str:
        """The progress in words.

        Args:
            name: of the training that runs.
            left: iterations that it has left.
            seconds: that an iteration takes.
        """
        self._left[name] = left
        self._seconds[self._step[name]] = seconds
        rest = sum(
            count * self._seconds.get(self._step[other], seconds)
            for other, count in self._left.items()
        )
        done = 100 * (1 - sum(self._left.values()) / self._total)
        return f"about {in_words(rest)} left, {done:.0f} % of all trainings"


class _Hook(HookBase):
    def __init__(self, progress: WholeProgress, name: str):
        self._progress, self._name = progress, name

    def before_train(self) -> None:
        self._start = time.monotonic()

    def after_step(self) -> None:
        finished, whole = self.trainer.iter + 1, self.trainer.max_iter
        if finished % _EVERY and finished != whole:
            return
        seconds = (time.monotonic() - self._start) / (finished - self.trainer.start_iter)
        text = self._progress.update(self._name, whole - finished, seconds)
        self._progress.console.progress(f"{text}, {finished} of {whole}", finished / whole)


def in_words(seconds: float) -> str:
    """A duration to the minute, or to the second below two minutes."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
