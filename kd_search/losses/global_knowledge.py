"""Global knowledge: losses weighted by how student and teacher relate regions to prototypes.

Tang et al., "Distilling Object Detectors With Global Knowledge", ECCV 2022, arXiv 2210.09022;
equations and constants are those of the released code. For region i with features f_i^S, f_i^T in
the two spaces, and the prototypes P_S, P_T of prototypes.py::

    q_S = max cos(f_i^S, p), p in P_S of the region's class,    q_T likewise
    r_i = 1 - |q_S - q_T|                        agreement of student and teacher
    L_global = mean over i, p of smoothL1(r_i cos(f_i^S, p_S), r_i cos(f_i^T, p_T))   all classes
    L_fore   = sum(mask_r (A(F_S) - F_T)^2) / (2 sum(mask_r))       mask_r: cells of boxes, r_i
    L_back   = sum((1 - 1[box]) (A(F_S) - F_T)^2) / (2 sum(1 - 1[box]))
    L_soft   = mean over i of r_i T^2 mean_c KL(P_T || P_S)

In its configuration the weights are 5 for L_global, 1 for L_fore, 4 for L_back, 1 for L_soft with
T = 2, and all but L_soft are multiplied by :func:`attenuation`. The released code has L_global, but
no setting that trains with it: the configuration's variant "use_pgm" leaves it out, and with
"use_r2i" no prototypes are made, so that the loss raises TypeError.
"""

import torch
from torch import Tensor
from torch.nn.functional import kl_div, logsigmoid, mse_loss, smooth_l1_loss

from ._tensors import check_rows, check_same_shape, full_precision, scaled_logits, unit_rows


@torch.no_grad()
def agreement_weights(
    student: Tensor,
    teacher: Tensor,
    classes: Tensor,
    prototypes_student: Tensor,
    prototypes_teacher: Tensor,
    prototype_classes: Tensor,
    unknown: float = 1.0,
) -> Tensor:
    """Return r_i, 1 for a region that is equally near to its class's prototypes in both spaces.

    No gradient. The formula can fall below 0 where all prototypes of a class point away from a
    region in one space; it is clamped there, so that no loss rewards disagreement. The paper has no
    rule for a region of a class without a prototype; it gets the weight ``unknown``.

    Args:
        student: (R, D_s) features of the regions, of any length.
        teacher: (R, D_t) of the same regions.
        classes: (R,) integers.
        prototypes_student: (P, D_s) of all classes.
        prototypes_teacher: (P, D_t).
        prototype_classes: (P,) integers.
        unknown: 1 distils such a region without a weight, 0 leaves it out.

    Returns:
        (R,) from 0 to 1.
    """
    check_rows(student=student, teacher=teacher, classes=classes[:, None])
    same_class = classes[:, None] == prototype_classes
    similarities = _all_similarities(student, teacher, prototypes_student, prototypes_teacher)
    check_same_shape(similarities=similarities[0], regions_and_prototypes=same_class)
    if not len(prototype_classes):
        return similarities[0].new_full((len(student),), unknown)
    # -2 is below every cosine. It cancels where a class has no prototype.
    best_student, best_teacher = (
        similarity.masked_fill(~same_class, -2.0).amax(dim=1) for similarity in similarities
    )
    weights = (1 - (best_student - best_teacher).abs()).clamp(min=0)
    return weights.masked_fill(~same_class.any(dim=1), unknown)


def global_knowledge_loss(
    student: Tensor,
    teacher: Tensor,
    prototypes_student: Tensor,
    prototypes_teacher: Tensor,
    weights: Tensor,
) -> Tensor:
    """Return the loss of each region's projections on the prototypes of all classes.

    ``mean_p smoothL1(r_i cos(f_i^S, p_S), r_i cos(f_i^T, p_T))``; L_global is the mean of that.
    Zero where the cosines to all prototypes are the same in both spaces. Only the student's
    features get a gradient.

    Args:
        student: (R, D_s) features of the regions, of any length.
        teacher: (R, D_t) of the same regions.
        prototypes_student: (P, D_s) of all classes. Without any (P = 0) the loss is exactly 0.
        prototypes_teacher: (P, D_t).
        weights: (R,) r of :func:`agreement_weights`.
    """
    check_rows(student=student, teacher=teacher, weights=weights[:, None])
    ours, theirs = _all_similarities(
        student, teacher.detach(), prototypes_student.detach(), prototypes_teacher.detach()
    )
    weights = weights.detach().to(ours)[:, None]
    losses = smooth_l1_loss(weights * ours, weights * theirs, reduction="none")
    # Not a mean, which is NaN without a prototype.
    return losses.sum(dim=1) / max(losses.shape[1], 1)


def weighted_feature_loss(
    student: Tensor, teacher: Tensor, weights: Tensor, covered: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (L_fore, L_back) of one level, half the mean squared difference in and outside boxes.

    L_fore is a weighted mean. The means are over cells and channels, so that r weighs boxes against
    each other and does not scale the loss. As in the released code a divisor below 1 counts as 1:
    L_fore is exactly 0 without a box, or with weights of 0 only; L_back without a background.

    Args:
        student: (N, C, H, W) adapted map.
        teacher: (N, C, H, W).
        weights: (N, H, W) from :func:`~kd_search.losses.paint_boxes`.
        covered: (N, H, W) bool from there.

    Returns:
        Two scalars.
    """
    check_same_shape(student=student, teacher=teacher)
    check_same_shape(cells=student[:, 0], weights=weights, covered=covered)
    student, teacher, weights = full_precision(student, teacher.detach(), weights.detach())
    num_channels = student.shape[1]
    # One pass forward and one backward; a difference and its square would take two each.
    squares = mse_loss(student, teacher, reduction="none").sum(dim=1)
    losses = []
    for mask in (weights, (~covered).to(weights)):
        losses.append((mask * squares).sum() / (2 * num_channels * mask.sum()).clamp(min=1))
    return losses[0], losses[1]


def weighted_soft_labels(
    student_logits: Tensor, teacher_logits: Tensor, weights: Tensor, temperature: float = 2.0
) -> Tensor:
    """Return ``r_i T^2 mean_c KL(P_T || P_S)`` of each region, with P = softmax(logits / T).

    The mean over classes of ``P_T(c) (log P_T(c) - log P_S(c))``. Zero, with a zero gradient, where
    the probabilities are equal.

    Args:
        student_logits: (R, C), finite; C includes the background in two-stage heads.
        teacher_logits: (R, C). ``-inf`` means a class that the teacher does not have: its
            probability is exactly 0. Every row needs a finite logit.
        weights: (R,) r of :func:`agreement_weights`.
        temperature: T > 0, 2 in the released configuration.
    """
    student, teacher = scaled_logits(student_logits, teacher_logits, temperature)
    check_rows(student_logits=student, weights=weights[:, None])
    divergences = kl_div(student.log_softmax(dim=1), teacher.softmax(dim=1), reduction="none")
    return weights.detach().to(student) * divergences.mean(dim=1) * temperature**2


def weighted_binary_soft_labels(
    student_logits: Tensor, teacher_logits: Tensor, weights: Tensor, temperature: float = 2.0
) -> Tensor:
    """Return ``r_i T^2 mean_c KL(B(p_T) || B(p_S))`` of each row, with p = sigmoid(logit / T).

    B(p) is the Bernoulli distribution of p: ``p_T log(p_T / p_S) + (1 - p_T) log((1 - p_T) /
    (1 - p_S))``. For heads with one logit per class, as RetinaNet's. The released code uses
    :func:`weighted_soft_labels` for these as well, although a softmax ignores what all classes of a
    row have in common. Zero, with a zero gradient, where the probabilities are equal.

    Arguments, result and errors as :func:`weighted_soft_labels`; a row may have only ``-inf``.
    """
    student, teacher = scaled_logits(student_logits, teacher_logits, temperature)
    check_rows(student_logits=student, weights=weights[:, None])
    divergences = torch.zeros_like(student)
    # sigmoid(-x) and logsigmoid(-x) keep the digits that 1 - sigmoid(x) loses for large x.
    for ours, theirs in ((student, teacher), (-student, -teacher)):
        share = theirs.sigmoid()
        parts = share * (logsigmoid(theirs) - logsigmoid(ours))
        # 0 log 0 is 0.
        divergences = divergences + torch.where(share > 0, parts, 0.0)
    return weights.detach().to(student) * divergences.mean(dim=1) * temperature**2


def attenuation(epoch: float, max_epochs: float) -> float:
    """Return ``1 - epoch / max_epochs``, the factor that fades distillation out over training.

    Args:
        epoch: counted from 0, fractions allowed (the released code takes whole ones). Beyond
            ``max_epochs`` the factor stays 0.
        max_epochs: of the whole training.
    """
    if epoch < 0 or not max_epochs > 0:
        raise ValueError(f"expected 0 <= epoch and max_epochs > 0, got {epoch} and {max_epochs}")
    return max(0.0, 1 - epoch / max_epochs)


def _all_similarities(
    student: Tensor, teacher: Tensor, prototypes_student: Tensor, prototypes_teacher: Tensor
) -> list[Tensor]:
    """Return the (R, P) cosines of all regions to all prototypes, in both spaces."""
    check_rows(prototypes_student=prototypes_student, prototypes_teacher=prototypes_teacher)
    student, teacher, *prototypes = full_precision(
        student, teacher, prototypes_student, prototypes_teacher
    )
    with torch.autocast(student.device.type, enabled=False):
        return [
            unit_rows(features) @ unit_rows(others).t()
            for features, others in zip((student, teacher), prototypes)
        ]
