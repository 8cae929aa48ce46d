"""Selection of the prototypes of every group and level from the candidates of a training.

Tang et al., "Distilling Object Detectors With Global Knowledge", ECCV 2022, arXiv 2210.09022: of
the instances of a class and level with a high density in both feature spaces, joint matching
pursuit selects prototypes (kd_search/losses/prototypes.py). Groups of people instead of the class
"person" are not in the paper.
"""

import warnings
from typing import NamedTuple, Union

import numpy as np
import torch

from kd_search.distillation.methods.global_knowledge.bank import ANY, PrototypeBank
from kd_search.distillation.methods.global_knowledge.features import Candidates
from kd_search.losses import density_filter, select_prototypes


class PickedPrototypes(NamedTuple):
    """Arguments of :meth:`PrototypeBank.put`, on the CPU."""

    level: int
    group: int
    student: torch.Tensor
    teacher: torch.Tensor
    images: torch.Tensor
    boxes: torch.Tensor


def finite_candidates(candidates: Candidates) -> tuple[Candidates, int]:
    """Candidates with finite features in both networks at all levels, and the number of others."""
    finite = torch.ones(len(candidates.images), dtype=torch.bool)
    for ours, theirs in zip(candidates.student, candidates.teacher):
        finite &= ours.isfinite().all(dim=1) & theirs.unpack().isfinite().all(dim=1)
    left_out = int((~finite).sum())
    return (candidates.where(finite) if left_out else candidates), left_out


@torch.no_grad()
def pick_prototypes(
    candidates: Candidates,
    bank: PrototypeBank,
    *,
    alpha: float = 10.0,
    percentile: float = 40.0,
    bandwidth: float = 0.1,
    device: Union[torch.device, str] = "cpu",
) -> list[PickedPrototypes]:
    """Pick the prototypes of every group at every level; the bank is not changed.

    Args:
        candidates: of all ranks, with finite features; people of unknown cluster have no group.
        bank: its groups get at most ``per_class`` prototypes.
        alpha, percentile, bandwidth: of :func:`~kd_search.losses.select_prototypes` and
            :func:`~kd_search.losses.density_filter`.
        device: of the computation, in double precision.

    Returns:
        an entry for every level and group; one without candidates has no rows.

    Raises:
        ValueError: an argument is out of range.
    """
    found = candidates.found
    home = bank.identity_groups.device
    groups = bank.groups_of(found.classes.to(home), found.person_ids.to(home)).cpu()
    rows_of = [(groups == group).nonzero().flatten() for group in range(bank.num_groups)]
    picked = []
    for level, (student, packed) in enumerate(zip(candidates.student, candidates.teacher)):
        teacher = packed.unpack()
        for group, rows in enumerate(rows_of):
            pair = student[rows].to(device), teacher[rows].to(device)
            dense = density_filter(*pair, percentile=percentile, bandwidth=bandwidth)
            chosen = select_prototypes(
                *pair, dense, num_prototypes=bank.per_class, alpha=alpha
            ).indices.cpu()
            rows = rows[chosen]
            columns = student[rows], teacher[rows], candidates.images[rows], found.boxes[rows]
            picked.append(PickedPrototypes(level, group, *columns))
    return picked


@torch.no_grad()
def cluster_identities(
    candidates: Candidates, num_identities: int, num_clusters: int, seed: int
) -> torch.Tensor:
    """Clusters of people that look alike to the teacher, by k-means of their mean features.

    The feature of a box consists of its features of all levels, each of unit length; that of an
    identity is the mean over its boxes, of unit length. Not in the paper.

    Args:
        candidates: of all ranks, with finite features.
        num_identities: L.
        num_clusters: at most; fewer identities with a box have a cluster each.
        seed: of the initial centres.

    Returns:
        (L,) int64, :data:`ANY` for an identity without a box among the candidates.
    """
    groups = torch.full((num_identities,), ANY, dtype=torch.int64)
    person_ids = candidates.found.person_ids
    labelled = (person_ids >= 0) & (person_ids < num_identities)
    people, places = map(
        torch.from_numpy, np.unique(person_ids[labelled].numpy(), return_inverse=True)
    )
    if len(people) <= num_clusters:
        groups[people] = torch.arange(len(people))
        return groups
    features = torch.cat(
        [_unit(level.unpack()[labelled].double()) for level in candidates.teacher], dim=1
    )
    from scipy.cluster.vq import kmeans2

    means = torch.zeros(len(people), features.shape[1], dtype=torch.float64)
    means = _unit(means.index_add_(0, places, features))
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        # An empty cluster, as of people with equal features, has no prototypes.
        warnings.filterwarnings("ignore", "One of the clusters is empty", UserWarning)
        _, found = kmeans2(means.numpy(), num_clusters, iter=50, minit="++", seed=seed % 2**32)
    groups[people] = torch.from_numpy(found).long()
    return groups


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(rows)
