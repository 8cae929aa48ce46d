"""What the losses on features of boxes share: rows of unit length, and checks."""

import torch


def unit_rows(features: torch.Tensor) -> torch.Tensor:
    """Scale the rows of a matrix to unit length; a row of zeros stays, with a finite gradient."""
    lengths = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / lengths.masked_fill(lengths == 0, 1.0)


def check_rows(**features: torch.Tensor) -> None:
    """Raise a ``ValueError`` unless these are matrices with the same number of rows."""
    listed = ", ".join(f"{name} {tuple(rows.shape)}" for name, rows in features.items())
    if any(rows.dim() != 2 for rows in features.values()):
        raise ValueError(f"features must be matrices with a row for each instance, got {listed}")
    if len({len(rows) for rows in features.values()}) > 1:
        raise ValueError(f"both spaces must have features of the same instances, got {listed}")


def check_finite(result: torch.Tensor) -> None:
    """Raise a ``ValueError`` where NaN or infinity of some feature has come through to here."""
    if not bool(result.isfinite().all()):
        raise ValueError("student or teacher features hold NaN or infinity: has one diverged?")
