"""What becomes of images that cannot be read: counted, warned of, and bounded."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Callable

from detectron2.config import CfgNode
from torch.utils.data import DataLoader

from kd_search.data.io.image import ImageError

logger = logging.getLogger(__name__)

#: Key of a sample that stands in for unreadable images: the list of their file names.
SKIPPED_KEY = "skipped_images"

#: Unreadable images in a row after which a single draw gives up.
MAX_ATTEMPTS = 10


class TooManySkippedImagesError(RuntimeError):
    """More images could not be read than ``INPUT.MAX_SKIPPED_FRACTION`` allows."""


class SkipCounter:
    """Counts unreadable images, warns of each, and stops when they become too many.

    The fraction is taken of what was drawn, and of ``expected`` before that many were drawn, so
    that one bad file among the first ones does not end a run that it would not end later.

    Args:
        max_fraction: allowed fraction of images.
        expected: images of one epoch of this process.
    """

    def __init__(self, max_fraction: float, expected: float) -> None:
        self.max_fraction = max_fraction
        self.expected = expected
        self.num_drawn = 0
        self.num_skipped = 0

    def count(self, drawn: int, skipped: Sequence[str]) -> None:
        """Add what was drawn (the skipped ones included).

        Raises:
            TooManySkippedImagesError: the allowed fraction is exceeded.
        """
        self.num_drawn += drawn
        self.num_skipped += len(skipped)
        for name in skipped:
            logger.warning("Skipped unreadable image %s (%d so far)", name, self.num_skipped)
        if self.num_skipped > self.max_fraction * max(self.num_drawn, self.expected):
            raise TooManySkippedImagesError(
                f"{self.num_skipped} of {self.num_drawn} images could not be read, more than the "
                f"fraction {self.max_fraction} of INPUT.MAX_SKIPPED_FRACTION allows; "
                f"the last one: {skipped[-1] if skipped else 'see the warnings above'}"
            )


class SkipUnreadable:
    """Mapper that gives ``{"skipped_images": [file]}`` for an image that cannot be read.

    Args:
        mapper: dataset dict -> sample.
    """

    def __init__(self, mapper: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self.mapper = mapper

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        try:
            return self.mapper(record)
        except ImageError:
            return {SKIPPED_KEY: [record["file_name"]]}


class ReadableSamples:
    """Batches of a loader without the images that could not be read; ``len`` counts them still.

    Args:
        loader: its mapper is a :class:`SkipUnreadable`.
        skips: counts what is left out.
    """

    def __init__(self, loader: DataLoader, skips: SkipCounter) -> None:
        self.loader = loader
        self.skips = skips

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for batch in self.loader:
            self.skips.count(len(batch), skipped_images(batch))
            batch = [sample for sample in batch if SKIPPED_KEY not in sample]
            if batch:
                yield batch


def skipped_images(batch: list[dict[str, Any]]) -> list[str]:
    """Files that the samples of a batch stand in for."""
    return [name for sample in batch for name in sample.get(SKIPPED_KEY, ())]


def skips_bad_images(cfg: CfgNode) -> bool:
    """Whether ``INPUT.ON_IMAGE_ERROR`` is "skip".

    Raises:
        ValueError: it is neither "skip" nor "raise".
    """
    if cfg.INPUT.ON_IMAGE_ERROR not in ("raise", "skip"):
        raise ValueError(
            f"INPUT.ON_IMAGE_ERROR {cfg.INPUT.ON_IMAGE_ERROR!r}: use 'raise' or 'skip'"
        )
    return cfg.INPUT.ON_IMAGE_ERROR == "skip"
