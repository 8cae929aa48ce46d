"""Which image is drawn when: the order of training as a pure function of seed and position."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """One draw of the training stream."""

    #: Place in the stream of all ranks: global batch times batch size, plus place in the batch.
    position: int
    #: Index of the image in the data set.
    index: int


class DrawOrder:
    """The infinite sequence of global batches.

    Images are split by group (tall and wide ones, or all in one). Every group is an endless chain
    of its own shuffled epochs, cut into batches, so a batch holds one group only, and no image is
    drawn again before all of its group were. Batches of the groups are interleaved evenly, each
    group as often as its share of the data set. All of it can be computed from the number of the
    batch, so training can start anywhere and ranks need not talk to each other. How many ranks
    share a batch does not matter.

    Args:
        groups: (N,) small integers, the group of each image.
        batch_size: images of a batch over all ranks.
        seed: the only source of randomness.

    Raises:
        ValueError: there is no image, or the batch size is below 1.
    """

    def __init__(self, groups: Sequence[int], batch_size: int, seed: int) -> None:
        groups = np.asarray(groups, dtype=np.int64)
        if groups.size == 0:
            raise ValueError("cannot draw from an empty data set")
        if batch_size < 1:
            raise ValueError(f"batch size {batch_size} is below 1")
        if seed < 0:
            raise ValueError(f"seed {seed} is negative")
        self.batch_size = batch_size
        self.seed = seed
        self.num_images = int(groups.size)
        members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
        # Largest group first: batches of rare shapes come late in their turn, not at the start.
        self._members = sorted(members, key=lambda indices: (-len(indices), int(indices[0])))
        self._epochs: dict[tuple[int, int], np.ndarray] = {}

    def batch(self, number: int) -> list[Draw]:
        """Draws of a global batch, numbered from 0."""
        group, turn = self._group_and_turn(number)
        first = number * self.batch_size
        return [
            Draw(first + offset, self._at(group, turn * self.batch_size + offset))
            for offset in range(self.batch_size)
        ]

    def peers(self, index: int) -> np.ndarray:
        """Indices of the group of an image: what may stand in for it in a batch."""
        for members in self._members:
            place = np.searchsorted(members, index)
            if place < len(members) and members[place] == index:
                return members
        raise IndexError(f"no image {index} in a data set of {self.num_images}")

    def _group_and_turn(self, number: int) -> tuple[int, int]:
        # Groups after the first take turns by rounding their share of the batches so far; the
        # first group takes what is left. With two groups this is an even interleaving.
        for group in range(len(self._members) - 1, 0, -1):
            turn = self._turns(group, number)
            number_left = number - turn
            if self._turns(group, number + 1) > turn:
                return group, turn
            number = number_left
        return 0, number

    def _turns(self, group: int, number: int) -> int:
        """Batches of a group among the first ``number`` batches of this and larger groups."""
        share = len(self._members[group])
        total = sum(len(members) for members in self._members[: group + 1])
        return (number * share + total // 2) // total

    def _at(self, group: int, place: int) -> int:
        epoch, offset = divmod(place, len(self._members[group]))
        if (group, epoch) not in self._epochs:
            if len(self._epochs) >= 2 * len(self._members):
                self._epochs.clear()
            # A named bit generator is the same on every machine and in every version of NumPy.
            generator = np.random.Generator(np.random.PCG64([self.seed, group, epoch]))
            self._epochs[group, epoch] = generator.permutation(self._members[group])
        return int(self._epochs[group, epoch][offset])


class PositionBatchSampler(Sampler):
    """Endless batch sampler: this rank's share of each global batch, as lists of :class:`Draw`.

    Args:
        order: the sequence of global batches.
        start: first global batch.
        rank, world_size: this rank takes the ``rank``-th contiguous part of each batch.

    Raises:
        ValueError: the batch cannot be split evenly.
    """

    def __init__(
        self, order: DrawOrder, start: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        if order.batch_size % world_size:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH {order.batch_size} is not divisible by {world_size} ranks"
            )
        if start < 0:
            raise ValueError(f"cannot start at batch {start}")
        self.order = order
        self.start = start
        share = order.batch_size // world_size
        self._share = slice(rank * share, (rank + 1) * share)

    def __iter__(self) -> Iterator[list[Draw]]:
        number = self.start
        while True:
            yield self.order.batch(number)[self._share]
            number += 1


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Seed NumPy's, Python's and torch's CPU generator from the numbers; restore them afterwards.

    Augmentations of Detectron2 draw from the global generators, so this is what makes a sample
    the same in a worker and in the training process, and leaves the training process untouched.
    """
    states = np.random.get_state(), random.getstate(), torch.get_rng_state()
    words = np.random.SeedSequence(entropy).generate_state(3)
    for_numpy, for_python, for_torch = (int(word) for word in words)
    try:
        np.random.seed(for_numpy)
        random.seed(for_python)
        # torch.manual_seed would also reseed the GPUs, which is not undone below.
        torch.random.default_generator.manual_seed(for_torch)
        yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])
        torch.set_rng_state(states[2])
