"""Endless training batches that can start at any iteration; base of all training loaders."""

from collections.abc import Iterator
from typing import Any, Optional

import torch
from detectron2.config import CfgNode
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from kd_search.data.sampling.order import Order, PositionBatchSampler
from kd_search.data.sampling.unreadable import SkipCounter, skipped_images, skips_bad_images


class DrawnBatches:
    """The share of this rank in each global batch, as lists of samples, from ``start_iter`` on.

    Batches are exactly those of a loader that started at 0 and has passed ``start_iter`` batches.

    Args:
        dataset: :class:`~.order.Draw` -> sample; depends on nothing else.
        order: the draws of each batch.
        num_images: images of one epoch over all ranks.
        start_iter: number of the first batch.
        num_workers: worker processes; 0 loads in the training process.
        max_skipped_fraction: see :class:`~kd_search.data.sampling.unreadable.SkipCounter`.
        rank, world_size: default to those of the process group.

    Raises:
        ImageError: while iterating, an image is unreadable and is not to be skipped, or ten in a
            row are; the message names the file.
        TooManySkippedImagesError: while iterating.
        ValueError: the ranks cannot share a batch evenly.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: Order,
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
        #: Counts of this process since its start.
        self.skips = SkipCounter(max_skipped_fraction, num_images / world_size)

    def num_images_of(self, sample: dict[str, Any]) -> int:
        """Number of images in a sample."""
        return 1

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        loader = DataLoader(
            self.dataset,
            batch_sampler=self.batch_sampler,
            num_workers=self.num_workers,
            collate_fn=trivial_batch_collator,
            # Without its own generator, the loader would draw from that of the training.
            generator=torch.Generator().manual_seed(self.order.seed % 2**63),
        )
        batches = iter(loader)
        try:
            for batch in batches:
                skipped = skipped_images(batch)
                self.skips.count(sum(map(self.num_images_of, batch)) + len(skipped), skipped)
                yield batch
        finally:
            # An exception of a worker makes a reference cycle with the iterator. The garbage
            # collector would close its queues first and then wait seconds for each worker.
            getattr(batches, "_shutdown_workers", lambda: None)()


def stream_options(cfg: CfgNode, start_iter: int) -> dict[str, Any]:
    """Options of a training loader that all kinds of sets share.

    ``SEED``, where it is negative, is replaced by a random one that the ranks agree on (a
    collective call); the order of such a run cannot be resumed.
    """
    return {
        "skip_bad_images": skips_bad_images(cfg),
        "seed": cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        "start_iter": start_iter,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "max_skipped_fraction": cfg.INPUT.MAX_SKIPPED_FRACTION,
    }
