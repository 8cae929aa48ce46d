"""What the losses do to their inputs first: one precision, one shape."""

import torch


def full_precision(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensors in one common type: float32, or float64 where one of them is float64."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype) for tensor in tensors]


def check_same_shape(**tensors: torch.Tensor) -> None:
    """Raise a ``ValueError`` that names the tensors unless all have one shape.

    Shapes that differ would otherwise be broadcast, in silence.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"tensors to compare must have one shape, got {listed}")
