"""P identities with K samples each: batches as a pure function of seed and position."""

from collections.abc import Sequence

import numpy as np

from kd_search.data.sampling.order import Draw

#: Name of this stream of random numbers, so that it shares none with others of the same seed.
_IDENTITIES, _SAMPLES = 11, 12


class IdentityOrder:
    """The infinite sequence of global batches of P identities and K samples of each.

    An epoch is a shuffle of the identities, cut into batches of P different ones; the rest, fewer
    than P, sits this epoch out (as in VKD, ECCV 2020: one epoch is floor(#ids / P) batches). Of an
    identity the samples are shuffled, too, and taken K by K, so that all of them come up; a rest
    of fewer than K waits for the next shuffle. An identity with fewer than K samples gives each of
    them as evenly as K allows.

    As :class:`~kd_search.data.sampling.DrawOrder` it can be computed from the number of the batch
    alone, and serves :class:`~kd_search.data.sampling.order.PositionBatchSampler`.

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
                f"a batch is to have {ids_per_batch} identities (REID_DATA.IDS_PER_BATCH), but the "
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

    def peers(self, index: int) -> np.ndarray:
        """Samples of the identity of a sample."""
        for members in self.members:
            if index in members:
                return members
        raise IndexError(f"sample {index} is of no identity")

    def _identities(self, epoch: int) -> np.ndarray:
        if self._shuffle[0] != epoch:
            generator = _generator(self.seed, _IDENTITIES, epoch)
            self._shuffle = epoch, generator.permutation(len(self.members))
        return self._shuffle[1]

    def _samples(self, identity: int, epoch: int) -> np.ndarray:
        members, count = self.members[identity], self.samples_per_id
        groups = max(len(members) // count, 1)
        cycle, group = divmod(epoch, groups)
        generator = _generator(self.seed, _SAMPLES, identity, cycle)
        order = generator.permutation(members)
        return np.resize(order[group * count :], count)


def _generator(*entropy: int) -> np.random.Generator:
    # A named bit generator is the same on every machine and in every version of NumPy.
    return np.random.Generator(np.random.PCG64(list(entropy)))
