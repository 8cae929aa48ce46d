"""One optimisation step in which all ranks agree before anything is changed."""

import logging
import math
import os
import random
from collections.abc import Callable
from contextlib import nullcontext
from typing import Optional, cast

import numpy as np
import torch
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from kd_search.engine.parallel import id_tables
from kd_search.utils.comm import StoppedElsewhereError, meet_at_end, sum_over_ranks, unwrap_model

logger = logging.getLogger(__name__)

# Under AMP steps with infinite gradients are normal: the scaler halves its scale. From its start at
# 65536 it gets below this only after 30 such steps more than it recovered from.
_LOWEST_SCALE = 1e-4
_CHECK_SCALE_EVERY = 20
# Why a rank has no loss to train with: its own batch, or that of a rank it shares a loss with.
_OWN_FAULT, _FAULT_ELSEWHERE = 1, 2
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
# Detectron2's dense detectors divide their losses by a running mean of the number of positive
# anchors. It is a plain attribute, which no state_dict contains.
_LOSS_NORMALIZER = "loss_normalizer"


def draw_seed(seed: int) -> int:
    """Return ``seed``; if it is negative, one that rank 0 draws; a collective call."""
    if seed >= 0:
        return int(seed)
    return comm.all_gather(int.from_bytes(os.urandom(4), "little") >> 1)[0]


def seed_everything(seed: int, position: int, rank: int = 0) -> None:
    """Seed torch (all devices), NumPy and Python from three non-negative numbers.

    Called before every training step, so that a resumed run draws the numbers of a run without
    interruption although no state of a generator is stored.
    """
    # SeedSequence is stable over NumPy versions and machines, and mixes neighbouring numbers well.
    words = np.random.SeedSequence((seed, position, rank)).generate_state(4)
    torch.manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
    np.random.seed(int(words[2]))
    random.seed(int(words[3]))


def read_loss_normalizers(model: nn.Module) -> dict[str, float]:
    """Return the running loss normalizers by the names of their modules."""
    return {
        name: float(value)
        for name, module in model.named_modules()
        if isinstance(value := module.__dict__.get(_LOSS_NORMALIZER), (int, float))
    }


def write_loss_normalizers(model: nn.Module, numbers: dict[str, float]) -> None:
    """Restore what :func:`read_loss_normalizers` returned; unknown names are ignored."""
    modules = dict(model.named_modules())
    for name in numbers.keys() & modules.keys():
        setattr(modules[name], _LOSS_NORMALIZER, numbers[name])


class TrainStep:
    """Forward, joint decision, backward, update, and commit of the ID tables.

    Every rank must call :meth:`run` equally often. After the forward pass all ranks learn whether
    all losses are finite, and after the backward pass whether all gradients are. If not, no rank
    changes anything: the staged rows of every ID table are dropped, running statistics of
    normalisation layers are restored, and the step is counted and logged with the names of the
    images. A loss is never replaced by another number.

    Attributes:
        skipped_steps: steps skipped so far.
        skipped_in_row: of these, the ones since the last good step.
        stop_signals: after a step, the number of ranks with a stop request when it ran, by
            (interrupt, termination); the same on all ranks.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        seed: int,
        max_skipped_steps: int = 3,
        grad_scaler: Optional[torch.amp.GradScaler] = None,
        stop_requests: Callable[[], tuple[bool, bool]] = lambda: (False, False),
    ):
        """
        Args:
            model: maps a batch to a dict of scalar losses; wrapped for DDP if there are several
                ranks. It is set to training mode.
            optimizer: of the model's parameters.
            seed: the same on all ranks.
            max_skipped_steps: as many skipped steps in a row raise an error.
            grad_scaler: turns on mixed precision (CUDA only).
            stop_requests: returns whether this rank received (interrupt, termination). Shared over
                ranks together with the losses, so that all stop after the same step.
        """
        model.train()
        self.model = model
        self.optimizer = optimizer
        self.grad_scaler = grad_scaler
        self.seed = seed
        self.max_skipped_steps = max_skipped_steps
        self.skipped_steps = 0
        self.skipped_in_row = 0
        self.stop_signals = (0, 0)
        self._stop_requests = stop_requests
        self._tables = list(id_tables(model).values())
        # A batch with a NaN would spoil these moving averages for good. Frozen batch norms never
        # change theirs.
        self._statistics = [
            buffer
            for module in unwrap_model(model).modules()
            if isinstance(module, _NormBase)
            for buffer in (getattr(module, name, None) for name in _STATISTICS)
            if buffer is not None
        ]
        self._saved_statistics = [torch.empty_like(buffer) for buffer in self._statistics]
        self._offenders: list[str] = []

    def run(self, batch: list[dict], iteration: int, data_time: float = 0.0) -> bool:
        """Run one step; an ``EventStorage`` must be open.

        Args:
            batch: this rank's inputs.
            iteration: from 0; seeds the randomness of the step together with seed and rank.
            data_time: seconds waited for the batch, for the log.

        Returns:
            whether the step was taken (True) or skipped (False), the same on all ranks.

        Raises:
            FloatingPointError: naming the images, after ``max_skipped_steps`` skipped in a row.
        """
        if not self.model.training:
            raise RuntimeError("the model was left in evaluation mode: a hook must restore it")
        seed_everything(self.seed, iteration + 1, comm.get_rank())
        _copy(self._statistics, self._saved_statistics)
        losses, fault = self._forward(batch)
        total = cast(torch.Tensor, sum(losses.values()))
        if not fault and not (losses and bool(torch.isfinite(total.detach()).all())):
            fault = _OWN_FAULT
        if not self._agree(fault):
            self._skip(iteration, batch, "loss", fault == _OWN_FAULT)
            return False
        self.optimizer.zero_grad()
        if self.grad_scaler:
            self._step_scaled(self.grad_scaler, total, iteration)
        else:
            total.backward()
            if not self._gradients_are_finite():
                # DDP has averaged the gradients: the rank they came from is unknown.
                self._skip(iteration, batch, "gradient", True)
                return False
            self.optimizer.step()
        for table in self._tables:
            table.commit()
        self.skipped_in_row = 0
        self._offenders.clear()
        self._log(losses, data_time)
        return True

    def _forward(self, batch: list[dict]) -> tuple[dict[str, torch.Tensor], int]:
        """Return the losses of the batch and 0, or no losses and the fault."""
        with torch.autocast("cuda", torch.float16) if self.grad_scaler else nullcontext():
            try:
                losses = self.model(batch)
            except StoppedElsewhereError:
                return {}, _FAULT_ELSEWHERE
            except FloatingPointError as error:
                # Detectron2's RPN raises it on proposals that are not finite. Raised here, it would
                # end this rank and leave the others waiting.
                logger.warning("The forward pass stopped: %s", " ".join(str(error).split()))
                return {}, _OWN_FAULT
        return ({"loss": losses} if isinstance(losses, torch.Tensor) else losses), 0

    def _agree(self, fault: int) -> bool:
        """Return whether no rank has a fault; gather stop requests in the same call."""
        device = next(self.model.parameters()).device
        ranks = meet_at_end(device, fault, *self._stop_requests())
        faults, interrupts, terminations = zip(*ranks)
        self.stop_signals = (sum(interrupts), sum(terminations))
        return not any(faults)

    def _gradients_are_finite(self) -> bool:
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"]]
        gradients = [g for g in gradients if g is not None]
        # The largest magnitude propagates NaN and, unlike a 2-norm, cannot overflow.
        largest = torch.nn.utils.get_total_norm(gradients, norm_type=math.inf)
        bad = sum_over_ranks((~torch.isfinite(largest)).to(torch.int32).reshape(1))
        return not bad.item()

    def _step_scaled(
        self, scaler: torch.amp.GradScaler, total: torch.Tensor, iteration: int
    ) -> None:
        scaler.scale(total).backward()
        scaler.step(self.optimizer)
        scaler.update()
        if iteration % _CHECK_SCALE_EVERY == 0 and scaler.get_scale() < _LOWEST_SCALE:
            raise FloatingPointError(
                f"mixed precision: the gradients are not finite at any scale, down to "
                f"{scaler.get_scale():g} (iteration {iteration})"
            )

    def _skip(self, iteration: int, batch: list[dict], what: str, is_ours: bool) -> None:
        for table in self._tables:
            table.discard()
        _copy(self._saved_statistics, self._statistics)
        self.optimizer.zero_grad()
        self.skipped_steps += 1
        self.skipped_in_row += 1
        names = comm.all_gather(_image_names(batch) if is_ours else [])
        images = "; ".join(
            f"rank {rank}: " + ", ".join(part) for rank, part in enumerate(names) if part
        )
        self._offenders.append(f"iteration {iteration}: {images}")
        logger.warning(
            "Skipped iteration %d on all ranks: the %s is not finite (%d in a row, %d in all). "
            "Images of %s",
            *(iteration, what, self.skipped_in_row, self.skipped_steps, images),
        )
        get_event_storage().put_scalar("skipped_steps", self.skipped_steps, smoothing_hint=False)
        if self.skipped_in_row >= self.max_skipped_steps:
            raise FloatingPointError(
                f"the loss or gradient was not finite in {self.skipped_in_row} steps in a row. "
                "Images of " + " | ".join(self._offenders)
            )

    def _log(self, losses: dict[str, torch.Tensor], data_time: float) -> None:
        names = sorted(losses)
        values = torch.stack([losses[name].detach().double().reshape(()) for name in names])
        values = torch.cat([values, values.new_tensor([data_time])])
        means = (sum_over_ranks(values) / comm.get_world_size()).tolist()
        if not comm.is_main_process():
            return
        storage = get_event_storage()
        storage.put_scalar("data_time", means.pop())
        storage.put_scalar("total_loss", sum(means))
        if len(means) > 1:
            storage.put_scalars(**dict(zip(names, means)))


@torch.no_grad()
def _copy(source: list[torch.Tensor], target: list[torch.Tensor]) -> None:
    for old, new in zip(source, target):
        new.copy_(old)


def _image_names(batch: list[dict]) -> list[str]:
    return [str(x.get("file_name", x.get("image_id", "?"))) for x in batch]
