"""Order of training samples as a pure function of seed and position."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import Sampler

# Names of the random streams of IdentityOrder, which are different from those of other orders.
_IDENTITIES, _SAMPLES = 11, 12


class Draw(NamedTuple):
    """One draw of the training stream."""

    #: Position in the stream of all ranks: global batch times batch size, plus place in the batch.
    position: int
    #: Index of the sample in the data set.
    index: int  # type: ignore[assignment]  # hides tuple.index, which is not used


class Order(Protocol):
    """Infinite sequence of global batches, each computed from its number alone."""

    batch_size: int
    seed: int

    def batch(self, number: int) -> list[Draw]:
        """Draws of a global batch, numbered from 0."""


class DrawOrder:
    """Batches of images of one group (tall, wide), shuffled in epochs.

    Each group is an endless chain of its own shuffled epochs, cut into batches: a batch holds one
    group only, and no image is drawn again before all others of its group. Batches of the groups
    are interleaved evenly, in proportion to their sizes. The number of ranks that share a batch
    does not matter.

    Args:
        groups: (N,) small integers, the group of each image.
        batch_size: images of a batch over all ranks.
        seed: the only source of randomness.

    Raises:
        ValueError: there is no image, or a number is out of range.
    """

    def __init__(self, groups: Sequence[int], batch_size: int, seed: int) -> None:
        of_image = np.asarray(groups, dtype=np.int64)
        if of_image.size == 0:
            raise ValueError("cannot draw from an empty data set")
        if batch_size < 1:
            raise ValueError(f"batch size {batch_size} is below 1")
        if seed < 0:
            raise ValueError(f"seed {seed} is negative")
        self.batch_size = batch_size
        self.seed = seed
        self.num_images = int(of_image.size)
        members = [np.flatnonzero(of_image == group) for group in np.unique(of_image)]
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
        """Indices of the images in the group of an image, which can replace it in a batch."""
        for members in self._members:
            place = np.searchsorted(members, index)
            if place < len(members) and members[place] == index:
                return members
        raise IndexError(f"no image {index} in a data set of {self.num_images}")

    def _group_and_turn(self, number: int) -> tuple[int, int]:
        # The turns of each group but the first are its share of the batches so far, rounded; the
        # first group has the other batches. With two groups this is an even interleaving.
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
            generator = make_generator(self.seed, group, epoch)
            self._epochs[group, epoch] = generator.permutation(self._members[group])
        return int(self._epochs[group, epoch][offset])


class IdentityOrder:
    """Batches of P identities with K samples each.

    An epoch is a shuffle of the identities, cut into batches of P different ones; a rest of fewer
    than P is left out of the epoch (as in VKD, ECCV 2020: one epoch is floor(#ids / P) batches).
    The samples of an identity are shuffled, too, and taken K by K, so that all of them are drawn; a
    rest of fewer than K waits for the next shuffle. An identity with fewer than K samples repeats
    them as evenly as K allows.

    Args:
        person_ids: (N,) identity of each sample; negative ones (unlabelled) are never drawn.
        ids_per_batch: P.
        samples_per_id: K.
        seed: the only source of randomness, not negative.

    Raises:
        ValueError: there are fewer than P identities, or a number is out of range.
    """

    def __init__(
        self, person_ids: Sequence[int], ids_per_batch: int, samples_per_id: int, seed: int
    ) -> None:
        ids = np.asarray(person_ids, dtype=np.int64)
        for name, value in (("P", ids_per_batch), ("K", samples_per_id)):
            if value < 1:
                raise ValueError(f"{name} = {value} is below 1")
        if seed < 0:
            raise ValueError(f"seed {seed} is negative")
        #: Samples of each identity, in the order of identities.
        self.members = [np.flatnonzero(ids == i) for i in np.unique(ids[ids >= 0])]
        if len(self.members) < ids_per_batch:
            raise ValueError(
                f"a batch has {ids_per_batch} identities (REID_DATA.IDS_PER_BATCH), but the "
                f"training set has {len(self.members)}"
            )
        self.ids_per_batch = ids_per_batch
        self.samples_per_id = samples_per_id
        self.batch_size = ids_per_batch * samples_per_id
        self.seed = seed
        #: Batches of an epoch.
        self.epoch_length = len(self.members) // ids_per_batch
        self._shuffle: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    def batch(self, number: int) -> list[Draw]:
        """Draws of a global batch, numbered from 0: identity after identity."""
        epoch, turn = divmod(number, self.epoch_length)
        chosen = self._identities(epoch)[turn * self.ids_per_batch :][: self.ids_per_batch]
        samples = [int(i) for identity in chosen for i in self._samples(int(identity), epoch)]
        first = number * self.batch_size
        return [Draw(first + offset, index) for offset, index in enumerate(samples)]

    def _identities(self, epoch: int) -> np.ndarray:
        if self._shuffle[0] != epoch:
            generator = make_generator(self.seed, _IDENTITIES, epoch)
            self._shuffle = epoch, generator.permutation(len(self.members))
        return self._shuffle[1]

    def _samples(self, identity: int, epoch: int) -> np.ndarray:
        members, count = self.members[identity], self.samples_per_id
        groups = max(len(members) // count, 1)
        cycle, group = divmod(epoch, groups)
        order = make_generator(self.seed, _SAMPLES, identity, cycle).permutation(members)
        return np.resize(order[group * count :], count)


class PositionBatchSampler(Sampler):
    """Endless batch sampler: the share of this rank in each global batch, as lists of draws.

    Args:
        order: the sequence of global batches.
        start: first global batch.
        rank, world_size: this rank takes the ``rank``-th contiguous part of each batch.

    Raises:
        ValueError: the batch cannot be split evenly.
    """

    def __init__(self, order: Order, start: int = 0, rank: int = 0, world_size: int = 1) -> None:
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


def make_generator(*entropy: int) -> np.random.Generator:
    """Random numbers that are the same on every machine and in every version of NumPy."""
    return np.random.Generator(np.random.PCG64(list(entropy)))


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Seed NumPy's, Python's and torch's CPU generator from the numbers; restore them afterwards.

    Augmentations of Detectron2 draw from the global generators. A sample is thereby the same in a
    worker and in the training process, whose own generators do not change.
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
