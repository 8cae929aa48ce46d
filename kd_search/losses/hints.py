"""Hints: regression of the teacher's feature maps by the student's.

Chen, Choi, Yu, Han, Chandraker, "Learning Efficient Object Detection Models with Knowledge
Distillation", NIPS 2017, after FitNets (Romero et al., 2015). With the adapted student map V and
the teacher's map Z, ``L_hint = ||V - Z||_2^2`` or ``||V - Z||_1``. Here it is the mean over all
elements, so that the weight does not depend on the size of the image; the paper does not give its
reduction. The adaptation (a 1x1 convolution) is a trained layer of the distillation term.

For maps of different resolution the paper mentions only padding; :func:`align_maps` resamples.
"""

import math

from torch import Tensor
from torch.nn.functional import interpolate, l1_loss, mse_loss

from ._tensors import check_same_shape, full_precision, mean_or_zero

_DISTANCES = {"l1": l1_loss, "l2": mse_loss}


def align_maps(
    student: Tensor, student_stride: int, teacher: Tensor, teacher_stride: int
) -> tuple[Tensor, Tensor]:
    """Bring the student's map to the teacher's stride, and both to one size.

    Cell (i, j) of a map of stride s covers the pixels [j s, (j + 1) s) x [i s, (i + 1) s) of the
    network input, as in RoIAlign. Batches are padded on the right and at the bottom, so the maps
    are matched from the top left corner by their strides and not by their sizes, which depend on
    the divisibility that each network pads to.

    RoIAlign's convention is not exact for a backbone of odd kernels (ResNet), whose cell j is
    centred at pixel j s. Maps of strides s and t then have a constant offset of |s - t| / 2 pixels,
    4 for strides 16 and 8; maps of equal strides have none.

    The student's map is resampled bilinearly, with antialiasing where it shrinks, and kept where
    the strides are equal. Then both are cropped to the extent that they share.

    Args:
        student: (N, C, H, W).
        teacher: (N, D, H', W').
        student_stride, teacher_stride: pixels of the input to one cell.

    Returns:
        (N, C, h, w) and (N, D, h, w).

    Raises:
        ValueError: the batches differ, or the student's map is smaller than one teacher's cell.
    """
    if student.dim() != 4 or teacher.dim() != 4 or len(student) != len(teacher):
        raise ValueError(
            "maps to align must be (N, channels, height, width) of one batch, got "
            f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
        )
    student, teacher = full_precision(student, teacher.detach())
    if student_stride != teacher_stride:
        scale = student_stride / teacher_stride
        if min(math.floor(size * scale) for size in student.shape[2:]) < 1:
            raise ValueError(
                f"a student map of {tuple(student.shape[2:])} cells of stride {student_stride} "
                f"is smaller than one teacher's cell of stride {teacher_stride}"
            )
        student = _resample(student, scale)
    height = min(student.shape[2], teacher.shape[2])
    width = min(student.shape[3], teacher.shape[3])
    return student[..., :height, :width], teacher[..., :height, :width]


def _resample(maps: Tensor, scale: float) -> Tensor:
    # With antialias and an output of one column, torch on CPU (2.14 at least) repeats the first
    # row in all rows. An output of one row is right, so such a map is resampled transposed.
    one_column = math.floor(maps.shape[3] * scale) == 1
    # By the scale, not by the size: where the scaled size is no integer, a size would stretch
    # the map. Without antialias cells would be skipped where the map shrinks.
    resampled = interpolate(
        maps.mT if one_column else maps,
        scale_factor=scale,
        mode="bilinear",
        align_corners=False,
        recompute_scale_factor=False,
        antialias=scale < 1,
    )
    return resampled.mT if one_column else resampled


def hint_loss(student: Tensor, teacher: Tensor, norm: str = "l2") -> Tensor:
    """Return the mean squared (``"l2"``) or absolute (``"l1"``) difference of two maps.

    Maps without an element give exactly 0, still on the graph of ``student``.

    Args:
        student: (N, D, H, W) adapted and aligned.
        teacher: (N, D, H, W).
        norm: ``"l2"`` or ``"l1"``.
    """
    if norm not in _DISTANCES:
        raise ValueError(f"norm {norm!r} must be one of {sorted(_DISTANCES)}")
    check_same_shape(student=student, teacher=teacher)
    student, teacher = full_precision(student, teacher.detach())
    return mean_or_zero(_DISTANCES[norm](student, teacher, reduction="none"))
