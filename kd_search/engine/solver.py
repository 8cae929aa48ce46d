"""The optimizer, with the same parameter groups on every version of Detectron2."""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build ``SOLVER.OPTIMIZER`` with Detectron2's keys of ``SOLVER``, gradient clipping included.

    Detectron2 0.5 makes a group of every parameter, main one of all parameters with the same
    settings. The latter is used on both: a checkpoint can be resumed on the other version, and one
    update of many tensors is faster than many of one.

    Raises:
        ValueError: ``SOLVER.OPTIMIZER`` is neither "SGD" nor "ADAMW".
    """
    name = cfg.SOLVER.OPTIMIZER
    options: dict[str, Any] = {"lr": cfg.SOLVER.BASE_LR, "weight_decay": cfg.SOLVER.WEIGHT_DECAY}
    if name == "SGD":
        options.update(momentum=cfg.SOLVER.MOMENTUM, nesterov=cfg.SOLVER.NESTEROV)
    elif name != "ADAMW":
        raise ValueError(f"SOLVER.OPTIMIZER {name!r} must be 'ADAMW' or 'SGD'")
    parameters = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    # Groups and parameters keep the order of their first appearance.
    merged: dict[tuple, list] = {}
    for group in parameters:
        settings = tuple((k, v) for k, v in group.items() if k != "params")
        merged.setdefault(settings, []).extend(group["params"])
    groups = [{"params": params, **dict(settings)} for settings, params in merged.items()]
    kind = torch.optim.SGD if name == "SGD" else torch.optim.AdamW
    return maybe_add_gradient_clipping(cfg, kind)(groups, **options)
