"""Checks and tensor operations that several losses share."""

import torch
from torch import Tensor

#: Identity of a person without a label.
UNLABELLED = -1


def full_precision(*tensors: Tensor) -> list[Tensor]:
    """Convert tensors to one common type: float32, or float64 if one of them is float64."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype) for tensor in tensors]


def scaled_logits(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return both sides' logits / T in full precision, the teacher's without a gradient.

    Raises:
        ValueError: the shapes differ, or the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    check_same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    student, teacher = full_precision(student_logits, teacher_logits.detach())
    return student / temperature, teacher / temperature


def unit_rows(features: Tensor) -> Tensor:
    """Scale the rows of a matrix to unit length; a row of zeros stays, with a finite gradient."""
    lengths: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    # Not normalize() with its eps: the gradient of a row of zeros would be 1 / eps.
    return features / lengths.masked_fill(lengths == 0, 1.0)


def mean_or_zero(values: Tensor) -> Tensor:
    """Return the mean of all elements; 0 on the graph, instead of NaN, if there are none."""
    return values.sum() / max(values.numel(), 1)


def check_same_shape(**tensors: Tensor) -> None:
    """Raise a ``ValueError`` unless all tensors have one shape; broadcasting would hide it."""
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        raise ValueError(f"tensors to compare must have one shape, got {_shapes(tensors)}")


def check_rows(**matrices: Tensor) -> None:
    """Raise a ``ValueError`` unless all are matrices of equally many rows; columns may differ."""
    lengths = {len(rows) if rows.dim() == 2 else None for rows in matrices.values()}
    if None in lengths or len(lengths) > 1:
        raise ValueError(f"expected matrices of the same number of rows, got {_shapes(matrices)}")


def check_finite(result: Tensor) -> None:
    """Raise a ``ValueError`` if NaN or infinity of some feature has reached ``result``."""
    if not bool(result.isfinite().all()):
        raise ValueError("student or teacher features hold NaN or infinity: has one diverged?")


def check_integer_ids(person_ids: Tensor, num_rows: int) -> Tensor:
    """Return the identities as int64; raise a ``ValueError`` unless there is one for each row."""
    if person_ids.shape != (num_rows,) or person_ids.dtype.is_floating_point:
        raise ValueError(
            f"person_ids must be {num_rows} integers, one for each embedding, "
            f"got {tuple(person_ids.shape)} of {person_ids.dtype}"
        )
    return person_ids.to(torch.int64)


def _shapes(tensors: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
