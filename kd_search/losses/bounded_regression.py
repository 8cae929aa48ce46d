"""Box regression that the teacher bounds: the student pays until it is better than its teacher.

Chen, Choi, Yu, Han, Chandraker, "Learning Efficient Object Detection Models with Knowledge
Distillation", NIPS 2017. With the deltas R_s of the student, R_t of the teacher, y of the ground
truth, and a margin m::

    L_b = ||R_s - y||^2   if ||R_s - y||^2 + m > ||R_t - y||^2,   else 0

The teacher is a bound, never a target: regression has no "dark knowledge" to imitate and a teacher
may point away from the truth. In the paper's ablation a plain L2 to the teacher hurts (54.6 mAP
against 54.7 without it on PASCAL, 48.5 against 49.3 on KITTI) and the bounded loss helps (55.9 and
50.1). The paper does not give m.
"""

import torch

from ._inputs import check_same_shape, full_precision


def bounded_regression(
    student: torch.Tensor, teacher: torch.Tensor, target: torch.Tensor, margin: float = 0.0
) -> torch.Tensor:
    """Return the teacher-bounded squared error of every box; exactly 0 where nothing is to pay.

    All three are box deltas (dx, dy, dw, dh) of the same anchors or proposals in one and the same
    scale: Detectron2 multiplies deltas with ``BBOX_REG_WEIGHTS``, (10, 10, 5, 5) in the region
    heads and (1, 1, 1, 1) in the RPN by default. The loss and the margin live in the square of that
    scale, so one margin means different things in the two places.

    Args:
        student: (P, 4) deltas of positive boxes, any floating type. P may be 0.
        teacher: (P, 4). Gets no gradient.
        target: (P, 4) deltas to the ground truth. Gets no gradient.
        margin: m. At 0 a student that is exactly as good as its teacher pays nothing.

    Returns:
        (P,) in float32 (float64 where an input is float64). Not a continuous function: the loss
        jumps to 0 where the student passes the bound.

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(student=student, teacher=teacher, target=target)
    student, teacher, target = full_precision(student, teacher.detach(), target.detach())
    student_error = _squared_distance(student, target)
    # Asked this way round, a student that became NaN still pays, and so is seen.
    is_better = student_error.detach() + margin <= _squared_distance(teacher, target)
    return student_error.masked_fill(is_better, 0.0)


def teacher_l2(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return ``||R_s - R_t||^2`` of every box: the ablation that the bounded loss is held against.

    Args:
        student: (P, 4) deltas, any floating type. P may be 0.
        teacher: (P, 4) in the same scale. Gets no gradient.

    Returns:
        (P,) in float32 (float64 where an input is float64).

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(student=student, teacher=teacher)
    student, teacher = full_precision(student, teacher.detach())
    return _squared_distance(student, teacher)


def _squared_distance(deltas: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    return (deltas - others).square().sum(dim=1)
