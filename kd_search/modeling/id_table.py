"""The identity look-up table and circular queue of OIM: state, exact update, gather over ranks.

Xiao et al., "Joint Detection and Identification Feature Learning for Person Search", CVPR 2017
(OIM). With frozen or slow rows it is the table of Munjal et al., "Knowledge Distillation for
End-to-End Person Search", BMVC 2019. Only this file writes to the table and the queue.
"""

import hashlib
from typing import Optional

import numpy as np
import torch
from torch import nn

from kd_search.losses.oim import UNLABELLED, check_person_ids, oim_logits, oim_loss
from kd_search.utils.comm import (
    join_rows,
    several_ranks,
)

# As torch.nn.functional.normalize: keeps zero vectors zero instead of NaN.
_NORM_EPS = 1e-12


class IDTable(nn.Module):
    """OIM loss with its table of identities and its queue of unlabelled people.

    An update is exactly this loop over the embeddings x of all ranks, in order (identity t, or
    unlabelled; m is the momentum)::

        labelled:    v_t <- normalize(m v_t + (1 - m) x)             (unless frozen)
        unlabelled:  queue[ptr] <- x;  ptr <- (ptr + 1) mod Q

    computed without a loop over the embeddings, to the same bits.

    Training calls ``forward`` and, after the step was found to be finite on all ranks,
    :meth:`commit`; or :meth:`discard`. What was staged and not discarded is committed at the next
    training forward, so that a loop that knows nothing of tables works too. Order: forward by
    forward, and inside a forward rank by rank. Every rank ends with the table that one process
    with the joint batch would have, provided that every rank calls forward (or :meth:`stage`) and
    commit equally often, with zero rows where it has nobody.

    Staging needs training mode and enabled gradients: a pass in training mode without gradients,
    such as the estimation of batch-norm statistics, does not move the table.

    Attributes:
        rows: buffer (L, D) float32, row i is identity i; zeros until first seen.
        queue: buffer (Q, D) float32, zeros until filled.
        queue_ptr: buffer, int64 scalar, the slot written next.
        num_non_finite: embeddings dropped so far because they were NaN or infinite (all ranks).
    """

    _version = 1

    def __init__(
        self,
        *,
        num_ids: int,
        queue_size: int,
        embedding_dim: int,
        temperature: float = 0.1,
        momentum: float = 0.5,
        frozen: bool = False,
    ):
        """
        Args:
            num_ids: L, identities of the training set: 5532 for CUHK-SYSU, 483 for PRW.
            queue_size: Q, slots of the queue, may be 0: 5000 for CUHK-SYSU (paper), 500 for PRW
                (later ports).
            embedding_dim: D, 256 in the paper.
            temperature: tau, 0.1 in the paper ("scale 10"), 1/30 in NAE, SeqNet and later.
            momentum: m in [0, 1], the share of the old row that is kept: 0.5 in the paper; close
                to 1 for a slow exponential moving average.
            frozen: the rows never move; the queue still does.

        Raises:
            ValueError: an argument is out of its range.
        """
        super().__init__()
        for name, value, lowest in (
            ("num_ids", num_ids, 1),
            ("queue_size", queue_size, 0),
            ("embedding_dim", embedding_dim, 1),
        ):
            if value < lowest:
                raise ValueError(f"{name} of an ID table must be at least {lowest}, got {value}")
        if not temperature > 0:
            raise ValueError(f"temperature of an ID table must be above 0, got {temperature}")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum of an ID table must be in [0, 1], got {momentum}")
        self.temperature = float(temperature)
        self.momentum = float(momentum)
        self.frozen = bool(frozen)
        self.num_non_finite = 0
        self.register_buffer("rows", torch.zeros(num_ids, embedding_dim))
        self.register_buffer("queue", torch.zeros(queue_size, embedding_dim))
        self.register_buffer("queue_ptr", torch.zeros((), dtype=torch.int64))
        self._staged: list[tuple[torch.Tensor, torch.Tensor]] = []

    @property
    def num_ids(self) -> int:
        """L, the number of identities."""
        return self.rows.shape[0]

    @property
    def queue_size(self) -> int:
        """Q, the number of slots for unlabelled people."""
        return self.queue.shape[0]

    @property
    def embedding_dim(self) -> int:
        """D, the length of an embedding."""
        return self.rows.shape[1]

    @property
    def has_staged(self) -> bool:
        """Whether a forward was staged (be it with zero rows) and neither committed nor dropped."""
        return bool(self._staged)

    def forward(self, embeddings: torch.Tensor, person_ids: torch.Tensor) -> torch.Tensor:
        """Return the OIM loss and, in training, stage the embeddings for the next commit.

        Args:
            embeddings: (B, D) L2-normalised embeddings of the people of this rank's batch.
            person_ids: (B,) integers in [0, L), or -1 where unlabelled.

        Returns:
            Scalar float32: mean of -log p_t over the labelled rows, exactly 0 without any.

        Raises:
            ValueError: shapes do not fit, or an identity is out of range.
        """
        learns = self.training and torch.is_grad_enabled()
        if learns and self.has_staged:
            self.commit()
        loss = oim_loss(self.logits(embeddings), person_ids, self.num_ids)
        if learns:
            self._append(embeddings, person_ids)
        return loss

    def logits(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return (B, L + Q) scores over temperature for (B, D) embeddings, identities first."""
        self._check_embeddings(embeddings)
        return oim_logits(embeddings, self.rows, self.queue, self.temperature)

    def stage(self, embeddings: torch.Tensor, person_ids: torch.Tensor) -> None:
        """Remember (B, D) embeddings and their (B,) identities for the next :meth:`commit`."""
        self._check_embeddings(embeddings)
        check_person_ids(person_ids, len(embeddings), self.num_ids)
        self._append(embeddings, person_ids)

    def discard(self) -> None:
        """Forget everything staged."""
        self._staged.clear()

    @torch.no_grad()
    def commit(self) -> None:
        """Apply the staged embeddings of all ranks to the table and the queue.

        A collective call: under torch.distributed every rank must make it, in the same order
        among its other collective calls, also with nothing staged. Embeddings that are NaN or
        infinite are dropped and counted in ``num_non_finite``.
        """
        rows = self.rows
        staged = self._staged[:]
        self._staged.clear()
        if not staged:
            staged.append((rows.new_zeros(0, rows.shape[1]), self.queue_ptr.new_zeros(0)))
        embeddings, person_ids = _gather_over_ranks(staged)
        if not embeddings.shape[0]:
            return

        # From here on every rank computes the same. The order is planned on the CPU: one transfer
        # there and one back instead of a synchronisation for each decision.
        # A row's largest magnitude is finite only if all are (amax hands NaN on), and is found
        # ten times faster than isfinite of everything.
        is_finite = np.isfinite(embeddings.abs().amax(dim=1).cpu().numpy())
        person_ids = person_ids.cpu().numpy()
        if not is_finite.all():
            self.num_non_finite += int(np.count_nonzero(~is_finite))
        unlabelled = np.flatnonzero((person_ids == UNLABELLED) & is_finite)
        if len(unlabelled):
            self._push(embeddings, unlabelled)
        if not self.frozen:
            labelled = np.flatnonzero((person_ids != UNLABELLED) & is_finite)
            if len(labelled):
                self._blend(embeddings, labelled, person_ids[labelled])

    def _blend(self, embeddings: torch.Tensor, positions: np.ndarray, ids: np.ndarray) -> None:
        """Blend the embeddings at ``positions`` (n,), in this order, into the rows ``ids`` (n,).

        Round r holds the (r + 1)-th embedding of every identity that has so many. Identities are
        sorted by falling number of embeddings: those of a round are the first of ``updated``.
        """
        rows = self.rows
        targets, sources, sizes = _plan_rounds(ids)
        targets = _index(targets, rows.device)
        new = embeddings.index_select(0, _index(positions[sources], rows.device))
        new.mul_(1 - self.momentum)
        momentum = torch.tensor(self.momentum, dtype=rows.dtype)
        updated = rows.index_select(0, targets)
        for size, addend in zip(sizes, new.split(sizes)):
            old = updated[:size]
            old.mul_(momentum).add_(addend)
            old.div_(row_norms(old).clamp_min_(_NORM_EPS))
        rows.index_copy_(0, targets, updated)

    def _push(self, embeddings: torch.Tensor, positions: np.ndarray) -> None:
        """Append the embeddings at ``positions`` (n,), in this order, to the circular queue."""
        queue, size = self.queue, self.queue_size
        if size == 0:
            return
        # Of more embeddings than slots, the loop would leave the last ones.
        overwritten = max(len(positions) - size, 0)
        offsets = torch.arange(overwritten, len(positions), device=queue.device)
        kept = _index(positions[overwritten:], queue.device)
        slots = (self.queue_ptr + offsets) % size
        queue.index_copy_(0, slots, embeddings.index_select(0, kept))
        self.queue_ptr.add_(len(positions)).remainder_(size)

    @torch.no_grad()
    def load_rows(self, rows: torch.Tensor, queue: Optional[torch.Tensor] = None) -> None:
        """Replace the table, and the queue if one is given.

        Args:
            rows: (L, D), unit rows (zeros for an identity without any embedding).
            queue: (n, D) with n <= Q, oldest first; the other slots become zero. ``None`` leaves
                the queue as it is.

        Raises:
            ValueError: a shape does not fit, or a value is not finite. Nothing is changed then.
        """
        _check_replacement("rows", rows, self.rows.shape, exact=True)
        if queue is not None:
            _check_replacement("queue", queue, self.queue.shape, exact=False)
        self.rows.copy_(rows)
        if queue is not None:
            self.queue.zero_()[: len(queue)].copy_(queue)
            self.queue_ptr.fill_(len(queue) % max(self.queue_size, 1))

    @torch.no_grad()
    def fingerprint(self) -> str:
        """Return the SHA-256 (hexadecimal) of table, queue and pointer, to compare over ranks."""
        digest = hashlib.sha256()
        for tensor in (self.rows, self.queue, self.queue_ptr):
            digest.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
            data = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(data.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def extra_repr(self) -> str:
        return (
            f"num_ids={self.num_ids}, queue_size={self.queue_size}, "
            f"embedding_dim={self.embedding_dim}, temperature={self.temperature:g}, "
            f"momentum={self.momentum:g}, frozen={self.frozen}"
        )

    def _check_embeddings(self, embeddings: torch.Tensor) -> None:
        if embeddings.dim() != 2 or embeddings.shape[1] != self.embedding_dim:
            raise ValueError(
                f"embeddings must be (B, {self.embedding_dim}) to fit the ID table, "
                f"got {tuple(embeddings.shape)}"
            )

    def _append(self, embeddings: torch.Tensor, person_ids: torch.Tensor) -> None:
        # A copy: the caller may go on to change its embeddings in place.
        embeddings = embeddings.detach().to(self.rows, copy=True)
        person_ids = person_ids.detach().to(self.rows.device, torch.int64, copy=True)
        self._staged.append((embeddings, person_ids))

    def _load_from_state_dict(
        self,
        state_dict,
        prefix,
        local_metadata,
        strict,
        missing_keys,
        unexpected_keys,
        error_msgs,
    ):
        version = local_metadata.get("version")
        if version is not None and version > self._version:
            error_msgs.append(
                f"ID table {prefix[:-1]!r} has layout {version}, this kd_search reads up to layout "
                f"{self._version}: upgrade kd_search to load it"
            )
            return
        differences = self._differences(state_dict, prefix)
        if differences:
            error_msgs.append(f"ID table {prefix[:-1]!r} does not fit: " + ", ".join(differences))
            return
        if prefix + "queue" not in state_dict:
            # A loader that drops what does not fit has dropped the queue: its pointer goes too.
            state_dict.pop(prefix + "queue_ptr", None)
        self.discard()
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _differences(self, state_dict, prefix: str) -> list[str]:
        """Say in words how the tables of a state dict differ from this one in size."""
        found = {}
        for name, count in (("rows", "number of ids"), ("queue", "queue size")):
            shape = getattr(state_dict.get(prefix + name), "shape", None)
            if shape is not None:
                dimensions = tuple(shape) if len(shape) == 2 else (tuple(shape), None)
                found[count], found["embedding dimension"] = dimensions
        own = {
            "number of ids": self.num_ids,
            "queue size": self.queue_size,
            "embedding dimension": self.embedding_dim,
        }
        return [
            f"{what} is {found[what]} in the checkpoint and {own[what]} here"
            for what in own
            if what in found and found[what] != own[what]
        ]


def _plan_rounds(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Cut an ordered update into rounds in which every identity appears at most once.

    Args:
        ids: (n,) identities, n > 0.

    Returns:
        targets (U,): the identities, by falling number of embeddings; sources (n,): positions in
        ``ids``, round after round, each in the order of targets; the number in each round.
    """
    by_id = np.argsort(ids, kind="stable")
    ids = ids[by_id]
    is_first = np.concatenate(([True], ids[1:] != ids[:-1]))
    first = is_first.nonzero()[0]
    group = is_first.cumsum() - 1
    counts = np.bincount(group)
    by_count = np.argsort(-counts, kind="stable")
    place = np.empty_like(by_count)
    place[by_count] = np.arange(len(by_count))
    repeat = np.arange(len(ids)) - first[group]
    sources = by_id[np.lexsort((place[group], repeat))]
    return ids[first[by_count]], sources, np.bincount(repeat).tolist()


def _index(positions: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(positions).to(device, non_blocking=True)


def row_norms(vectors: torch.Tensor) -> torch.Tensor:
    """Return the (n, 1) L2 norms of (n, D) vectors, to the same bits however many are passed.

    The CPU reduces each contiguous row by itself. A GPU splits a reduction by the shape of the
    whole tensor, so that one row alone can come out an ulp apart from the same row among others;
    there the squares are added pairwise by elementwise operations, whose order only D decides.
    """
    if vectors.device.type == "cpu":
        return torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return pairwise_row_norms(vectors)


def pairwise_row_norms(vectors: torch.Tensor) -> torch.Tensor:
    """Return the (n, 1) L2 norms of (n, D) vectors by a summation tree that depends on D alone."""
    partial = vectors.square()
    while partial.shape[1] > 1:
        half, odd = divmod(partial.shape[1], 2)
        folded = partial[:, :half] + partial[:, half : 2 * half]
        if odd:
            folded[:, :1] += partial[:, -1:]
        partial = folded
    return partial.sqrt()


def _gather_over_ranks(
    staged: list[tuple[torch.Tensor, torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Join the staged (n_i, D) embeddings and (n_i,) identities, of all ranks where there are some.

    Order: forward by forward, inside a forward rank by rank. The number of rows may differ between
    ranks and be zero.
    """
    embeddings, ids = staged[0]
    if len(staged) > 1:
        embeddings, ids = (torch.cat(parts) for parts in zip(*staged))
    if not several_ranks():
        return embeddings, ids
    forward = torch.cat([torch.full_like(i, step) for step, (_, i) in enumerate(staged)])
    joined, ids, forward = join_rows(embeddings, ids, forward)
    order = torch.argsort(forward, stable=True)
    return joined[order].to(embeddings.dtype), ids[order]


def _check_replacement(name: str, tensor: torch.Tensor, shape: torch.Size, *, exact: bool) -> None:
    fits = tensor.dim() == 2 and tensor.shape[1] == shape[1]
    fits = fits and (len(tensor) == shape[0] if exact else len(tensor) <= shape[0])
    if not fits:
        size = f"{shape[0]}" if exact else f"at most {shape[0]}"
        raise ValueError(
            f"{name} of the ID table must be ({size}, {shape[1]}), got {tuple(tensor.shape)}"
        )
    wrong = int((~torch.isfinite(tensor)).any(dim=1).sum())
    if wrong:
        raise ValueError(
            f"{name} for the ID table hold {wrong} embeddings that are NaN or infinite"
        )
