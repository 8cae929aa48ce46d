"""Mean embedding of each identity over a training set: the rows of an ID table."""

import logging
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Optional

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from kd_search.modeling.id_table import IDTable
from kd_search.utils.comm import sum_over_ranks, unwrap_model
from kd_search.utils.inference import Progress, evaluating

logger = logging.getLogger(__name__)

# Sums are integers in units of 2^-40: their addition is exact, so that the order of the boxes and
# their distribution over ranks do not change the result. Components are at most 1, which allows
# 2^22 boxes of an identity.
_UNIT = 2.0**40

Batch = list[dict[str, Any]]
Embed = Callable[[Batch, list[torch.Tensor]], torch.Tensor]


class IdentityMeans(NamedTuple):
    """Mean embeddings of a data set, the same on all ranks, on the CPU."""

    #: (L, D) float32: normalize(mean_i normalize(x_i)); zeros for an identity without boxes.
    rows: torch.Tensor
    #: (L,) int64: number of boxes of each row.
    counts: torch.Tensor
    #: (U, D) float32, unit length: embeddings of unlabelled boxes, ordered by image id.
    unlabelled: torch.Tensor


@torch.no_grad()
def compute_identity_means(
    model: nn.Module,
    data_loader: Iterable[Batch],
    num_ids: int,
    embed: Optional[Embed] = None,
    *,
    keep_unlabelled: bool = True,
) -> IdentityMeans:
    """Embed every ground-truth box of a data set in evaluation mode, and average by identity.

    A collective call: each rank has its share of the images. Embeddings that are not finite are
    left out.

    Args:
        model: has ``embed(batch, boxes)``; may be wrapped for DDP.
        data_loader: batches of inputs with ``image``, ``image_id`` and ``instances`` with
            ``gt_boxes`` (pixels of ``image``, XYXY) and ``gt_person_ids``, see
            :func:`kd_search.data.build_person_search_table_loader`.
        num_ids: L; identities are in [0, L), or -1.
        embed: ``(batch, boxes) -> (n, D)`` instead of ``model.embed``.
        keep_unlabelled: False: ``unlabelled`` is (0, D).

    Raises:
        ValueError: an identity is out of range, or no rank has any box.
    """
    network: Any = unwrap_model(model)
    sums = _Sums(num_ids, keep_unlabelled)
    progress = Progress(data_loader, "Embedding ground-truth boxes", logger)
    with evaluating(network):
        for batch in data_loader:
            boxes = [x["instances"].gt_boxes.tensor for x in batch]
            sums.add(batch, (embed or network.embed)(batch, boxes))
            progress.step(len(batch))
    logger.info("Embedded the boxes of %d images in %.1f s", progress.images, progress.seconds)
    return sums.over_ranks(next(network.parameters()).device)


class _Sums:
    def __init__(self, num_ids: int, keep_unlabelled: bool):
        self.num_ids = num_ids
        self.keep_unlabelled = keep_unlabelled
        self.counts = torch.zeros(num_ids, dtype=torch.int64)
        self.sums: Optional[torch.Tensor] = None
        self.unlabelled: list[tuple[str, torch.Tensor]] = []
        self.num_dropped = 0

    def add(self, batch: Batch, embeddings: torch.Tensor) -> None:
        embeddings = embeddings.detach().double().cpu()
        sizes = [len(x["instances"]) for x in batch]
        ids = torch.cat([x["instances"].gt_person_ids for x in batch]).cpu()
        if len(ids) and int(ids.max()) >= self.num_ids:
            raise ValueError(
                f"identity {int(ids.max())} is not among the {self.num_ids} of the table"
            )
        embeddings = nn.functional.normalize(embeddings)
        finite = torch.isfinite(embeddings).all(dim=1)
        self.num_dropped += int((~finite).sum())
        if self.sums is None:
            self.sums = torch.zeros(self.num_ids, embeddings.shape[1], dtype=torch.int64)
        known = finite & (ids >= 0)
        self.sums.index_add_(0, ids[known], (embeddings[known] * _UNIT).round().to(torch.int64))
        self.counts += torch.bincount(ids[known], minlength=self.num_ids)
        if not self.keep_unlabelled:
            return
        for x, part, chosen in zip(
            batch, embeddings.split(sizes), (finite & (ids < 0)).split(sizes)
        ):
            if chosen.any():
                self.unlabelled.append((str(x["image_id"]), part[chosen].float()))

    def over_ranks(self, device: torch.device) -> IdentityMeans:
        dims = comm.all_gather(0 if self.sums is None else self.sums.shape[1])
        dim = max(dims)
        if dim == 0:
            raise ValueError("the data set has no box to compute ID table rows from")
        if self.sums is None:
            self.sums = torch.zeros(self.num_ids, dim, dtype=torch.int64)
        sums = sum_over_ranks(self.sums.to(device)).cpu()
        counts = sum_over_ranks(self.counts.to(device)).cpu()
        parts = [part for rank in comm.all_gather(self.unlabelled) for part in rank]
        parts.sort(key=lambda part: part[0])
        unlabelled = torch.cat([torch.zeros(0, dim), *(part for _, part in parts)])
        dropped = sum(comm.all_gather(self.num_dropped))
        absent = (counts == 0).nonzero().flatten().tolist()
        logger.info(
            "Means of %d identities from %d boxes; %d unlabelled boxes",
            *(len(counts) - len(absent), int(counts.sum()), len(unlabelled)),
        )
        if absent:
            shown = ", ".join(map(str, absent[:10])) + (", ..." if absent[10:] else "")
            logger.warning("%d identities have no box and a row of zeros: %s", len(absent), shown)
        if dropped:
            logger.warning("%d embeddings were not finite and are left out", dropped)
        return IdentityMeans(
            nn.functional.normalize(sums.double() / _UNIT).float(), counts, unlabelled
        )


class IDTableRefreshHook(HookBase):
    """Recomputes ID tables from ground-truth boxes once in every period of iterations.

    The rows that follow the student embedding by embedding lag behind it; this hook replaces them
    by those of ``build_rows``. The queue and the rows of identities without boxes do not change.
    The cosine distances between old and new rows are logged as ``<label>/moved_mean`` and
    ``<label>/moved_max``.
    """

    def __init__(
        self, period: int, tables: dict[str, IDTable], build_rows: Callable[[int], IdentityMeans]
    ):
        """
        Args:
            period: iterations between two refreshes.
            tables: label to table.
            build_rows: number of identities to their means; a collective call.
        """
        self._period = period
        self._tables = tables
        self._build_rows = build_rows

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self._period:
            return
        means: dict[int, IdentityMeans] = {}
        for label, table in self._tables.items():
            if table.num_ids not in means:
                means[table.num_ids] = self._build_rows(table.num_ids)
            mean, largest = refresh_rows(table, means[table.num_ids])
            self.trainer.storage.put_scalar(f"{label}/moved_mean", mean, smoothing_hint=False)
            self.trainer.storage.put_scalar(f"{label}/moved_max", largest, smoothing_hint=False)
            logger.info(
                "Refreshed %s at iteration %d: rows moved by %.4f on average, %.4f at most",
                *(label, self.trainer.iter, mean, largest),
            )


@torch.no_grad()
def refresh_rows(table: IDTable, means: IdentityMeans) -> tuple[float, float]:
    """Replace the rows of identities with boxes.

    Returns:
        mean and largest cosine distance between old and new rows, without rows of zeros.
    """
    old = table.rows.to("cpu", copy=True)
    seen = means.counts > 0
    table.load_rows(torch.where(seen[:, None], means.rows, old).to(table.rows.device))
    compared = seen & old.any(dim=1)
    if not compared.any():
        return 0.0, 0.0
    cosine = (old[compared].double() * means.rows[compared].double()).sum(dim=1)
    # Because of rounding the cosine of equal rows may exceed 1.
    moved = (1 - cosine).clamp(min=0)
    return float(moved.mean()), float(moved.max())
