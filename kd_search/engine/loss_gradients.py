"""How strongly each loss of a training pulls at a part of the network."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from detectron2.utils.events import EventStorage
from torch import nn


@dataclass(frozen=True)
class LossGradient:
    """Means over batches."""

    #: The loss as it is added up: with its weight.
    value: float
    #: L2 norm of its gradient with respect to the parameters.
    norm: float


def loss_gradients(
    model: nn.Module, batches: Iterable[list[dict]], parameters: Sequence[nn.Parameter]
) -> dict[str, LossGradient]:
    """Value and gradient of every loss apart; values alone do not say which loss a network follows.

    Nothing is trained. What a forward pass in training changes, as statistics of batch
    normalisation, it changes here too.

    Args:
        model: in training mode; returns a dict of scalar losses.
        batches: of its training; at least one.
        parameters: those that are asked about.

    Returns:
        by the name of the loss, as the model returns them. A loss without any gradient there, which
        trains other parts, has norm 0.

    Raises:
        ValueError: no batch, or no parameter that trains.
    """
    parameters = [p for p in parameters if p.requires_grad]
    if not parameters:
        raise ValueError("none of the parameters trains: no loss has a gradient there")
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
