"""Density filter of prototype candidates: instances in dense regions of both feature spaces.

Tang et al., "Distilling Object Detectors With Global Knowledge", ECCV 2022, arXiv 2210.09022;
equation and constants are those of the released code.
"""

import math

import torch
from torch import Tensor

from ._tensors import check_finite, check_rows, full_precision, unit_rows

#: Densities count as equal up to this relative difference, in units of the precision: a matrix
#: product may give equal rows different last bits, depending on their position.
ROUNDING = 64


@torch.no_grad()
def local_density(features: Tensor, bandwidth: float = 0.1, block_size: int = 256) -> Tensor:
    """Return (N,) ``rho_i = sum_j exp(-((1 - cos_ij) / bandwidth)^2)``, i itself included.

    Args:
        features: (N, D), not necessarily of unit length.
        bandwidth: of the kernel, in units of 1 - cos; 0.1 in the released code.
        block_size: instances compared with all others at once; memory is block_size * N values.

    Raises:
        ValueError: the bandwidth is not positive, or features are not a finite matrix.
    """
    if not bandwidth > 0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth}")
    check_rows(features=features)
    with torch.autocast(features.device.type, enabled=False):
        features = unit_rows(*full_precision(features))
        # Subnormal numbers, such as exp(-100) in float32, add nothing and take six times as long.
        least = math.log(torch.finfo(features.dtype).tiny) + 1
        density = features.new_empty(len(features))
        for start in range(0, len(features), block_size):
            distance = 1 - features[start : start + block_size] @ features.t()
            exponent = distance.div_(bandwidth).square_().neg_().clamp_(min=least)
            density[start : start + block_size] = exponent.exp_().sum(dim=1)
    check_finite(density)
    return density


def density_filter(
    student: Tensor,
    teacher: Tensor,
    *,
    percentile: float = 40.0,
    bandwidth: float = 0.1,
    block_size: int = 256,
) -> Tensor:
    """Return which instances are dense in both spaces: the candidates for prototypes.

    In each space the ``floor(N percentile / 100)`` instances of the lowest density are left out,
    except those that are, up to rounding, as dense as one that stays. Below a percentile of 50 some
    instance always stays. (The released code also leaves out the least dense of those that stay
    here, so that a single instance, or N copies of one, would have no prototype.)

    Args:
        student: (N, D_s).
        teacher: (N, D_t) of the same boxes.
        percentile: 0 to 100; 40 in the released code.
        bandwidth, block_size: as :func:`local_density`.

    Returns:
        (N,) bool.

    Raises:
        ValueError: also if a feature is not finite.
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
