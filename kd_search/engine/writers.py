"""Writers of the numbers of a training run; a kill loses none, and a resume repeats none."""

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
#: Written in every step; results of an evaluation come in a separate line without it.
_TRAINING_SCALAR = "lr"


class MetricsWriter(EventWriter):
    """Appends to ``metrics.json``, in the format of Detectron2's JSONWriter.

    JSONWriter writes an iteration once only. This class tracks by scalar what it has written, so
    that losses can be written before the checkpoint of an iteration, and the results of its
    evaluation afterwards.
    """

    def __init__(self, path: str):
        self._file = open(path, "a", encoding="utf-8")
        self._written: dict[str, int] = {}

    def write(self) -> None:
        """Write a line for each iteration with new scalars; losses are medians of 20."""
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
            period: iterations between two calls of the writers.
            eval_period: ``TEST.EVAL_PERIOD``; iterations with an evaluation are written as well.
        """
        self._writers = list(writers)
        self._periods = [p for p in (period, eval_period) if p > 0]

    def after_step(self) -> None:
        finished = self.trainer.iter + 1
        if finished == self.trainer.max_iter or any(finished % p == 0 for p in self._periods):
            self._write()

    def _write(self) -> None:
        raise NotImplementedError


class ProgressHook(_WriterHook):
    """Writes losses to the console and to ``metrics.json``; must run before the checkpointer.

    A checkpoint on disk implies that the losses before it are in the file. :func:`cut_metrics`
    removes what a killed run wrote of later iterations.
    """

    def _write(self) -> None:
        for writer in self._writers:
            if isinstance(writer, (CommonMetricPrinter, MetricsWriter)):
                writer.write()


class ResultsHook(_WriterHook):
    """Writes results of evaluations, and to all other writers; must run after the evaluation.

    It skips Detectron2's printer, which divides by the number of iterations since its last call
    and must not be called twice in an iteration.
    """

    def after_train(self) -> None:
        # A run that is resumed later would have one more line than a run without interruption.
        if not self.trainer.stopping:
            self._write()
        for writer in self._writers:
            writer.close()

    def _write(self) -> None:
        for writer in self._writers:
            if not isinstance(writer, CommonMetricPrinter):
                writer.write()


def build_writers(output_dir: str, max_iter: Optional[int] = None) -> list[EventWriter]:
    """Build writers to console, ``metrics.json`` and, if it is installed, TensorBoard."""
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
    """Remove from ``metrics.json`` what a run wrote after the checkpoint that is resumed.

    The file is truncated, in one call, at the first line that is of ``start_iter`` or later, is
    incomplete, or has the results of an evaluation after the checkpoint itself.

    Returns:
        the results of that evaluation, to be written again; empty if there are none.
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
    """Return the scalars of a complete line, else an empty dict."""
    try:
        row = json.loads(line)
        float(row["iteration"])
    except (ValueError, KeyError, TypeError):
        return {}
    return row if line.endswith(b"\n") else {}
