"""A line with the expected end, every few seconds of a pass over images."""

import datetime
import logging
import time
from collections.abc import Iterable

_LOG_EVERY_SECONDS = 5.0


class Progress:
    """Counts the batches of a pass over a loader and logs how far it is."""

    def __init__(self, data_loader: Iterable[list], what: str, logger: logging.Logger):
        """
        Args:
            data_loader: what is gone through; with a length, the expected end can be told.
            what: is being done, for the line.
            logger: of the module that does it.
        """
        self.total = len(data_loader) if hasattr(data_loader, "__len__") else None
        self.what = what
        self.logger = logger
        self.batches = self.images = 0
        self.start = self.last = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the start."""
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
        self.logger.info(
            "%s: %d%s (%.4f s / img)",
            *(self.what, self.batches, left, (now - self.start) / self.images),
        )
