"""Rows of distillation steps, and the check that both sides train the same student."""

import torch
from _distill_networks import Step

MOST_OVERHEAD = 1.05


def overhead_row(
    harness, case: str, timing, equal: bool, limit: float = MOST_OVERHEAD, **extra
) -> dict:
    return harness.row(
        case,
        ours_s=timing.ours_s,
        reference_s=timing.reference_s,
        equal=equal,
        limit=limit,
        ratio_is="overhead",
        ratios_of_turns=sorted(a / b for a, b in zip(timing.ours, timing.reference)),
        **extra,
    )


def same_detection_losses(ours: Step, reference: Step, factors=None) -> bool:
    """Return whether the student's own detection losses are the same on both sides.

    Args:
        ours: with terms.
        reference: without.
        factors: of the student's losses that terms multiply, by name.
    """
    names = ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg")
    factors = factors or {}
    a, b = ours.losses(), reference.losses()
    return all(torch.equal(a[name], b[name] * factors.get(name, 1.0)) for name in names)
