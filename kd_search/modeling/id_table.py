"""The identity look-up table and circular queue of OIM: state, exact update, gather over ranks.

Xiao et al., "Joint Detection and Identification Feature Learning for Person Search", CVPR 2017
(OIM). With frozen or slow rows it is the table of Munjal et al., "Knowledge Distillation for
End-to-End Person Search", BMVC 2019.
"""

import hashlib
from typing import Any, Optional

import numpy as np
import torch
from torch import nn

from kd_search.losses import check_person_ids, oim_logits, oim_loss
from kd_search.losses._tensors import UNLABELLED
from kd_search.utils.comm import join_rows, several_ranks

# As torch.nn.functional.normalize: a zero vector stays zero.
_NORM_EPS = 1e-12


class IDTable(nn.Module):
    """OIM loss with its table of identities and its queue of unlabelled people.

    An update gives the same bits as this loop over the embeddings x of all ranks, in order
    (identity t, or unlabelled; m is the momentum)::

        labelled:    v_t <- normalize(m v_t + (1 - m) x)             (unless frozen)
        unlabelled:  queue[ptr] <- x;  ptr <- (ptr + 1) mod Q

    Training calls ``forward``, which stages the embeddings, and then :meth:`commit` if the step is
    finite on all ranks, or else :meth:`discard`. The next training forward commits embeddings that
    are still staged, for training loops without support of tables. The order is forward by forward,
    and inside a forward rank by rank. Every rank has the table of one process with the joint batch,
    if all ranks call forward (or :meth:`stage`) and commit equally often, with zero rows if a rank
    has no people.

    Embeddings are staged in training mode with enabled gradients only: a pass without gradients,
    such as the estimation of batch-norm statistics, does not change the table.

    Attributes:
        rows: buffer (L, D) float32, row i is identity i; initially zeros.
        queue: buffer (Q, D) float32, initially zeros.
        queue_ptr: buffer, int64 scalar, the next slot.
        num_non_finite: number of embeddings dropped as NaN or infinite (all ranks).
    """

    rows: torch.Tensor
    queue: torch.Tensor
    queue_ptr: torch.Tensor
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
            momentum: m in [0, 1], the weight of the old row: 0.5 in the paper.
            frozen: update the queue only.

        Raises:
            ValueError: an argument is out of range.
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
        """L."""
        return self.rows.shape[0]

    @property
    def queue_size(self) -> int:
        """Q."""
        return self.queue.shape[0]

    @property
    def embedding_dim(self) -> int:
        """D."""
        return self.rows.shape[1]

    @property
    def has_staged(self) -> bool:
        """Whether a forward, also one with zero rows, is staged."""
        return bool(self._staged)

    def forward(self, embeddings: torch.Tensor, person_ids: torch.Tensor) -> torch.Tensor:
        """Return the OIM loss and, in training, stage the embeddings for the next commit.

        Args:
            embeddings: (B, D) L2-normalised embeddings of the people of this rank's batch.
            person_ids: (B,) integers in [0, L), or -1 where unlabelled.

        Returns:
            Scalar float32: mean of -log p_t over the labelled rows, exactly 0 if there are none.

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
        """Stage (B, D) embeddings and their (B,) identities for the next :meth:`commit`."""
        self._check_embeddings(embeddings)
        check_person_ids(person_ids, len(embeddings), self.num_ids)
        self._append(embeddings, person_ids)

    def discard(self) -> None:
        """Drop everything staged."""
        self._staged.clear()

    @torch.no_grad()
    def commit(self) -> None:
        """Apply the staged embeddings of all ranks to the table and the queue.

        A collective call, also with nothing staged. Embeddings that are NaN or infinite are dropped
        and counted in ``num_non_finite``.
        """
        rows = self.rows
        staged = self._staged[:]
        self._staged.clear()
        if not staged:
            staged.append((rows.new_zeros(0, rows.shape[1]), self.queue_ptr.new_zeros(0)))
        embeddings, gathered_ids = _gather_over_ranks(staged)
        if not embeddings.shape[0]:
            return

        # From here on all ranks compute the same. The order is planned on the CPU, with two
        # transfers instead of a synchronisation for each branch.
        # A row's largest magnitude is finite if and only if the row is (amax returns NaN), and ten
        # times faster than isfinite of all elements.
        is_finite = np.isfinite(embeddings.abs().amax(dim=1).cpu().numpy())
        person_ids = gathered_ids.cpu().numpy()
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

        Round r holds the (r + 1)-th embedding of every identity with more than r. Identities are
        sorted by descending number of embeddings: those of a round are the first of ``updated``.
        """
        rows = self.rows
        unique_ids, sources, sizes = _plan_rounds(ids)
        targets = _index(unique_ids, rows.device)
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
        # Of more embeddings than slots, only the last ones remain.
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
            queue: (n, D) with n <= Q, oldest first; the other slots become zero. ``None`` keeps
                the queue.

        Raises:
            ValueError: a shape does not fit, or a value is not finite. Nothing is changed.
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
        """SHA-256 (hexadecimal) of table, queue and pointer, to compare over ranks."""
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
        # A copy: the caller may change its embeddings in place.
        embeddings = embeddings.detach().to(self.rows, copy=True)
        person_ids = person_ids.detach().to(self.rows.device, torch.int64, copy=True)
        self._staged.append((embeddings, person_ids))

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        version = local_metadata.get("version")
        if version is not None and version > self._version:
            error_msgs.append(
                f"ID table {prefix[:-1]!r} has version {version}, this kd_search reads versions up "
                f"to {self._version}: upgrade kd_search to load it"
            )
            return
        differences = self._differences(state_dict, prefix)
        if differences:
            error_msgs.append(f"ID table {prefix[:-1]!r} does not fit: " + ", ".join(differences))
            return
        if prefix + "queue" not in state_dict:
            # A loader that drops tensors of another shape dropped the queue: so is its pointer.
            state_dict.pop(prefix + "queue_ptr", None)
        self.discard()
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _differences(self, state_dict: dict[str, Any], prefix: str) -> list[str]:
        """Descriptions of the differences in size between a state dict and this table."""
        found: dict[str, Any] = {}
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
    """Split an ordered update into rounds in which every identity occurs at most once.

    Args:
        ids: (n,) identities, n > 0.

    Returns:
        targets (U,): the identities, by descending number of embeddings; sources (n,): indices
        into ``ids``, round after round, each in the order of targets; the size of each round.
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
    """(n, 1) L2 norms of (n, D) vectors, with bits that do not depend on n.

    On a CPU each contiguous row is reduced separately. On a GPU the order of a reduction depends on
    the shape of the tensor; there the squares are added pairwise by elementwise operations.
    """
    if vectors.device.type == "cpu":
        return torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return pairwise_row_norms(vectors)


def pairwise_row_norms(vectors: torch.Tensor) -> torch.Tensor:
    """(n, 1) L2 norms of (n, D) vectors by a summation tree that depends on D only."""
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
    """Join the staged (n_i, D) embeddings and (n_i,) identities of all ranks.

    In order of forwards, inside a forward of ranks, which may have different numbers of rows.
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
        raise ValueError(f"{name} of the ID table have {wrong} embeddings that are NaN or infinite")
