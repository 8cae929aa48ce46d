"""Where the numbers of a training run go: Detectron2's writers, made to fit resumed runs."""

import json
import logging
import os
from typing import Optional

from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
)

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"


def build_writers(output_dir: str, max_iter: Optional[int] = None) -> list[EventWriter]:
    """Detectron2's default writers; TensorBoard's only where TensorBoard is installed."""
    os.makedirs(output_dir, exist_ok=True)
    writers = [CommonMetricPrinter(max_iter), JSONWriter(os.path.join(output_dir, METRICS_FILE))]
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        logger.info("TensorBoard is not installed: its event files are not written")
    else:
        writers.append(TensorboardXWriter(output_dir))
    return writers


def cut_metrics(output_dir: str, start_iter: int) -> None:
    """Drop what an interrupted run wrote about iterations that are going to be run again.

    Without it, ``metrics.json`` holds the iterations between the last checkpoint and a kill twice.
    The file is cut at the first line of ``start_iter`` or later, or at a torn line, in one call.
    """
    path = os.path.join(output_dir, METRICS_FILE)
    if not os.path.isfile(path):
        return
    end = 0
    with open(path, "rb") as f:
        for line in f:
            if not line.endswith(b"\n") or _iteration(line) >= start_iter:
                os.truncate(path, end)
                return
            end += len(line)


def _iteration(line: bytes) -> float:
    try:
        return json.loads(line)["iteration"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
