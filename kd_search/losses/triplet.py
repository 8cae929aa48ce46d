"""The triplet loss with the hardest positive and the hardest negative of the batch.

Hermans, Beyer, Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017, arXiv
1703.07737. For a row of a batch of P people with K images each, D the Euclidean distance::

    log(1 + exp(max_p D(a, p) - min_n D(a, n)))     soft margin
    [m + max_p D(a, p) - min_n D(a, n)]_+           margin m

The soft margin is that of Porrello et al., ECCV 2020 (VKD), on the embedding before the BNNeck.
"""

from typing import Optional

import torch
from torch.nn.functional import logsigmoid

from ._inputs import full_precision
from ._pairs import check_identities, check_rows, euclidean_distances, farthest, nearest


def batch_hard_triplet(
    embeddings: torch.Tensor, person_ids: torch.Tensor, margin: Optional[float] = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of every row, and which rows have a triplet at all.

    Positives of a row are the other rows of its person, negatives all rows of other people.
    Unlabelled rows are neither, and no anchors. A row without a positive or a negative has no
    triplet: its loss is exactly 0 and its place in the second result ``False``, so that::

        losses, has_triplet = batch_hard_triplet(embeddings, person_ids)
        loss = losses.sum() / has_triplet.sum().clamp(min=1)

    is the mean over the triplets, and exactly 0 on the graph without any. The second result is
    needed for that: the loss of a real triplet may be 0 as well.

    The gradient of a distance 0 is taken as 0, so that identical embeddings give no NaN; neither
    does the loss separate rows once all of them coincide.

    Args:
        embeddings: (B, D), any floating type, normalised or not. B may be 0.
        person_ids: (B,) integers, negative (-1) where unlabelled.
        margin: m >= 0, in units of the embeddings; ``None``: the soft margin.

    Returns:
        (B,) in float32 (float64 for float64 embeddings), and (B,) bool.

    Raises:
        ValueError: the shapes do not fit, or the margin is negative.
    """
    if margin is not None and not margin >= 0:
        raise ValueError(f"margin must not be negative, got {margin} (None: soft margin)")
    check_rows(embeddings=embeddings)
    person_ids = check_identities(person_ids, embeddings)
    (embeddings,) = full_precision(embeddings)
    labelled = person_ids >= 0
    both_labelled = labelled[:, None] & labelled[None, :]
    same_person = person_ids[:, None] == person_ids[None, :]
    itself = torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    are_positives = both_labelled & same_person & ~itself
    are_negatives = both_labelled & ~same_person

    distances = euclidean_distances(embeddings, embeddings)
    # -inf without a positive, inf without a negative: the loss is 0 there in both forms.
    gaps = farthest(distances, are_positives) - nearest(distances, are_negatives)
    # Not softplus, which is linear from 20 on: logsigmoid is exact and as stable.
    losses = -logsigmoid(-gaps) if margin is None else (gaps + margin).relu()
    return losses, are_positives.any(dim=1) & are_negatives.any(dim=1)
