"""Teacher-bounded box regression: a loss only where the student is worse than its teacher.

Chen, Choi, Yu, Han, Chandraker, "Learning Efficient Object Detection Models with Knowledge
Distillation", NIPS 2017. With the deltas R_s of the student, R_t of the teacher, y of the ground
truth, and a margin m::

    L_b = ||R_s - y||^2   if ||R_s - y||^2 + m > ||R_t - y||^2,   else 0

The teacher is a bound and not a target, because its regression may point away from the truth. In
the paper's ablation a plain L2 to the teacher hurts (54.6 mAP against 54.7 without it on PASCAL,
48.5 against 49.3 on KITTI) and the bounded loss helps (55.9 and 50.1). The paper does not give m.
"""

from torch import Tensor

from ._tensors import check_same_shape, full_precision


def bounded_regression(
    student: Tensor, teacher: Tensor, target: Tensor, margin: float = 0.0
) -> Tensor:
    """Return the teacher-bounded squared error of each box; exactly 0 within the bound.

    All three are box deltas (dx, dy, dw, dh) of the same anchors or proposals in the same scale:
    Detectron2 multiplies deltas by ``BBOX_REG_WEIGHTS``, (10, 10, 5, 5) in the region heads and
    (1, 1, 1, 1) in the RPN by default. The loss and the margin have the square of that scale, so
    that a margin for one is not a margin for the other.

    Args:
        student: (P, 4) deltas of positive boxes.
        teacher: (P, 4).
        target: (P, 4) deltas to the ground truth.
        margin: m. At 0 a student that is exactly as good as its teacher has no loss.

    Returns:
        (P,). Not continuous: the loss jumps to 0 where the student passes the bound.
    """
    check_same_shape(student=student, teacher=teacher, target=target)
    student, teacher, target = full_precision(student, teacher.detach(), target.detach())
    student_error = _squared_distance(student, target)
    # In this form a comparison with NaN is False, and NaN of the student stays in the loss.
    is_better = student_error.detach() + margin <= _squared_distance(teacher, target)
    return student_error.masked_fill(is_better, 0.0)


def teacher_l2(student: Tensor, teacher: Tensor) -> Tensor:
    """Return ``||R_s - R_t||^2`` of each box, the paper's baseline for the bounded loss.

    Args:
        student: (P, 4) deltas.
        teacher: (P, 4) in the same scale.
    """
    check_same_shape(student=student, teacher=teacher)
    student, teacher = full_precision(student, teacher.detach())
    return _squared_distance(student, teacher)


def _squared_distance(deltas: Tensor, others: Tensor) -> Tensor:
    return (deltas - others).square().sum(dim=1)
