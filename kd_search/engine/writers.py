"""Writers of the numbers of a training run; a kill loses none, and a resume repeats none."""

import json
import logging
import os
import uuid
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    TensorboardXWriter,
    get_event_storage,
)

from kd_search.utils.comm import fail_together
from kd_search.utils.files import atomic_write

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"
#: Holds the id of the run of Weights & Biases.
WANDB_RUN_FILE = "wandb_run_id.txt"
_WINDOW = 20
#: Written in every step; results of an evaluation come in a separate line without it.
_TRAINING_SCALAR = "lr"


class _NewScalars:
    """The scalars that were logged since the last call."""

    def __init__(self) -> None:
        self._written: dict[str, int] = {}

    def take(self) -> list[tuple[int, dict[str, float]]]:
        """Iterations, ascending, with their new scalars; losses are medians of 20."""
        rows: dict[int, dict[str, float]] = defaultdict(dict)
        latest = get_event_storage().latest_with_smoothing_hint(_WINDOW)
        for name, (value, iteration) in latest.items():
            if iteration > self._written.get(name, -1):
                self._written[name] = iteration
                rows[iteration][name] = value
        return sorted(rows.items())


class MetricsWriter(EventWriter):
    """Appends to ``metrics.json``, in the format of Detectron2's JSONWriter.

    JSONWriter writes an iteration once only. This class tracks by scalar what it has written, so
    that losses can be written before the checkpoint of an iteration, and the results of its
    evaluation afterwards.
    """

    def __init__(self, path: str):
        self._file = open(path, "a", encoding="utf-8")
        self._scalars = _NewScalars()

    def write(self) -> None:
        """Write a line for each iteration with new scalars; losses are medians of 20."""
        for iteration, scalars in self._scalars.take():
            line = json.dumps({**scalars, "iteration": iteration}, sort_keys=True)
            self._file.write(line + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class WandbWriter(EventWriter):
    """Writes to a run of Weights & Biases; the package wandb is imported by :meth:`start`.

    The id of the run is kept in ``OUTPUT_DIR``, so that a resumed training continues it. Steps that
    a killed training has logged after its last checkpoint are not logged again: Weights & Biases
    ignores steps that are not new, and the resumed training has the same values there.
    """

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: its keys ``WANDB`` and ``OUTPUT_DIR`` are used; all of it is stored with the run.
        """
        self._cfg = cfg
        self._run: Any = None
        self._scalars = _NewScalars()

    def start(self, resumed: bool) -> None:
        """Start a run, or continue that of the folder if the training was ``resumed``.

        Raises:
            ValueError: wandb is not installed, or cannot start a run.
        """
        try:
            import wandb
        except ImportError:
            raise ValueError(
                "WANDB.ENABLED is True, but the package wandb is not installed: pip install wandb, "
                "or set WANDB.ENABLED to False"
            ) from None
        options, folder = self._cfg.WANDB, self._cfg.OUTPUT_DIR
        try:
            self._run = wandb.init(
                project=options.PROJECT,
                entity=options.ENTITY or None,
                name=options.NAME or os.path.basename(os.path.abspath(folder)),
                mode=options.MODE or None,
                dir=os.path.abspath(folder),
                id=_run_id(os.path.join(folder, WANDB_RUN_FILE), resumed),
                resume="allow",
                config=yaml.safe_load(self._cfg.dump()),
            )
        except Exception as error:  # of the client or its connection, of any type
            reason = " ".join(str(error).split())
            raise ValueError(
                f"WANDB: the run cannot be started: {reason}. Without a connection or an account, "
                "set WANDB.MODE to offline"
            ) from error

    def write(self) -> None:
        """Log every iteration with new scalars; losses are medians of 20."""
        for iteration, scalars in self._scalars.take():
            self._run.log(scalars, step=iteration)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


class StartWritersHook(HookBase):
    """Starts the writers that need it, on rank 0; an error there ends all ranks."""

    def __init__(self, writers: Sequence[EventWriter]):
        """
        Args:
            writers: all of the run; empty on other ranks than 0.
        """
        self._writers = [writer for writer in writers if hasattr(writer, "start")]

    def before_train(self) -> None:
        resumed = self.trainer.start_iter > 0
        fail_together(lambda: [writer.start(resumed) for writer in self._writers])


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


def build_writers(cfg: CfgNode) -> list[EventWriter]:
    """Build writers to console, ``metrics.json``, TensorBoard, if it is installed, and Weights &
    Biases, if it is enabled."""
    output_dir = cfg.OUTPUT_DIR
    os.makedirs(output_dir, exist_ok=True)
    metrics = MetricsWriter(os.path.join(output_dir, METRICS_FILE))
    writers = [CommonMetricPrinter(cfg.SOLVER.MAX_ITER), metrics]
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        logger.info("TensorBoard is not installed: its event files are not written")
    else:
        writers.append(TensorboardXWriter(output_dir))
    if cfg.WANDB.ENABLED:
        writers.append(WandbWriter(cfg))
    return writers


def _run_id(path: str, resumed: bool) -> str:
    """The id that the file holds, if the training was resumed; otherwise a new one, kept there."""
    if resumed and os.path.isfile(path):
        with open(path, encoding="utf-8") as f:
            return f.read().strip()
    number = uuid.uuid4().hex[:12]
    with atomic_write(path) as f:
        f.write(number.encode())
    return number


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
