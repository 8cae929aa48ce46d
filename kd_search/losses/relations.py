"""Losses over pairs and triplets of the people of a batch.

Zhang et al., "Diverse Knowledge Distillation for End-to-End Person Search", AAAI 2021, arXiv
2012.11187 (figure of the algorithm). With the embeddings f^H of the student's re-ID head and f^M
of the external re-ID model of the B people of a batch::

    L_pr = (1 / B^2) ||S^H - S^M||_2^2      S = F F^T, then each row of S divided by its L2 norm
    L_tr = (1 / B) sum_i [m + ||f_i^H - f_i^M||_2 - min_{j != i} ||f_i^H - f_j^M||_2]_+

The norm of the matrix is read as the Frobenius norm. The paper's text was not available: the margin
m, the weights of the terms and whether F is L2-normalised beforehand are not known.

Porrello, Bergamini, Calderara, "Robust Re-Identification by Multiple Views Knowledge Distillation",
ECCV 2020, arXiv 2007.04174. With D2 the squared Euclidean distances between the embeddings before
the BNNeck (not normalised), T the teacher of many views and S the student of few (authors' code)::

    L_DP = 1/2 mean_{i,j in B x B} (D2_T[i, j] - D2_S[i, j])^2

The other distillation term of that paper, the divergence of the logits, is
:func:`~kd_search.losses.identity_kl`.

Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017, arXiv
1703.07737. For a row of a batch of P people with K images each, D the Euclidean distance::

    log(1 + exp(max_p D(a, p) - min_n D(a, n)))     soft margin
    [m + max_p D(a, p) - min_n D(a, n)]_+           margin m

The soft margin is that of Porrello et al. (VKD), on the embedding before the BNNeck.
"""

import math
from typing import Optional

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import logsigmoid, pad

from ._tensors import (
    UNLABELLED,
    check_integer_ids,
    check_rows,
    check_same_shape,
    full_precision,
    mean_or_zero,
    unit_rows,
)


def pairwise_relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return ``L_pr``, the mean squared difference of the row-normalised similarity matrices.

    Exactly 0 where ``student`` equals ``teacher``, and 0 where their inner products agree up to one
    common factor: a rotation, a scale and the size of an embedding make no difference. Without a
    row, and with one row that is not zero, exactly 0 on the graph of ``student``.

    F is not normalised here: with unit rows S holds cosine similarities. A row of zeros has a row
    of zeros in S and a finite gradient; the gradient of other rows grows as the row shrinks, as
    with every normalisation.

    Args:
        student: (B, D).
        teacher: (B, D') of the same people in the same order.
    """
    check_rows(student=student, teacher=teacher)
    with torch.autocast(device_type=student.device.type, enabled=False):
        student, teacher = full_precision(student, teacher.detach())
        difference = unit_rows(student @ student.t()) - unit_rows(teacher @ teacher.t())
        return mean_or_zero(difference.square())


def triplet_relation_loss(
    student: Tensor, teacher: Tensor, person_ids: Tensor, margin: float, literal: bool = False
) -> Tensor:
    """Return the summands of ``L_tr``: near the own teacher embedding, far from the next one.

    The formula takes every j != i as a negative, another box of the same person included, and so
    pushes a person away from itself. Here j is a negative of i where the two are known to be
    different people: their ids differ and not both are unlabelled (two unlabelled boxes may show
    one person; an unlabelled person is none of the labelled ones, as in OIM). ``literal`` takes
    the formula as printed and ignores the ids.

    At ``student == teacher`` the loss of a row is [m - its distance to the nearest negative]_+,
    0 only where all negatives are m away. ``||f_i^H - f_i^M||`` has the gradient 0 where it is 0.

    Args:
        student: (B, D).
        teacher: (B, D) of the same people in the same order, in one space with the student's.
        person_ids: (B,) integers, negative (-1) if unlabelled.
        margin: m >= 0, in units of the embeddings (unit rows are at most 2 apart).
        literal: exclude only j = i.

    Returns:
        (B,), exactly 0 for a row without any negative.
        ``L_tr`` is the mean over all rows, those included.
    """
    _check_margin(margin)
    check_rows(student=student, teacher=teacher)
    check_same_shape(student=student, teacher=teacher)
    person_ids = _known_ids(person_ids, student)
    student, teacher = full_precision(student, teacher.detach())
    if literal:
        are_negatives = ~torch.eye(len(student), dtype=torch.bool, device=student.device)
    else:
        are_negatives = person_ids[:, None] != person_ids[None, :]
    to_self: Tensor = vector_norm(student - teacher, dim=1)
    to_negative = _nearest(_distances(student, teacher), are_negatives)
    return (margin + to_self - to_negative).relu()


def distance_preservation(student: Tensor, teacher: Tensor, reduction: str = "mean") -> Tensor:
    """Return ``L_DP``; exactly 0, with the gradient 0, where ``student`` equals ``teacher``.

    0 where the two sets of rows are congruent, whatever the sizes of the embeddings. With no row or
    one, exactly 0 on the graph of ``student``. The loss grows with the fourth power of the
    embeddings' scale, and its weight has to fit that (1e-4 in the authors' code).

    Args:
        student: (B, D).
        teacher: (B, D') of the same people in the same order.
        reduction: ``"mean"`` divides by B^2, the diagonal included, as the authors' code.
            ``"sum"`` does not divide: with the factor 1/2 the sum over all pairs i < j, each
            once. The paper writes a sum over pairs.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction {reduction!r} must be one of ['mean', 'sum']")
    check_rows(student=student, teacher=teacher)
    student, teacher = full_precision(student, teacher.detach())
    teacher_squares, student_squares = (_distances(x, x).square() for x in (teacher, student))
    squares = (teacher_squares - student_squares).square()
    return 0.5 * (mean_or_zero(squares) if reduction == "mean" else squares.sum())


def batch_hard_triplet(
    embeddings: Tensor, person_ids: Tensor, margin: Optional[float] = None
) -> tuple[Tensor, Tensor]:
    """Return the triplet loss of each row with its hardest positive and hardest negative.

    Positives of a row are the other rows of its person, negatives all rows of other people.
    Unlabelled rows are neither, and no anchors. A row without a positive or a negative has no
    triplet: its loss is exactly 0 and its place in the second result ``False``, so that::

        losses, has_triplet = batch_hard_triplet(embeddings, person_ids)
        loss = losses.sum() / has_triplet.sum().clamp(min=1)

    is the mean over the triplets, and exactly 0 on the graph without any. The second result is
    needed because the loss of a triplet may be 0 as well.

    The gradient of a distance 0 is 0, so identical embeddings give no NaN; nor does the loss
    separate rows once all of them coincide.

    Args:
        embeddings: (B, D), normalised or not.
        person_ids: (B,) integers, negative (-1) if unlabelled.
        margin: m >= 0, in units of the embeddings; ``None``: the soft margin.

    Returns:
        (B,), and (B,) bool.
    """
    if margin is not None:
        _check_margin(margin)
    check_rows(embeddings=embeddings)
    person_ids = _known_ids(person_ids, embeddings)
    (embeddings,) = full_precision(embeddings)
    labelled = person_ids >= 0
    both_labelled = labelled[:, None] & labelled[None, :]
    same_person = person_ids[:, None] == person_ids[None, :]
    itself = torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    are_positives = both_labelled & same_person & ~itself
    are_negatives = both_labelled & ~same_person

    distances = _distances(embeddings, embeddings)
    # -inf without a positive, inf without a negative: the loss is 0 there in both forms.
    gaps = -_nearest(-distances, are_positives) - _nearest(distances, are_negatives)
    # Not softplus, which is linear from 20 on: logsigmoid is exact and as stable.
    losses = -logsigmoid(-gaps) if margin is None else (gaps + margin).relu()
    return losses, are_positives.any(dim=1) & are_negatives.any(dim=1)


def _check_margin(margin: float) -> None:
    if not margin >= 0:
        raise ValueError(f"margin must not be negative, got {margin}")


def _known_ids(person_ids: Tensor, embeddings: Tensor) -> Tensor:
    """Return the identities as int64 on the embeddings' device, -1 where they are negative."""
    person_ids = check_integer_ids(person_ids, len(embeddings)).to(embeddings.device)
    return person_ids.clamp(min=UNLABELLED)


def _distances(rows: Tensor, others: Tensor) -> Tensor:
    """Return the (B, C) Euclidean distances of (B, D) rows to (C, D) others; gradient 0 at 0.

    From the differences, not from ``|a|^2 + |b|^2 - 2ab``, which loses the digits of near rows and
    may give a row a distance to itself.
    """
    return torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist")


def _nearest(distances: Tensor, mask: Tensor) -> Tensor:
    """Return the smallest distance of every row among those in ``mask``; inf where there is none.

    Rows at the same distance share the gradient.
    """
    # The added column lets a matrix without any column have a minimum.
    return pad(distances.masked_fill(~mask, math.inf), (0, 1), value=math.inf).amin(dim=1)
