"""The algebra of joint matching pursuit: what it costs falls from O(K N D) to O(K D) a pick.

Names as in prototypes.py. With unit features and the closed-form weights, that is with
w_S + w_T = a + b and w_S - w_T = (a - b) / c, c = 1 + 2 alpha::

    E_k = sum_n ||R_S[n]||^2 + ||R_T[n]||^2 - 1/2 sum_n ((a + b)^2 + (a - b)^2 / c)

The first part is the same for all k, so a (K, N) table of a and one of b would do. Written with
the joint residual R = [R_S, R_T] (N, D), D = D_s + D_t, and two orthogonal unit vectors for every
candidate, u = [f^S, f^T] / sqrt(2) (the spaces agree) and v = [f^S, -f^T] / sqrt(2) (they differ),
the sum over n goes, too::

    gain_k = sum_n <u, R[n]>^2 + <v, R[n]>^2 / c = u^T M u + v^T M v / c,    M = R^T R
    R <- R (I - P),  M <- (I - P) M (I - P),  I - P = (I - u u^T) (I - v v^T / c)

So a pick takes away all of the residual along u and the share 1/c of it along v, and the sum of
its squares, which falls by the gain at least, cannot grow. M is a sum over instances: it is made
once, block by block, and those of several ranks can be added. A pick is two updates of M of rank
two, and the gains of all candidates follow from inner products with single vectors: O(D^2 + K D)
after O(N D^2 + K D^2) in the beginning, where the (K, N) form costs O(K N D) and holds O(K N).
"""

import math
from collections.abc import Iterator

import torch

from ._features import check_finite, check_rows, unit_rows

#: Rows worked on at once.
BLOCK_SIZE = 2048


@torch.no_grad()
def joint_moments(
    student: torch.Tensor, teacher: torch.Tensor, block_size: int = BLOCK_SIZE
) -> torch.Tensor:
    """Return M = F^T F of the joint unit features F = [F_S, F_T]: all that a pursuit has to know.

    Moments of several parts of the instances (blocks, ranks) add up to the moments of all.

    Args:
        student: (N, D_s), any floating type; rows are scaled to unit length. N may be 0.
        teacher: (N, D_t) of the same boxes.
        block_size: instances added at once.

    Returns:
        (D_s + D_t, D_s + D_t) float64. In lower precision nearly equal gains would change places.

    Raises:
        ValueError: the shapes do not fit, or a feature is not finite.
    """
    check_rows(student=student, teacher=teacher)
    num_dims = student.shape[1] + teacher.shape[1]
    moments = student.new_zeros(num_dims, num_dims, dtype=torch.float64)
    for rows in _blocks(len(student), block_size):
        joint = torch.cat([unit_rows(part[rows].double()) for part in (student, teacher)], dim=1)
        moments.addmm_(joint.t(), joint)
    check_finite(moments)
    return moments


class ResidualMoments:
    """M of the residuals: as it was at first, and corrections of rank two, one for each vector."""

    def __init__(self, moments: torch.Tensor, num_vectors: int):
        self.first = moments
        self.energy = moments.trace()
        self.count = 0
        # Each vector x with M x and share * x^T M x, M as it was at its turn; zeros do nothing.
        self.vectors = moments.new_zeros(num_vectors, len(moments))
        self.images = moments.new_zeros(num_vectors, len(moments))
        self.shares = moments.new_zeros(num_vectors)
        self.squares = moments.new_zeros(num_vectors)

    def take_away(self, vector: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
        """R <- R (I - share x x^T) for a unit vector x (D,); return M x and x^T M x from before."""
        # M <- M - share (x (M x)^T + (M x) x^T) + share^2 (x^T M x) x x^T, for every one so far.
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


def joint_pair(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """u and v of the candidate with unit features (D_s,) and (D_t,)."""
    return tuple(torch.cat([student, sign * teacher]) * math.sqrt(0.5) for sign in (1, -1))


def products_with_pair(
    student: torch.Tensor, teacher: torch.Tensor, vector: torch.Tensor
) -> torch.Tensor:
    """(2, K): inner products of a joint vector (D,) with u and with v of every candidate."""
    ours, theirs = vector.split([student.shape[1], teacher.shape[1]])
    ours, theirs = student @ ours, teacher @ theirs
    return torch.stack([ours + theirs, ours - theirs]) * math.sqrt(0.5)


def energies_along_pair(
    student: torch.Tensor, teacher: torch.Tensor, moments: torch.Tensor
) -> torch.Tensor:
    """(2, K): u^T M u and v^T M v of every candidate, from sum a^2 + b^2 and sum a b."""
    num_dims = student.shape[1]
    energies = student.new_empty(2, len(student))
    for rows in _blocks(len(student), BLOCK_SIZE):
        ours, theirs = student[rows], teacher[rows]
        squares = ((ours @ moments[:num_dims, :num_dims]) * ours).sum(dim=1)
        squares += ((theirs @ moments[num_dims:, num_dims:]) * theirs).sum(dim=1)
        mixed = ((ours @ moments[:num_dims, num_dims:]) * theirs).sum(dim=1)
        energies[0, rows], energies[1, rows] = squares / 2 + mixed, squares / 2 - mixed
    return energies


def double_unit_rows(features: torch.Tensor) -> torch.Tensor:
    """Unit rows in float64, without an intermediate copy of all of them."""
    result = torch.empty_like(features, dtype=torch.float64)
    for rows in _blocks(len(features), BLOCK_SIZE):
        result[rows] = unit_rows(features[rows].double())
    return result


def _blocks(num_rows: int, block_size: int) -> Iterator[slice]:
    return (slice(start, start + block_size) for start in range(0, num_rows, block_size))
