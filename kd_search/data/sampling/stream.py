"""Endless training batches that can be taken up anywhere; what all training loaders share."""

from collections.abc import Iterator
from typing import Any, Optional

import torch
from detectron2.config import CfgNode
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from kd_search.data.sampling.order import DrawOrder, PositionBatchSampler
from kd_search.data.sampling.unreadable import SkipCounter, skipped_images


class DrawnBatches:
    """This rank's share of each global batch, as lists of samples, from ``start_iter`` on.

    Args:
        dataset: :class:`~.order.Draw` -> sample; what it gives must depend on
            nothing else.
        order: what is drawn when; has ``seed``, ``batch_size`` and ``batch(number)``.
        start_iter: batches to pass over.
        num_workers: worker processes; 0 loads in the training process.
        max_skipped_fraction: see :class:`~kd_search.data.sampling.unreadable.SkipCounter`.
        num_images: images of one epoch over all ranks.
        rank, world_size: default to those of the process group.

    Raises:
        ImageError: an image is unreadable and is not to be skipped, or ten in a row are. While
            iterating; the message names the file.
        TooManySkippedImagesError: while iterating.
        ValueError: a batch that the ranks cannot share evenly.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: DrawOrder,
        *,
        num_images: int,
        start_iter: int = 0,
        num_workers: int = 0,
        max_skipped_fraction: float = 0.01,
        rank: Optional[int] = None,
        world_size: Optional[int] = None,
    ) -> None:
        rank = comm.get_rank() if rank is None else rank
        world_size = comm.get_world_size() if world_size is None else world_size
        self.dataset = dataset
        self.order = order
        self.batch_sampler = PositionBatchSampler(order, start_iter, rank, world_size)
        self.num_workers = num_workers
        #: Counts of this process since it was started.
        self.skips = SkipCounter(max_skipped_fraction, num_images / world_size)

    def num_images_of(self, sample: dict[str, Any]) -> int:
        """How many images a sample shows."""
        return 1

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        loader = DataLoader(
            self.dataset,
            batch_sampler=self.batch_sampler,
            num_workers=self.num_workers,
            collate_fn=trivial_batch_collator,
            # Without its own generator, the loader would draw from the one of the training.
            generator=torch.Generator().manual_seed(self.order.seed % 2**63),
        )
        batches = iter(loader)
        try:
            for batch in batches:
                skipped = skipped_images(batch)
                self.skips.count(sum(map(self.num_images_of, batch)) + len(skipped), skipped)
                yield batch
        finally:
            # An exception of a worker ties the iterator into a reference cycle; left to the garbage
            # collector, whose order of clean-up cuts its queues first, every worker is waited for
            # in vain for seconds.
            getattr(batches, "_shutdown_workers", lambda: None)()


def seed_of(cfg: CfgNode) -> int:
    """``SEED``, or where it is negative a random one that the ranks agree on (a collective call).

    Args:
        cfg: config.
    """
    return cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
