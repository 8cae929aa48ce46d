"""What the losses over pairs of rows share: checks, distances, nearest and farthest row."""

import math

import torch
from torch.nn.functional import pad

from .oim import UNLABELLED


def check_rows(**embeddings: torch.Tensor) -> None:
    """Raise a ``ValueError`` unless all are matrices of equally many rows; columns may differ."""
    shapes = {name: tuple(tensor.shape) for name, tensor in embeddings.items()}
    lengths = {shape[0] if len(shape) == 2 else None for shape in shapes.values()}
    if None in lengths or len(lengths) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"embeddings must be (rows, size), one row for each person, got {listed}")


def check_identities(person_ids: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """Return the identities as int64 beside the embeddings, -1 wherever they are negative.

    Raises:
        ValueError: not one integer for each row.
    """
    if person_ids.shape != embeddings.shape[:1] or person_ids.dtype.is_floating_point:
        raise ValueError(
            f"person_ids must be {len(embeddings)} integers, one for each embedding, "
            f"got {tuple(person_ids.shape)} of {person_ids.dtype}"
        )
    return person_ids.to(embeddings.device, torch.int64).clamp(min=UNLABELLED)


def euclidean_distances(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return the (B, C) distances of (B, D) rows to (C, D) others.

    From the differences, not from ``|a|^2 + |b|^2 - 2ab``: that loses the digits of near rows and
    may leave a distance of a row to itself. The gradient at distance 0 is 0.
    """
    return torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist")


def nearest(distances: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the smallest distance of every row among those in ``mask``; inf where there is none.

    Rows at the same distance share the gradient.
    """
    # The added column lets a matrix without any column have a minimum.
    return pad(distances.masked_fill(~mask, math.inf), (0, 1), value=math.inf).amin(dim=1)


def farthest(distances: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the largest distance of every row among those in ``mask``; -inf where there is none.

    Rows at the same distance share the gradient.
    """
    return -nearest(-distances, mask)
