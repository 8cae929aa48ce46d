"""The optimizer, with the same parameter groups on every version of Detectron2."""

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """``SOLVER.OPTIMIZER`` with Detectron2's settings of ``SOLVER``, gradient clipping included.

    Detectron2 0.5 makes a group of every parameter, main one of all that share their settings.
    Here it is always the latter: a checkpoint can be resumed on the other version, and one update
    of many tensors is faster than many of one.

    Raises:
        ValueError: for another name than "SGD" and "ADAMW".
    """
    kinds = {
        "SGD": (
            torch.optim.SGD,
            {"momentum": cfg.SOLVER.MOMENTUM, "nesterov": cfg.SOLVER.NESTEROV},
        ),
        "ADAMW": (torch.optim.AdamW, {}),
    }
    name = cfg.SOLVER.OPTIMIZER
    if name not in kinds:
        raise ValueError(f"SOLVER.OPTIMIZER {name!r} must be one of {sorted(kinds)}")
    kind, options = kinds[name]
    params = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    return maybe_add_gradient_clipping(cfg, kind)(
        _merged(params), lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY, **options
    )


def _merged(groups: list[dict]) -> list[dict]:
    """Parameters by their settings, both in the order of their first appearance."""
    merged: dict[tuple, list] = {}
    for group in groups:
        settings = tuple((k, v) for k, v in group.items() if k != "params")
        merged.setdefault(settings, []).extend(group["params"])
    return [{"params": params, **dict(settings)} for settings, params in merged.items()]
