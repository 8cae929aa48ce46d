"""Hints: the student's feature maps imitate the teacher's.

Chen, Choi, Yu, Han, Chandraker, "Learning Efficient Object Detection Models with Knowledge
Distillation", NIPS 2017, after FitNets (Romero et al., 2015). With the adapted student map V and
the teacher's map Z, ``L_hint = ||V - Z||_2^2`` or ``||V - Z||_1``. The mean over all elements
stands here for the sum, so that the weight does not depend on the size of the image; the paper
does not say how it reduces. The adaptation (a 1x1 convolution) is a trained layer and lives with
the distillation term, not here.

For maps of different resolution the paper says only that it pads; :func:`align_maps` resamples.
"""

import math

import torch
from torch.nn.functional import interpolate, l1_loss, mse_loss

from ._inputs import check_same_shape, full_precision

_DISTANCES = {"l1": l1_loss, "l2": mse_loss}


def align_maps(
    student: torch.Tensor, student_stride: int, teacher: torch.Tensor, teacher_stride: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bring the student's map to the teacher's stride, and both to one size.

    Cell (i, j) of a map of stride s stands for the pixels [j s, (j + 1) s) x [i s, (i + 1) s) of
    the network input, as in RoIAlign. Both maps start in the same corner (batches are padded on
    the right and at the bottom), so they are matched from that corner by the strides alone, never
    by their sizes: paddings to different divisibilities end in different places.

    RoIAlign's view is not exact for a backbone of odd kernels (ResNet): there cell j looks around
    pixel j s. Maps of strides s and t then stay |s - t| / 2 pixels apart, 4 for strides 16 and 8,
    the same everywhere; maps of equal strides are not concerned.

    The student's map is resampled bilinearly (a triangle as wide as a teacher's cell needs, where
    it shrinks), which changes nothing where the strides are equal. Then both are cropped to the
    extent that they share.

    Args:
        student: (N, C, H, W), any floating type. N may be 0.
        student_stride: pixels of the input to one cell.
        teacher: (N, D, H', W'). Gets no gradient.
        teacher_stride: pixels of the input to one cell.

    Returns:
        (N, C, h, w) and (N, D, h, w) in float32 (float64 where an input is float64).

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


def _resample(maps: torch.Tensor, scale: float) -> torch.Tensor:
    # With antialias and an output of one column, torch on CPU (2.14 at least) repeats the first
    # row in all rows. An output of one row is right: there the map is resampled lying down.
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


def hint_loss(student: torch.Tensor, teacher: torch.Tensor, norm: str = "l2") -> torch.Tensor:
    """Return the mean squared (``"l2"``) or absolute (``"l1"``) difference of two maps.

    Maps without an element give exactly 0, still on the graph of ``student``.

    Args:
        student: (N, D, H, W) adapted and aligned, any floating type.
        teacher: (N, D, H, W). Gets no gradient.
        norm: ``"l2"`` or ``"l1"``.

    Returns:
        A scalar in float32 (float64 where an input is float64).

    Raises:
        ValueError: the shapes differ, or an unknown norm.
    """
    if norm not in _DISTANCES:
        raise ValueError(f"norm {norm!r} must be one of {sorted(_DISTANCES)}")
    check_same_shape(student=student, teacher=teacher)
    student, teacher = full_precision(student, teacher.detach())
    # A sum and a division instead of a mean: that of no element is 0, its mean is NaN.
    return _DISTANCES[norm](student, teacher, reduction="sum") / max(student.numel(), 1)
