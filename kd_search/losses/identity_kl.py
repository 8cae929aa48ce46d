"""The Kullback-Leibler divergence between the identity probabilities of student and teacher.

With p = softmax(logits / T) over the L identities::

    T^2 KL(p_H || p_M)     "student_teacher": Zhang et al., "Diverse Knowledge Distillation for
                           End-to-End Person Search", AAAI 2021 (L_p; H the re-ID head, M the
                           external model), as its figure prints it; no temperature there, T = 1
    T^2 KL(p_T || p_S)     "teacher_student": Porrello et al., "Robust Re-Identification by Multiple
                           Views Knowledge Distillation", ECCV 2020 (L_KD, T = 10), and what the
                           usual ``kl_div(log p_student, p_teacher)`` computes

Both papers take the mean over the rows. KL(teacher || student) makes the student cover every
identity that the teacher finds likely; KL(student || teacher) makes it avoid those that the
teacher rules out.
"""

import math

import torch
from torch.nn.functional import kl_div

from ._inputs import check_same_shape, full_precision

_DIRECTIONS = ("student_teacher", "teacher_student")


def identity_kl(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    temperature: float = 1.0,
    direction: str = "student_teacher",
) -> torch.Tensor:
    """Return ``T^2 KL`` of every row, exactly 0 where the logits are equal.

    Only people with a label have identity probabilities worth imitating: select the rows before.

    Args:
        student_logits: (B, L), finite, any floating type. B may be 0.
        teacher_logits: (B, L) with the identities in the student's order. Gets no gradient. With
            ``"teacher_student"``, ``-inf`` means an identity that the teacher does not know: its
            probability is exactly 0 (every row needs a finite logit). The other way round the
            divergence from such a teacher is infinite.
        temperature: T > 0. The factor T^2 keeps the gradient's size (Hinton et al., 2015).
        direction: ``"student_teacher"`` for KL(student || teacher), or ``"teacher_student"``.

    Returns:
        (B,) in float32 (float64 where an input is float64).

    Raises:
        ValueError: the shapes do not fit, the temperature is not positive, or an unknown direction.
    """
    if direction not in _DIRECTIONS:
        raise ValueError(f"direction {direction!r} must be one of {list(_DIRECTIONS)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    student, teacher = _checked(student_logits, teacher_logits)
    student = (student / temperature).log_softmax(dim=1)
    teacher = (teacher / temperature).log_softmax(dim=1)
    if direction == "student_teacher":
        summands = kl_div(teacher, student, reduction="none", log_target=True)
    else:
        # An identity of probability 0 adds nothing; its 0 log 0 would be NaN.
        summands = kl_div(student, teacher, reduction="none", log_target=True)
        summands = summands.masked_fill(teacher == -math.inf, 0.0)
    return summands.sum(dim=1) * temperature**2


def logits_squared_error(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor
) -> torch.Tensor:
    """Return the mean over the L identities of ``(z_S - z_T)^2`` of every row.

    What the code of VKD (ECCV 2020) offers instead of the divergence (``--logits_dist mse``); the
    paper does not have it. There is no temperature. A constant added to all logits of a row, which
    leaves the probabilities as they are, is paid for here.

    Args:
        student_logits: (B, L), any floating type. B may be 0.
        teacher_logits: (B, L), finite, with the identities in the student's order. Gets no
            gradient.

    Returns:
        (B,) in float32 (float64 where an input is float64).

    Raises:
        ValueError: the shapes do not fit.
    """
    student, teacher = _checked(student_logits, teacher_logits)
    return (student - teacher).square().mean(dim=1)


def _checked(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> tuple:
    """Both sides' logits in full precision, the teacher's without gradient."""
    check_same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    if student_logits.dim() != 2:
        raise ValueError(f"logits must be (rows, identities), got {tuple(student_logits.shape)}")
    return full_precision(student_logits, teacher_logits.detach())
