"""Replacement, counting and limits of images that cannot be read."""

import logging
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, Callable, TypeVar

from detectron2.config import CfgNode
from torch.utils.data import DataLoader

from kd_search.data.io.image import ImageError
from kd_search.data.sampling.order import make_generator, seeded

logger = logging.getLogger(__name__)

#: Key of a sample that replaces unreadable images: the list of their file names.
SKIPPED_KEY = "skipped_images"

#: Unreadable images in a row after which a draw fails.
MAX_ATTEMPTS = 10

Item = TypeVar("Item", bound=Hashable)
Result = TypeVar("Result")


class TooManySkippedImagesError(RuntimeError):
    """More images could not be read than ``INPUT.MAX_SKIPPED_FRACTION`` allows."""


def read_or_replace(
    item: Item,
    entropy: Sequence[int],
    *,
    read: Callable[[Item], Result],
    file_name: Callable[[Item], str],
    others: Callable[[], Iterable[Sequence[Item]]],
    skip: bool,
) -> tuple[Result, Item, list[str]]:
    """Read an item with its own random numbers; draw another one while it is unreadable.

    Args:
        item: what was drawn.
        entropy: numbers that all randomness is derived from, with the number of failures.
        read: item -> sample.
        file_name: file of an item.
        others: groups of items that can replace it, preferred ones first.
        skip: replace unreadable images; otherwise their error is raised.

    Returns:
        The sample, its item and the unreadable files.

    Raises:
        ImageError: an image is unreadable and not to be skipped, or no other one is.
    """
    failed: dict[Item, str] = {}
    while True:
        try:
            with seeded(*entropy, len(failed)):
                return read(item), item, list(failed.values())
        except ImageError:
            if not skip:
                raise
            failed[item] = file_name(item)
        for group in others() if len(failed) < MAX_ATTEMPTS else ():
            left = [other for other in group if other not in failed]
            if left:
                item = left[int(make_generator(*entropy, len(failed)).integers(len(left)))]
                break
        else:
            raise ImageError(
                f"{len(failed)} images drawn one after the other cannot be read: "
                + ", ".join(failed.values())
            )


class SkipCounter:
    """Counts unreadable images, warns of each, and limits their fraction.

    The fraction is that of the drawn images, but at least ``expected`` of them, so that one bad
    file among the first does not end a run.

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
        """Add drawn images (the skipped ones included).

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
    """Mapper that returns ``{"skipped_images": [file]}`` for an image that cannot be read.

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
    """Batches of a loader without its unreadable images, which ``len`` still counts.

    Args:
        loader: its mapper is a :class:`SkipUnreadable`.
        skips: counts the unreadable images.
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
    """Unreadable files that the samples of a batch replace."""
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
