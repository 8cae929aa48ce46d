"""Kullback-Leibler divergence between the identity probabilities of student and teacher.

With p = softmax(logits / T) over the L identities::

    T^2 KL(p_H || p_M)     "student_teacher": Zhang et al., "Diverse Knowledge Distillation for
                           End-to-End Person Search", AAAI 2021 (L_p; H the re-ID head, M the
                           external model), as its figure prints it; no temperature there, T = 1
    T^2 KL(p_T || p_S)     "teacher_student": Porrello et al., "Robust Re-Identification by Multiple
                           Views Knowledge Distillation", ECCV 2020 (L_KD, T = 10), and what the
                           usual ``kl_div(log p_student, p_teacher)`` computes

Both papers take the mean over the rows. KL(teacher || student) makes the student cover every
identity that is likely for the teacher; KL(student || teacher) makes it avoid the unlikely ones.
"""

import math

from torch import Tensor
from torch.nn.functional import kl_div

from ._tensors import check_rows, scaled_logits

_DIRECTIONS = ("student_teacher", "teacher_student")


def identity_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    direction: str = "student_teacher",
) -> Tensor:
    """Return ``T^2 KL`` of each row, exactly 0 where the logits are equal.

    Select the rows of labelled people before: others have no identity among the L.

    Args:
        student_logits: (B, L), finite.
        teacher_logits: (B, L) with the identities in the student's order. With
            ``"teacher_student"``, ``-inf`` means an identity that the teacher does not have: its
            probability is exactly 0 (every row needs a finite logit). In the other direction the
            divergence from such a teacher is infinite.
        temperature: T > 0. The factor T^2 keeps the gradient's size (Hinton et al., 2015).
        direction: ``"student_teacher"`` for KL(student || teacher), or ``"teacher_student"``.
    """
    if direction not in _DIRECTIONS:
        raise ValueError(f"direction {direction!r} must be one of {list(_DIRECTIONS)}")
    student, teacher = scaled_logits(student_logits, teacher_logits, temperature)
    check_rows(student_logits=student)
    student, teacher = student.log_softmax(dim=1), teacher.log_softmax(dim=1)
    if direction == "student_teacher":
        summands = kl_div(teacher, student, reduction="none", log_target=True)
    else:
        # 0 log 0 of an identity of probability 0 would be NaN.
        summands = kl_div(student, teacher, reduction="none", log_target=True)
        summands = summands.masked_fill(teacher == -math.inf, 0.0)
    return summands.sum(dim=1) * temperature**2


def logits_squared_error(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return the mean over the L identities of ``(z_S - z_T)^2`` of each row.

    An option of the code of VKD (ECCV 2020) in place of the divergence (``--logits_dist mse``), not
    in the paper. It has no temperature. Unlike the divergence, it depends on a constant that is
    added to all logits of a row.

    Args:
        student_logits: (B, L).
        teacher_logits: (B, L), finite, with the identities in the student's order.
    """
    student, teacher = scaled_logits(student_logits, teacher_logits, temperature=1.0)
    check_rows(student_logits=student)
    return (student - teacher).square().mean(dim=1)
