"""Running statistics of normalisation layers, to be put back when a step is skipped."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class NormStatistics:
    """Snapshot of the running statistics that a forward pass in training mode changes.

    A batch with a NaN poisons them for good: they are moving averages. Frozen batch norms have
    statistics too, but never change them, and are left out.
    """

    def __init__(self, model: nn.Module):
        self._live = [
            buffer
            for module in model.modules()
            if isinstance(module, _NormBase)
            for buffer in (getattr(module, name, None) for name in _BUFFERS)
            if buffer is not None
        ]
        self._kept = [torch.empty_like(buffer) for buffer in self._live]

    @torch.no_grad()
    def take(self) -> None:
        """Remember the present statistics."""
        for kept, live in zip(self._kept, self._live):
            kept.copy_(live)

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what :meth:`take` remembered."""
        for kept, live in zip(self._kept, self._live):
            live.copy_(kept)
