"""Prototypes: instances that teacher and student can both express the others with.

Tang et al., "Distilling Object Detectors With Global Knowledge", ECCV 2022, arXiv 2210.09022, for
one class and one feature level; equations and constants are those of the released code. From N
instances with unit features F_S (N, D_s) and F_T (N, D_t) of the same boxes a density filter
(density.py) takes the candidates, and joint matching pursuit takes the prototypes from them, one
after the other. With the residuals R_S, R_T (at first F_S, F_T), candidate k and instance n::

    a = <f_k^S, R_S[n]>     w_S = (alpha (a + b) + a) / (1 + 2 alpha)
    b = <f_k^T, R_T[n]>     w_T = (alpha (a + b) + b) / (1 + 2 alpha)
    E_k = sum_n ||w_S f_k^S - R_S[n]||^2 + ||w_T f_k^T - R_T[n]||^2 + alpha (w_S - w_T)^2

The k of the smallest E_k is picked, then R_S[n] -= w_S f_k^S, R_T[n] -= w_T f_k^T. The direct
definition holds (K, D, N) tensors; residual_moments.py says how it is computed here.
"""

import math
from typing import NamedTuple, Optional

import torch

from ._features import check_finite, check_rows, unit_rows
from .residual_moments import (
    ResidualMoments,
    double_unit_rows,
    energies_along_pair,
    joint_moments,
    joint_pair,
    products_with_pair,
)

#: Share of the first energy by which gains may differ and count as equal.
ROUNDING = 1e-12


class PrototypePicks(NamedTuple):
    """What :func:`match_prototypes` found.

    Attributes:
        indices: (P,) int64 rows of the candidates, in the order of the picks.
        energies: (P + 1,) float64, the sum over instances of ``||R_S||^2 + ||R_T||^2`` before the
            first pick and after each. It never grows (but for rounding, about 1e-15 of the first).
    """

    indices: torch.Tensor
    energies: torch.Tensor


@torch.no_grad()
def match_prototypes(
    student: torch.Tensor,
    teacher: torch.Tensor,
    moments: torch.Tensor,
    *,
    num_prototypes: int = 10,
    alpha: float = 10.0,
    duplicate_tolerance: float = 1e-6,
) -> PrototypePicks:
    """Pick prototypes among candidates by joint matching pursuit; see the top of this file.

    A candidate is picked at most once, and so is a feature: with every pick those candidates are
    struck off whose cosine to it is ``1 - duplicate_tolerance`` or more in both spaces. (The paper
    forbids neither; since the weights of a pick are shared between the spaces it leaves a residual
    along its own feature, and may be the best again.) A row of zeros has no direction and is never
    picked. Where fewer different candidates than ``num_prototypes`` exist all of them are picked,
    none of none. Of gains that are equal but for rounding the first candidate wins, so that blocks,
    ranks and machines agree (two instances, say, always explain each other equally well).

    Args:
        student: (K, D_s) candidates, any floating type; rows are scaled to unit length. K may be 0.
        teacher: (K, D_t) of the same boxes.
        moments: (D_s + D_t, D_s + D_t) of all instances, from :func:`joint_moments`.
        num_prototypes: 10 in the released configuration, for each class and level.
        alpha: how much the two spaces have to agree on the weights; 10 in the released code.
        duplicate_tolerance: of 1 - cos. The default, an angle of 0.08 degrees, covers what half
            precision makes of one feature.

    Raises:
        ValueError: an argument is out of range, the shapes do not fit, or a feature is not finite.
    """
    _check_alpha(alpha)
    if num_prototypes < 0 or duplicate_tolerance < 0:
        raise ValueError(
            "num_prototypes and duplicate_tolerance must not be negative, "
            f"got {num_prototypes} and {duplicate_tolerance}"
        )
    check_rows(student=student, teacher=teacher)
    num_dims = student.shape[1] + teacher.shape[1]
    if moments.shape != (num_dims, num_dims):
        raise ValueError(
            f"moments of features of {student.shape[1]} and {teacher.shape[1]} dimensions must be "
            f"{(num_dims, num_dims)}, got {tuple(moments.shape)}"
        )
    student, teacher = double_unit_rows(student), double_unit_rows(teacher)
    residuals = ResidualMoments(moments.to(student), 2 * min(num_prototypes, len(student)))
    shares = (1.0, 1 / (1 + 2 * alpha))
    # (2, K): u^T M u and v^T M v of every candidate.
    along_pair = energies_along_pair(student, teacher, residuals.first)
    check_finite(along_pair)
    available = student.any(dim=1) & teacher.any(dim=1)

    rounding = ROUNDING * residuals.energy
    picks, energies = [], [residuals.energy]
    while len(picks) < num_prototypes and bool(available.any()):
        gains = shares[0] * along_pair[0] + shares[1] * along_pair[1]
        gains = gains.masked_fill(~available, -math.inf)
        # argmax of 0 and 1 is the first 1.
        pick = int((gains >= gains.max() - rounding).int().argmax())
        for vector, share in zip(joint_pair(student[pick], teacher[pick]), shares):
            image, square = residuals.take_away(vector, share)
            products = products_with_pair(student, teacher, vector)
            along_pair -= 2 * share * products * products_with_pair(student, teacher, image)
            along_pair += share**2 * square * products.square()
        nearness = torch.minimum(student @ student[pick], teacher @ teacher[pick])
        available &= nearness < 1 - duplicate_tolerance
        available[pick] = False
        picks.append(pick)
        energies.append(residuals.energy)
    indices = torch.tensor(picks, dtype=torch.int64, device=student.device)
    return PrototypePicks(indices, torch.stack(energies))


def select_prototypes(
    student: torch.Tensor,
    teacher: torch.Tensor,
    candidates: Optional[torch.Tensor] = None,
    *,
    num_prototypes: int = 10,
    alpha: float = 10.0,
    duplicate_tolerance: float = 1e-6,
) -> PrototypePicks:
    """Pick prototypes from instances that are all here: moments and pursuit in one call.

    Args:
        student: (N, D_s) instances. N may be 0.
        teacher: (N, D_t) of the same boxes.
        candidates: (N,) bool as :func:`~kd_search.losses.density_filter` gives them, or (K,)
            indices; ``None``: all.
        num_prototypes: see :func:`match_prototypes`, as the two that follow.

    Returns:
        Picks whose indices are rows of the instances.

    Raises:
        ValueError: see :func:`match_prototypes`.
    """
    moments = joint_moments(student, teacher)
    rows = torch.arange(len(student), device=student.device)
    if candidates is not None:
        rows = rows[candidates]
    picks = match_prototypes(
        student[rows],
        teacher[rows],
        moments,
        num_prototypes=num_prototypes,
        alpha=alpha,
        duplicate_tolerance=duplicate_tolerance,
    )
    return picks._replace(indices=rows[picks.indices])


def joint_weights(
    student_product: torch.Tensor, teacher_product: torch.Tensor, alpha: float = 10.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (w_S, w_T) from a and b: the minimum of E for one unit feature and one instance.

    Args:
        student_product: a, inner products of the feature with residuals; any shape.
        teacher_product: b, the same shape.
        alpha: 0 leaves the spaces alone (w_S = a, w_T = b); as it grows both go to
            (a + b) / 2.

    Raises:
        ValueError: alpha is negative or infinite.
    """
    _check_alpha(alpha)
    shared = alpha * (student_product + teacher_product)
    return tuple(
        (shared + product) / (1 + 2 * alpha) for product in (student_product, teacher_product)
    )


@torch.no_grad()
def pursuit_weights(
    student: torch.Tensor,
    teacher: torch.Tensor,
    prototypes_student: torch.Tensor,
    prototypes_teacher: torch.Tensor,
    alpha: float = 10.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights of prototypes in instances: how each instance is put together from them.

    Args:
        student: (N, D_s) instances, any floating type; rows are scaled to unit length.
        teacher: (N, D_t) of the same boxes.
        prototypes_student: (P, D_s) in the order of the picks; rows are scaled to unit length.
        prototypes_teacher: (P, D_t).
        alpha: that of the pursuit.

    Returns:
        (N, P) w_S and (N, P) w_T, float64. The residuals are ``F - w f``.

    Raises:
        ValueError: the shapes do not fit, or a feature is not finite.
    """
    check_rows(student=student, teacher=teacher)
    check_rows(prototypes_student=prototypes_student, prototypes_teacher=prototypes_teacher)
    residuals = [unit_rows(part.double()) for part in (student, teacher)]
    prototypes = [unit_rows(part.double()) for part in (prototypes_student, prototypes_teacher)]
    weights = student.new_zeros(2, len(student), len(prototypes_student), dtype=torch.float64)
    for p, pair in enumerate(zip(*prototypes)):
        products = [residual @ feature for residual, feature in zip(residuals, pair)]
        for side, found in enumerate(joint_weights(*products, alpha)):
            weights[side, :, p] = found
            residuals[side].addr_(found, pair[side], alpha=-1)
    check_finite(weights)
    return weights[0], weights[1]


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha must be a number from 0 on, got {alpha}")
