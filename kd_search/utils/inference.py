"""Inference over a data loader: evaluation mode, and progress in the log."""

import datetime
import logging
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

from torch import nn

_LOG_EVERY_SECONDS = 5.0


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode inside of the block; restore the mode of each module afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class Progress:
    """Count the batches of a pass over a loader, and log the count and the expected end."""

    def __init__(self, data_loader: Iterable[Any], what: str, logger: logging.Logger):
        """
        Args:
            data_loader: without a length no expected end is logged.
            what: name of the work in the log line.
            logger: of the calling module.
        """
        self.total = len(data_loader) if isinstance(data_loader, Sized) else None
        self.what = what
        self.logger = logger
        self.batches = self.images = 0
        self.start = self.last = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    def step(self, num_images: int) -> None:
        """Count one batch."""
        self.batches += 1
        self.images += num_images
        now = time.perf_counter()
        if now - self.last < _LOG_EVERY_SECONDS:
            return
        self.last = now
        left = ""
        if self.total:
            seconds = (now - self.start) / self.batches * (self.total - self.batches)
            left = f" of {self.total} batches. ETA={datetime.timedelta(seconds=int(seconds))}"
        seconds_per_image = (now - self.start) / self.images
        self.logger.info(
            "%s: %d%s (%.4f s / img)", self.what, self.batches, left, seconds_per_image
        )
