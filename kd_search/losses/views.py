"""Distance preservation: a student of few views keeps the distances that many views show.

Porrello, Bergamini, Calderara, "Robust Re-Identification by Multiple Views Knowledge Distillation",
ECCV 2020, arXiv 2007.04174. With D2 the squared Euclidean distances between the embeddings of a
batch of B, T the teacher of many views and S the student of few (the authors' code)::

    L_DP = 1/2 mean_{i,j in B x B} (D2_T[i, j] - D2_S[i, j])^2

The embeddings are those before the BNNeck, not normalised. The other distillation term of the
paper, the divergence of the logits, is :func:`~kd_search.losses.identity_kl`.
"""

import torch

from ._inputs import full_precision
from ._pairs import check_rows, euclidean_distances


def distance_preservation(
    student: torch.Tensor, teacher: torch.Tensor, reduction: str = "mean"
) -> torch.Tensor:
    """Return ``L_DP``; exactly 0, with the gradient 0, where ``student`` equals ``teacher``.

    Zero too wherever the two sets of rows are congruent, whatever the sizes of the embeddings.
    Without a row, and with a single one, exactly 0 on the graph of ``student``.

    The loss grows with the fourth power of the embeddings' scale, which its weight has to suit
    (1e-4 in the authors' code).

    Args:
        student: (B, D), any floating type. B may be 0.
        teacher: (B, D') of the same people in the same order. Gets no gradient.
        reduction: ``"mean"`` divides by B^2, the diagonal included, as the authors' code.
            ``"sum"`` divides by nothing: with the factor 1/2 the sum over all pairs i < j, each
            once. The paper writes a sum over pairs.

    Returns:
        A scalar in float32 (float64 where an input is float64).

    Raises:
        ValueError: not two matrices of B rows, or an unknown reduction.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction {reduction!r} must be one of ['mean', 'sum']")
    check_rows(student=student, teacher=teacher)
    student, teacher = full_precision(student, teacher.detach())
    difference = _squared_distances(teacher) - _squared_distances(student)
    total = 0.5 * difference.square().sum()
    # A division instead of a mean: the sum over no pair is 0, the mean NaN.
    return total / max(difference.numel(), 1) if reduction == "mean" else total


def _squared_distances(embeddings: torch.Tensor) -> torch.Tensor:
    return euclidean_distances(embeddings, embeddings).square()
