"""Online instance matching (OIM): softmax over an identity table and a circular queue.

Xiao, Li, Wang, Lin, Wang, "Joint Detection and Identification Feature Learning for Person Search",
CVPR 2017, arXiv 1604.01850, equations 1 and 2. With unit rows v_1..v_L of the table (one for each
labelled identity), entries u_1..u_Q of the queue (recent unlabelled people), embedding x and
temperature tau::

    p_i = exp(v_i . x / tau) / (sum_j exp(v_j . x / tau) + sum_k exp(u_k . x / tau))
    L   = - mean over labelled x of log p_t                      (t: the identity of x)
    dL/dx = -(1 / (N tau)) ((1 - p_t) v_t - sum_{j != t} p_j v_j - sum_k q_k u_k)

N is the number of labelled rows and q_k the probability of queue entry k. Unlabelled people have
no loss of their own; they act as negatives in the queue.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ._tensors import UNLABELLED, check_integer_ids, full_precision


def oim_logits(embeddings: Tensor, rows: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Return the scores of embeddings against every identity and every queue entry.

    A row of zeros (an identity or slot not yet seen) is a neutral negative of logit 0.

    Args:
        embeddings: (B, D), L2-normalised.
        rows: (L, D) identity table, unit or zero rows.
        queue: (Q, D) circular queue, unit or zero rows.
        temperature: tau > 0, 0.1 in the paper, 1/30 in the later ports (NAE, SeqNet).

    Returns:
        (B, L + Q), identities first.
    """
    with torch.autocast(device_type=embeddings.device.type, enabled=False):
        # cat copies: the table may be updated in place before this graph is run backward.
        embeddings, table = full_precision(embeddings, torch.cat([rows, queue]))
        return embeddings @ table.t() / temperature


def oim_loss(logits: Tensor, person_ids: Tensor, num_ids: int) -> Tensor:
    """Return the mean of ``-log p_t`` over the labelled rows.

    Without a labelled row the loss is exactly 0 and stays on the graph of ``logits``, so that every
    rank can run backward; its gradient is exactly 0.

    Args:
        logits: (B, L + Q) of :func:`oim_logits`.
        person_ids: (B,) integers, a row of the table in [0, num_ids), or -1 if unlabelled.
        num_ids: L. The columns after it belong to the queue and are never a target.
    """
    if logits.dim() != 2 or logits.shape[1] < num_ids:
        raise ValueError(
            f"logits must be (B, num_ids + queue size) with num_ids {num_ids}, "
            f"got {tuple(logits.shape)}"
        )
    person_ids = check_person_ids(person_ids, len(logits), num_ids).to(logits.device)
    with torch.autocast(device_type=logits.device.type, enabled=False):
        (logits,) = full_precision(logits)
        # Not reduction="mean", which is NaN without a labelled row.
        total = cross_entropy(logits, person_ids, ignore_index=UNLABELLED, reduction="sum")
        return total / (person_ids != UNLABELLED).sum().clamp(min=1)


def check_person_ids(person_ids: Tensor, num_rows: int, num_ids: int) -> Tensor:
    """Return the identities as int64 after checking that each is -1 or a row of the table.

    An id beyond the table would otherwise be trained against a slot of the queue, without an error.

    Raises:
        ValueError: wrong shape or type, or an id outside [-1, num_ids).
    """
    person_ids = check_integer_ids(person_ids, num_rows)
    if num_rows:
        lowest, highest = torch.stack(torch.aminmax(person_ids)).tolist()
        if lowest < UNLABELLED or highest >= num_ids:
            wrong = lowest if lowest < UNLABELLED else highest
            raise ValueError(
                f"person id {wrong} is out of range: ids go from -1 (unlabelled) to {num_ids - 1}; "
                f"map the ids to contiguous rows or make a table of more than {num_ids} ids"
            )
    return person_ids
