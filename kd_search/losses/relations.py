"""Relations between the people of a batch, as the student and its re-ID teacher see them.

Zhang et al., "Diverse Knowledge Distillation for End-to-End Person Search", AAAI 2021, arXiv
2012.11187 (figure of the algorithm). With the embeddings f^H of the student's re-ID head and f^M
of the external re-ID model of the B people of a batch::

    L_pr = (1 / B^2) ||S^H - S^M||_2^2      S = F F^T, then each row of S divided by its L2 norm
    L_tr = (1 / B) sum_i [m + ||f_i^H - f_i^M||_2 - min_{j != i} ||f_i^H - f_j^M||_2]_+

The norm of the matrix is read as the Frobenius norm. The paper's text was not at hand: the margin
m, the weights of the terms and whether F is L2-normalised beforehand are not known.
"""

import torch
from torch.linalg import vector_norm

from ._inputs import check_same_shape, full_precision
from ._pairs import check_identities, check_rows, euclidean_distances, nearest


def pairwise_relation_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return ``L_pr``: the mean squared difference of the row-normalised similarity matrices.

    Exactly 0 where ``student`` equals ``teacher``, and 0 too wherever the rows of the two keep the
    same inner products up to one common factor: a rotation, a scale and the size of an embedding
    do not count. Without a row, and with one row other than zero, exactly 0 on the graph of
    ``student``.

    F is taken as it comes: with unit rows S holds cosine similarities. A row of zeros relates to
    nobody, its row of S stays zero and its gradient finite; that of any other row grows as the row
    shrinks, as behind every normalisation.

    Args:
        student: (B, D), any floating type. B may be 0.
        teacher: (B, D') of the same people in the same order. Gets no gradient.

    Returns:
        A scalar in float32, under autocast too (float64 where an input is float64).

    Raises:
        ValueError: not two matrices of B rows.
    """
    check_rows(student=student, teacher=teacher)
    with torch.autocast(device_type=student.device.type, enabled=False):
        student, teacher = full_precision(student, teacher.detach())
        difference = _relations(student) - _relations(teacher)
        # A sum and a division instead of a mean: that of no element is 0, its mean is NaN.
        return difference.square().sum() / max(difference.numel(), 1)


def _relations(embeddings: torch.Tensor) -> torch.Tensor:
    similarities = embeddings @ embeddings.t()
    norms = vector_norm(similarities, dim=1, keepdim=True)
    # Not normalize() with its eps: the gradient of a zero row would be 1 / eps.
    return similarities / norms.masked_fill(norms == 0, 1.0)


def triplet_relation_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    person_ids: torch.Tensor,
    margin: float,
    literal: bool = False,
) -> torch.Tensor:
    """Return the summands of ``L_tr``: near the teacher's view of oneself, far from its next one.

    The formula takes every j != i as a negative, another box of the same person included, and so
    pushes a person away from itself. Here j is a negative of i where the two are known to be
    different people: their ids differ and not both are unlabelled (two unlabelled boxes may show
    one person; an unlabelled person is none of the labelled ones, as in OIM). ``literal`` takes
    the formula as printed and does not look at the ids.

    At ``student == teacher`` the loss of a row is [m - its distance to the nearest negative]_+,
    0 only where all negatives are m away. ``||f_i^H - f_i^M||`` has the gradient 0 where it is 0.

    Args:
        student: (B, D), any floating type. B may be 0.
        teacher: (B, D) of the same people in the same order, in one space with the student's: the
            sizes must be equal. Gets no gradient.
        person_ids: (B,) integers, negative (-1) where unlabelled.
        margin: m >= 0, in units of the embeddings (unit rows are at most 2 apart).
        literal: exclude only j = i.

    Returns:
        (B,) in float32 (float64 where an input is float64), exactly 0 for a row without any
        negative. ``L_tr`` is the mean over all rows, those included.

    Raises:
        ValueError: the shapes do not fit, or the margin is negative.
    """
    if not margin >= 0:
        raise ValueError(f"margin must not be negative, got {margin}")
    check_rows(student=student, teacher=teacher)
    check_same_shape(student=student, teacher=teacher)
    person_ids = check_identities(person_ids, student)
    student, teacher = full_precision(student, teacher.detach())
    if literal:
        are_negatives = ~torch.eye(len(student), dtype=torch.bool, device=student.device)
    else:
        are_negatives = person_ids[:, None] != person_ids[None, :]
    to_self = vector_norm(student - teacher, dim=1)
    to_negative = nearest(euclidean_distances(student, teacher), are_negatives)
    return (margin + to_self - to_negative).relu()
