"""Which instances may become prototypes: those that lie densely in both feature spaces.

Tang et al., "Distilling Object Detectors With Global Knowledge", ECCV 2022, arXiv 2210.09022;
equation and constants are those of the released code.
"""

import math

import torch

from ._features import check_finite, check_rows, unit_rows
from ._inputs import full_precision

#: Shares of their size, in units of the precision, by which densities may differ and count as
#: equal: a matrix product may give equal rows other last bits, depending on where they lie.
ROUNDING = 64


@torch.no_grad()
def local_density(
    features: torch.Tensor, bandwidth: float = 0.1, block_size: int = 256
) -> torch.Tensor:
    """Return ``rho_i = sum_j exp(-((1 - cos_ij) / bandwidth)^2)``, the instance itself included.

    Args:
        features: (N, D), any floating type, not necessarily of unit length. N may be 0.
        bandwidth: of the kernel, in units of 1 - cos; 0.1 in the released code.
        block_size: instances compared with all others at once; memory is block_size * N numbers.

    Returns:
        (N,) in float32 (float64 for float64 features).

    Raises:
        ValueError: the bandwidth is not positive, or features are no matrix of finite numbers.
    """
    if not bandwidth > 0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth}")
    check_rows(features=features)
    with torch.autocast(features.device.type, enabled=False):
        features = unit_rows(*full_precision(features))
        # Subnormal numbers, exp(-100) in float32, count for nothing and take six times as long.
        least = math.log(torch.finfo(features.dtype).tiny) + 1
        density = features.new_empty(len(features))
        for start in range(0, len(features), block_size):
            distance = 1 - features[start : start + block_size] @ features.t()
            exponent = distance.div_(bandwidth).square_().neg_().clamp_(min=least)
            density[start : start + block_size] = exponent.exp_().sum(dim=1)
    check_finite(density)
    return density


def density_filter(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    percentile: float = 40.0,
    bandwidth: float = 0.1,
    block_size: int = 256,
) -> torch.Tensor:
    """Return which instances lie densely in both spaces: the candidates for prototypes.

    In each space the ``floor(N percentile / 100)`` instances of the lowest density are left out,
    but none that is, but for rounding, as dense as one that stays. Below a percentile of 50 some
    instance always stays, however few there are. (The released code also leaves out the least dense
    of those that stay here, so that one instance, or N copies of one, would have no prototype.)

    Args:
        student: (N, D_s), any floating type. N may be 0.
        teacher: (N, D_t) of the same boxes.
        percentile: 0 to 100; 40 in the released code.
        bandwidth: see :func:`local_density`.
        block_size: see :func:`local_density`.

    Returns:
        (N,) bool.

    Raises:
        ValueError: an argument is out of range, the shapes do not fit, or a feature is not finite.
    """
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile must be from 0 to 100, got {percentile}")
    check_rows(student=student, teacher=teacher)
    num_instances = len(student)
    passed = torch.ones(num_instances, dtype=torch.bool, device=student.device)
    rank = min(math.floor(num_instances * percentile / 100), num_instances - 1)
    for features in (student, teacher):
        density = local_density(features, bandwidth, block_size)
        if num_instances:
            least = density.sort().values[rank]
            passed &= density >= least * (1 - ROUNDING * torch.finfo(density.dtype).eps)
    return passed
