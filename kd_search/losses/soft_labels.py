"""Soft labels: the teacher's class probabilities as targets, with weights for the classes.

Chen, Choi, Yu, Han, Chandraker, "Learning Efficient Object Detection Models with Knowledge
Distillation", NIPS 2017. With the student's probabilities P_s and the teacher's P_t of a box::

    L_soft = - sum_c w_c P_t(c) log P_s(c)     w = 1.5 for the background, 1 for every object class

The paper uses no temperature (T = 1, "works best") and softmax heads everywhere. Heads with one
logit per class (the objectness of Detectron2's RPN, the classes of RetinaNet) get the same sum over
the two outcomes of each logit, "object" and "background"; this extension is ours.

With unequal weights the minimum is not at the teacher but where ``P_s(c)`` is proportional to
``w_c P_t(c)``. A student that equals its teacher has the gradient ``P_c (sum_k w_k P_k - w_c)`` of
its logits (T = 1), towards the classes of larger weight. It is zero only with equal weights.
"""

from typing import Optional

from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from ._tensors import check_rows, scaled_logits


def soft_cross_entropy(
    student_logits: Tensor,
    teacher_logits: Tensor,
    class_weights: Optional[Tensor] = None,
    temperature: float = 1.0,
) -> Tensor:
    """Return ``- T^2 sum_c w_c P_t(c) log P_s(c)`` of each row, with P = softmax(logits / T).

    Args:
        student_logits: (R, C), finite.
        teacher_logits: (R, C). ``-inf`` means a class that the teacher does not have: its
            probability is exactly 0. Every row needs a finite logit.
        class_weights: (C,) w, in the order of the logits (background is last in Detectron2);
            ``None``: all 1.
        temperature: T > 0. The factor T^2 keeps the gradient's size (Hinton et al., 2015).
    """
    student, teacher = scaled_logits(student_logits, teacher_logits, temperature)
    check_rows(student_logits=student)
    num_classes = student_logits.shape[1]
    if class_weights is not None and class_weights.shape != (num_classes,):
        raise ValueError(
            f"class_weights must be one for each of {num_classes} classes, "
            f"got {tuple(class_weights.shape)}"
        )
    if class_weights is not None:
        class_weights = class_weights.to(student)
    targets = teacher.softmax(dim=1)
    losses = cross_entropy(student, targets, weight=class_weights, reduction="none")
    return losses * temperature**2


def soft_binary_cross_entropy(
    student_logits: Tensor,
    teacher_logits: Tensor,
    object_weight: float = 1.0,
    background_weight: float = 1.5,
    temperature: float = 1.0,
    focal_gamma: float = 0.0,
) -> Tensor:
    """Return the soft binary cross-entropy of each logit, with p = sigmoid(logit / T)::

        - T^2 |p_t - p_s|^g (w_o p_t log p_s + w_b (1 - p_t) log(1 - p_s))

    The factor with g = ``focal_gamma`` is that of the quality focal loss (Li et al., "Generalized
    Focal Loss", NeurIPS 2020, g = 2). Without it the many easy background anchors of a dense
    detector outweigh the rest. It also moves the minimum back to the teacher (loss and, for
    g > 1, gradient are zero there) for any weights. The factor is part of the gradient.

    Args:
        student_logits: any shape, finite. May be empty.
        teacher_logits: the same shape. ``-inf`` means a class that the teacher does not have: its
            probability is exactly 0.
        object_weight: w_o, of the term of p_t; 1 for objects in the paper.
        background_weight: w_b, of the term of 1 - p_t; 1.5 for the background in the paper.
        temperature: T > 0.
        focal_gamma: g, 0 (no factor) or at least 1. Between them the gradient is infinite where
            student and teacher agree.

    Returns:
        The shape of the logits.
    """
    if focal_gamma != 0 and not focal_gamma >= 1:
        raise ValueError(f"focal_gamma must be 0 or at least 1, got {focal_gamma}")
    student, teacher = scaled_logits(student_logits, teacher_logits, temperature)
    # sigmoid(-x) and logsigmoid(-x) keep the digits that 1 - sigmoid(x) loses for large x.
    objects = object_weight * teacher.sigmoid() * logsigmoid(student)
    background = background_weight * (-teacher).sigmoid() * logsigmoid(-student)
    losses = -(objects + background) * temperature**2
    if focal_gamma:
        losses = losses * (teacher.sigmoid() - student.sigmoid()).abs() ** focal_gamma
    return losses
