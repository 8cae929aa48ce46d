"""Gradient norms of the losses of a training at a part of the network."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from detectron2.utils.events import EventStorage
from torch import nn


@dataclass(frozen=True)
class LossGradient:
    """Means over batches."""

    #: The loss, with its weight.
    value: float
    #: L2 norm of its gradient with respect to the parameters.
    norm: float


def loss_gradients(
    model: nn.Module, batches: Iterable[list[dict]], parameters: Sequence[nn.Parameter]
) -> dict[str, LossGradient]:
    """Compute value and gradient norm of every loss; values alone do not show which one dominates.

    Parameters do not change. Running statistics of batch normalisation do, as in any forward pass
    in training mode.

    Args:
        model: in training mode; returns a dict of scalar losses.
        batches: of its training; at least one.
        parameters: to differentiate with respect to.

    Returns:
        by the name of the loss, in the model's order. A loss without a gradient there has norm 0.

    Raises:
        ValueError: no batch, or no parameter that requires a gradient.
    """
    parameters = [p for p in parameters if p.requires_grad]
    if not parameters:
        raise ValueError("none of the parameters is trained: no loss has a gradient there")
    found = defaultdict(list)
    for batch in batches:
        with EventStorage():
            losses = model(batch)
        for name, loss in losses.items():
            found[name].append((float(loss.detach()), _norm(loss, parameters)))
    if not found:
        raise ValueError("no batch was given")
    return {
        name: LossGradient(*(sum(column) / len(pairs) for column in zip(*pairs)))
        for name, pairs in found.items()
    }


def _norm(loss: torch.Tensor, parameters: Sequence[nn.Parameter]) -> float:
    if not loss.requires_grad:
        return 0.0
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    squares = [g.double().square().sum() for g in gradients if g is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0
