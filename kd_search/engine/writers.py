"""Where the numbers of a training run go, so that no kill loses any and no resume doubles any."""

import json
import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Optional

from detectron2.engine import HookBase
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    TensorboardXWriter,
    get_event_storage,
)

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"
_WINDOW = 20
#: Every step has it; results of an evaluation come in a line of their own.
_TRAINING_SCALAR = "lr"


class MetricsWriter(EventWriter):
    """Appends to ``metrics.json``, in the format of Detectron2's JSONWriter.

    That one writes nothing more of an iteration that it has written once. This one remembers what
    it has written by the name of the scalar: losses can be written before the checkpoint of an
    iteration, and the results of its evaluation afterwards.
    """

    def __init__(self, path: str):
        self._file = open(path, "a", encoding="utf-8")
        self._written: dict[str, int] = {}

    def write(self) -> None:
        """Write a line for each iteration that has new scalars; losses are medians of 20."""
        lines: dict[int, dict[str, float]] = defaultdict(dict)
        latest = get_event_storage().latest_with_smoothing_hint(_WINDOW)
        for name, (value, iteration) in latest.items():
            if iteration > self._written.get(name, -1):
                self._written[name] = iteration
                lines[iteration][name] = value
        for iteration in sorted(lines):
            line = json.dumps({**lines[iteration], "iteration": iteration}, sort_keys=True)
            self._file.write(line + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class _WriterHook(HookBase):
    def __init__(self, writers: Sequence[EventWriter], period: int, eval_period: int):
        """
        Args:
            writers: all of the run.
            period: iterations between two writings.
            eval_period: ``TEST.EVAL_PERIOD``; what is evaluated is written too.
        """
        self._writers = list(writers)
        self._periods = [p for p in (period, eval_period) if p > 0]

    def _is_due(self) -> bool:
        finished = self.trainer.iter + 1
        return finished == self.trainer.max_iter or any(finished % p == 0 for p in self._periods)


class ProgressHook(_WriterHook):
    """Writes losses to the console and to ``metrics.json``; belongs before the checkpoint.

    What comes before a checkpoint is in the file when the checkpoint is there, whenever the run is
    killed; what a killed run wrote of later iterations is cut by :func:`cut_metrics`.
    """

    def after_step(self) -> None:
        if self._is_due():
            for writer in self._writers:
                if isinstance(writer, (CommonMetricPrinter, MetricsWriter)):
                    writer.write()


class ResultsHook(_WriterHook):
    """Writes results of evaluations, and to all other writers; belongs behind the evaluation.

    Detectron2's printer divides by the number of iterations since it last printed: it is not called
    a second time in an iteration, neither here nor at the end.
    """

    def after_step(self) -> None:
        if self._is_due():
            self._write()

    def after_train(self) -> None:
        # A run that goes on later would have a line more than one that was never stopped.
        if not self.trainer.stopping:
            self._write()
        for writer in self._writers:
            writer.close()

    def _write(self) -> None:
        for writer in self._writers:
            if not isinstance(writer, CommonMetricPrinter):
                writer.write()


def build_writers(output_dir: str, max_iter: Optional[int] = None) -> list[EventWriter]:
    """Console, ``metrics.json``, and TensorBoard where TensorBoard is installed."""
    os.makedirs(output_dir, exist_ok=True)
    metrics = MetricsWriter(os.path.join(output_dir, METRICS_FILE))
    writers = [CommonMetricPrinter(max_iter), metrics]
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        logger.info("TensorBoard is not installed: its event files are not written")
    else:
        writers.append(TensorboardXWriter(output_dir))
    return writers


def cut_metrics(output_dir: str, start_iter: int) -> dict[str, float]:
    """Drop what an interrupted run wrote after the checkpoint that it goes on from.

    Without it, ``metrics.json`` holds the iterations between the last checkpoint and a kill twice.
    The file is cut, in one call, at the first line of ``start_iter`` or later, at a torn line, or
    at the results of an evaluation after the checkpoint itself.

    Returns:
        the results of that evaluation, to be written again; empty where there are none.
    """
    path = os.path.join(output_dir, METRICS_FILE)
    if not os.path.isfile(path):
        return {}
    end = 0
    with open(path, "rb") as f:
        for line in f:
            row = _parse(line)
            iteration = row.pop("iteration", float("inf"))
            is_evaluation = iteration == start_iter - 1 and _TRAINING_SCALAR not in row
            if iteration >= start_iter or is_evaluation:
                os.truncate(path, end)
                return row if is_evaluation else {}
            end += len(line)
    return {}


def _parse(line: bytes) -> dict:
    """A whole line, or nothing."""
    try:
        row = json.loads(line)
        float(row["iteration"])
    except (ValueError, KeyError, TypeError):
        return {}
    return row if line.endswith(b"\n") else {}
