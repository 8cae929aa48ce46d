"""Prototypes: instances that reconstruct the features of the others in both spaces.

Tang et al., "Distilling Object Detectors With Global Knowledge", ECCV 2022, arXiv 2210.09022, for
one class and one feature level; equations and constants are those of the released code. From N
instances with unit features F_S (N, D_s) and F_T (N, D_t) of the same boxes a density filter
(density.py) selects K candidates, and joint matching pursuit picks the prototypes among them, one
after the other. With the residuals R_S, R_T (initially F_S, F_T), candidate k and instance n::

    a = <f_k^S, R_S[n]>     w_S = (alpha (a + b) + a) / (1 + 2 alpha)
    b = <f_k^T, R_T[n]>     w_T = (alpha (a + b) + b) / (1 + 2 alpha)
    E_k = sum_n ||w_S f_k^S - R_S[n]||^2 + ||w_T f_k^T - R_T[n]||^2 + alpha (w_S - w_T)^2

The k of the smallest E_k is picked, then R_S[n] -= w_S f_k^S, R_T[n] -= w_T f_k^T.

This definition needs (K, D, N) tensors, D = D_s + D_t. The weights satisfy w_S + w_T = a + b and
w_S - w_T = (a - b) / c, c = 1 + 2 alpha, so that::

    E_k = sum_n ||R_S[n]||^2 + ||R_T[n]||^2 - 1/2 sum_n ((a + b)^2 + (a - b)^2 / c)

where only the last sum depends on k. With the joint residual R = [R_S, R_T] (N, D) and, for each
candidate, the orthogonal unit vectors u = [f^S, f^T] / sqrt(2) and v = [f^S, -f^T] / sqrt(2), the
sum over n is a quadratic form::

    gain_k = sum_n <u, R[n]>^2 + <v, R[n]>^2 / c = u^T M u + v^T M v / c,    M = R^T R
    R <- R (I - P),  M <- (I - P) M (I - P),  I - P = (I - u u^T) (I - v v^T / c)

A pick removes all of the residual along u and the share 1/c of it along v, so that the residual
energy falls by the gain at least. M is a sum over instances, made once, block by block, and those
of several ranks can be added. A pick is two rank-two updates of M, and the gains of all candidates
follow from inner products with single vectors: O(D^2 + K D) a pick after O(N D^2 + K D^2), where
tables of a and b cost O(K N D) and hold O(K N).
"""

import math
from collections.abc import Iterator
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from ._tensors import check_finite, check_rows, unit_rows

#: Gains count as equal up to this share of the initial energy.
ROUNDING = 1e-12
#: Rows of a block.
BLOCK_SIZE = 2048


class PrototypePicks(NamedTuple):
    """Result of :func:`match_prototypes`.

    Attributes:
        indices: (P,) int64 rows of the candidates, in the order of the picks.
        energies: (P + 1,) float64, the sum over instances of ``||R_S||^2 + ||R_T||^2`` before the
            first pick and after each. It never grows (up to rounding, about 1e-15 of the first).
    """

    indices: Tensor
    energies: Tensor


@torch.no_grad()
def joint_moments(student: Tensor, teacher: Tensor, block_size: int = BLOCK_SIZE) -> Tensor:
    """Return M = F^T F of the joint unit features F = [F_S, F_T], the input of the pursuit.

    Moments of disjoint parts of the instances (blocks, ranks) add up to the moments of all.

    Args:
        student: (N, D_s), any floating type; rows are scaled to unit length. N may be 0.
        teacher: (N, D_t) of the same boxes.
        block_size: instances added at once.

    Returns:
        (D_s + D_t, D_s + D_t) float64; lower precision would reorder nearly equal gains.

    Raises:
        ValueError: also if a feature is not finite.
    """
    check_rows(student=student, teacher=teacher)
    num_dims = student.shape[1] + teacher.shape[1]
    moments = student.new_zeros(num_dims, num_dims, dtype=torch.float64)
    for rows in _blocks(len(student), block_size):
        joint = torch.cat([unit_rows(part[rows].double()) for part in (student, teacher)], dim=1)
        moments.addmm_(joint.t(), joint)
    check_finite(moments)
    return moments


@torch.no_grad()
def match_prototypes(
    student: Tensor,
    teacher: Tensor,
    moments: Tensor,
    *,
    num_prototypes: int = 10,
    alpha: float = 10.0,
    duplicate_tolerance: float = 1e-6,
) -> PrototypePicks:
    """Pick prototypes among candidates by joint matching pursuit (equations: top of this module).

    Each pick excludes itself and its duplicates, the candidates whose cosine to it is at least
    ``1 - duplicate_tolerance`` in both spaces. (The paper does not; a pick leaves a residual along
    its own feature, because the spaces share its weights, and could be the best again.) A row of
    zeros has no direction and is never picked. If there are fewer distinct candidates than
    ``num_prototypes``, all of them are picked. Of gains that are equal up to rounding the first
    candidate wins, so that the result does not depend on blocks, ranks and machines.

    Args:
        student: (K, D_s) candidates, any floating type; rows are scaled to unit length. K may be 0.
        teacher: (K, D_t) of the same boxes.
        moments: (D_s + D_t, D_s + D_t) of all instances, from :func:`joint_moments`.
        num_prototypes: 10 in the released configuration, for each class and level.
        alpha: penalty for weights that differ between the spaces; 10 in the released code.
        duplicate_tolerance: of 1 - cos. The default, an angle of 0.08 degrees, covers the rounding
            of one feature to half precision.

    Raises:
        ValueError: also if a feature is not finite.
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
    student, teacher = _double_unit_rows(student), _double_unit_rows(teacher)
    residuals = _ResidualMoments(moments.to(student), 2 * min(num_prototypes, len(student)))
    shares = (1.0, 1 / (1 + 2 * alpha))
    along_pair = _energies_along_pair(student, teacher, residuals.first)
    check_finite(along_pair)
    available = student.any(dim=1) & teacher.any(dim=1)

    rounding = ROUNDING * residuals.energy
    picks: list[int] = []
    energies = [residuals.energy]
    while len(picks) < num_prototypes and bool(available.any()):
        gains = shares[0] * along_pair[0] + shares[1] * along_pair[1]
        gains = gains.masked_fill(~available, -math.inf)
        # argmax of 0 and 1 is the first 1.
        pick = int((gains >= gains.max() - rounding).int().argmax())
        for vector, share in zip(_joint_pair(student[pick], teacher[pick]), shares):
            image, square = residuals.remove(vector, share)
            products = _products_with_pair(student, teacher, vector)
            along_pair -= 2 * share * products * _products_with_pair(student, teacher, image)
            along_pair += share**2 * square * products.square()
        nearness = torch.minimum(student @ student[pick], teacher @ teacher[pick])
        available &= nearness < 1 - duplicate_tolerance
        available[pick] = False
        picks.append(pick)
        energies.append(residuals.energy)
    indices = torch.tensor(picks, dtype=torch.int64, device=student.device)
    return PrototypePicks(indices, torch.stack(energies))


def select_prototypes(
    student: Tensor,
    teacher: Tensor,
    candidates: Optional[Tensor] = None,
    *,
    num_prototypes: int = 10,
    alpha: float = 10.0,
    duplicate_tolerance: float = 1e-6,
) -> PrototypePicks:
    """Pick prototypes from instances: moments and pursuit in one call.

    Args:
        student: (N, D_s) instances. N may be 0.
        teacher: (N, D_t) of the same boxes.
        candidates: (N,) bool of :func:`~kd_search.losses.density_filter`, or (K,) indices;
            ``None``: all.
        num_prototypes, alpha, duplicate_tolerance: as :func:`match_prototypes`.

    Returns:
        Picks whose indices are rows of the instances.
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
    student_product: Tensor, teacher_product: Tensor, alpha: float = 10.0
) -> tuple[Tensor, Tensor]:
    """Return (w_S, w_T) from a and b: the minimum of E for one unit feature and one instance.

    Args:
        student_product: a, inner products of the feature with residuals; any shape.
        teacher_product: b, the same shape.
        alpha: 0 keeps the spaces independent (w_S = a, w_T = b); as it grows both go to
            (a + b) / 2.
    """
    _check_alpha(alpha)
    shared = alpha * (student_product + teacher_product)
    divisor = 1 + 2 * alpha
    return (shared + student_product) / divisor, (shared + teacher_product) / divisor


@torch.no_grad()
def pursuit_weights(
    student: Tensor,
    teacher: Tensor,
    prototypes_student: Tensor,
    prototypes_teacher: Tensor,
    alpha: float = 10.0,
) -> tuple[Tensor, Tensor]:
    """Return the weights of the prototypes in the reconstruction of each instance.

    Args:
        student: (N, D_s) instances, any floating type; rows are scaled to unit length.
        teacher: (N, D_t) of the same boxes.
        prototypes_student: (P, D_s) in the order of the picks; rows are scaled to unit length.
        prototypes_teacher: (P, D_t).
        alpha: that of the pursuit.

    Returns:
        (N, P) w_S and (N, P) w_T, float64. The residuals are ``F - w f``.

    Raises:
        ValueError: also if a feature is not finite.
    """
    check_rows(student=student, teacher=teacher)
    check_rows(prototypes_student=prototypes_student, prototypes_teacher=prototypes_teacher)
    residuals = [unit_rows(part.double()) for part in (student, teacher)]
    prototypes = [unit_rows(part.double()) for part in (prototypes_student, prototypes_teacher)]
    weights = student.new_zeros(2, len(student), len(prototypes_student), dtype=torch.float64)
    for p, pair in enumerate(zip(*prototypes)):
        a, b = (residual @ feature for residual, feature in zip(residuals, pair))
        for side, found in enumerate(joint_weights(a, b, alpha)):
            weights[side, :, p] = found
            residuals[side].addr_(found, pair[side], alpha=-1)
    check_finite(weights)
    return weights[0], weights[1]


class _ResidualMoments:
    """M of the residuals: its initial value, and rank-two corrections, one for each vector."""

    def __init__(self, moments: Tensor, num_vectors: int):
        self.first = moments
        self.energy = moments.trace()
        self.count = 0
        # Each vector x with M x and share * x^T M x, for M before x was removed. Zeros: no vector.
        self.vectors = moments.new_zeros(num_vectors, len(moments))
        self.images = moments.new_zeros(num_vectors, len(moments))
        self.shares = moments.new_zeros(num_vectors)
        self.squares = moments.new_zeros(num_vectors)

    def remove(self, vector: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """R <- R (I - share x x^T), x (D,) a unit vector; return the previous M x and x^T M x."""
        # M <- M - share (x (M x)^T + (M x) x^T) + share^2 (x^T M x) x x^T, for each one so far.
        along = self.shares * (self.vectors @ vector)
        along_images = self.shares * (self.images @ vector)
        image = self.first @ vector - along @ self.images
        image -= (along_images - self.squares * along) @ self.vectors
        square = vector @ image
        self.vectors[self.count], self.images[self.count] = vector, image
        self.shares[self.count], self.squares[self.count] = share, share * square
        self.count += 1
        self.energy = self.energy - share * (2 - share) * square
        return image, square


def _joint_pair(student: Tensor, teacher: Tensor) -> list[Tensor]:
    """Return u and v of the candidate with unit features (D_s,) and (D_t,)."""
    return [torch.cat([student, sign * teacher]) * math.sqrt(0.5) for sign in (1, -1)]


def _products_with_pair(student: Tensor, teacher: Tensor, vector: Tensor) -> Tensor:
    """Return (2, K) inner products of a joint vector (D,) with u and v of each candidate."""
    num_dims = student.shape[1]
    ours, theirs = student @ vector[:num_dims], teacher @ vector[num_dims:]
    return torch.stack([ours + theirs, ours - theirs]) * math.sqrt(0.5)


def _energies_along_pair(student: Tensor, teacher: Tensor, moments: Tensor) -> Tensor:
    """Return (2, K): u^T M u and v^T M v of each candidate, from sum a^2 + b^2 and sum a b."""
    num_dims = student.shape[1]
    energies = student.new_empty(2, len(student))
    for rows in _blocks(len(student), BLOCK_SIZE):
        ours, theirs = student[rows], teacher[rows]
        squares = ((ours @ moments[:num_dims, :num_dims]) * ours).sum(dim=1)
        squares += ((theirs @ moments[num_dims:, num_dims:]) * theirs).sum(dim=1)
        mixed = ((ours @ moments[:num_dims, num_dims:]) * theirs).sum(dim=1)
        energies[0, rows], energies[1, rows] = squares / 2 + mixed, squares / 2 - mixed
    return energies


def _double_unit_rows(features: Tensor) -> Tensor:
    """Return unit rows in float64, converted block by block to save memory."""
    result = torch.empty_like(features, dtype=torch.float64)
    for rows in _blocks(len(features), BLOCK_SIZE):
        result[rows] = unit_rows(features[rows].double())
    return result


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha must be a number from 0 on, got {alpha}")


def _blocks(num_rows: int, block_size: int) -> Iterator[slice]:
    return (slice(start, start + block_size) for start in range(0, num_rows, block_size))
