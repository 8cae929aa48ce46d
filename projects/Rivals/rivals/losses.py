"""Losses of DDPS, PKD and CrossKD as functions of tensors.

Results are float32 (float64 if an input is), gradients go to the student's tensors only, and an
empty batch gives exactly 0 on the graph.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax, logsigmoid


def pearson_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - r, the mean over channels of Pearson's correlation of two maps (PKD, NeurIPS 2022).

    r is over images and places. It equals half the mean squared difference of the maps after each
    channel was given the mean 0 and the variance 1. A channel that is constant on one side has
    r = 0, and no gradient where the student's is.

    Args:
        student, teacher: (N, C, H, W).
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"maps must have one shape, got {tuple(student.shape)}, {tuple(teacher.shape)}"
        )
    ours, theirs = (_rows(x) for x in (student, teacher.detach()))
    if not ours.numel():
        return ours.sum()
    ours, theirs = (x - x.mean(dim=1, keepdim=True) for x in (ours, theirs))
    squares = ours.square().sum(dim=1) * theirs.square().sum(dim=1)
    defined = squares > 0
    product = (ours * theirs).sum(dim=1)
    # The root of 0 would have an infinite gradient, also where it is masked.
    r = torch.where(defined, product / torch.where(defined, squares, 1.0).sqrt(), 0.0 * product)
    return 1 - r.mean()


def _rows(maps: Tensor) -> Tensor:
    """(C, N * H * W) in full precision."""
    return _full(maps.transpose(0, 1).flatten(1))


def _full(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def decoupled_logits(
    student: Tensor, teacher: Tensor, classes: Tensor, alpha: float, beta: float, temperature: float
) -> Tensor:
    """alpha TCKD + beta NCKD of every row, times T^2 (Zhao et al., CVPR 2022; DDPS).

    TCKD is the divergence KL(teacher || student) of (p, 1 - p), p the probability of the row's own
    class; NCKD that of the other classes among themselves. With two classes there is one other, and
    NCKD is 0.

    Args:
        student, teacher: (R, K) logits.
        classes: (R,) own class of each row, 0 to K - 1.
        alpha, beta, temperature: as in the formula.

    Returns:
        (R,).
    """
    own = torch.zeros_like(student, dtype=torch.bool).scatter_(1, classes[:, None], True)
    ours, theirs = _full(student) / temperature, _full(teacher.detach()) / temperature

    def parts(logits: Tensor) -> tuple[Tensor, Tensor]:
        own_logit = logits[own]
        rest = torch.logsumexp(logits.masked_fill(own, -torch.inf), dim=1)
        # log p and log (1 - p), and the others' log probabilities among themselves.
        binary = torch.stack([logsigmoid(own_logit - rest), logsigmoid(rest - own_logit)], dim=1)
        others = logits[~own].view(len(logits), logits.shape[1] - 1)
        return binary, log_softmax(others, dim=1)

    (our_binary, our_rest), (their_binary, their_rest) = parts(ours), parts(theirs)
    target = (their_binary.exp() * (their_binary - our_binary)).sum(dim=1)
    others = (their_rest.exp() * (their_rest - our_rest)).sum(dim=1)
    return (alpha * target + beta * others) * temperature**2


def correlation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum of the squared differences of two matrices of cosines (DDPS).

    Args:
        student: (P, D).
        teacher: (P, D') of the same people in the same order.
    """
    ours, theirs = (_unit(_full(x)) for x in (student, teacher.detach()))
    return (ours @ ours.t() - theirs @ theirs.t()).square().sum()


def _unit(rows: Tensor) -> Tensor:
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / lengths.masked_fill(lengths == 0, 1.0)


def attentions(maps: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Attention over places and over channels (DDPS, from FGD, CVPR 2022).

    With G the mean of |F| over channels, or over places: places H W softmax(G / T), channels
    C softmax(G / T); both have the mean 1.

    Args:
        maps: (N, C, H, W).

    Returns:
        (N, H, W) and (N, C).
    """
    size = maps.abs()
    places = size.mean(dim=1)
    over_places = (places.flatten(1) / temperature).softmax(dim=1) * places[0].numel()
    over_channels = (size.mean(dim=(2, 3)) / temperature).softmax(dim=1) * maps.shape[1]
    return over_places.view_as(places), over_channels


def region_feature_loss(
    student: Tensor,
    teacher: Tensor,
    people: Tensor,
    background: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Feature losses of people and of background, and the difference of attentions (DDPS).

    Squared differences of the maps, weighted by the teacher's attentions over places and channels
    and by a mask, summed, and divided by the number of images; the L1 distance of the attentions
    of both networks, likewise.

    Args:
        student, teacher: (N, C, H, W).
        people, background: (N, H, W) masks.
        temperature: of the attentions.

    Returns:
        (people, background, attention), scalars.
    """
    ours, theirs = _full(student), _full(teacher.detach())
    our_places, our_channels = attentions(ours, temperature)
    places, channels = attentions(theirs, temperature)
    weighted = (ours - theirs).square() * places[:, None] * channels[:, :, None, None]
    by_place = weighted.sum(dim=1)
    number = max(len(ours), 1)
    distance = (our_places - places).abs().sum() + (our_channels - channels).abs().sum()
    return (
        (by_place * people).sum() / number,
        (by_place * background).sum() / number,
        distance / number,
    )


def quality_focal(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """|p_T - p_S|^beta BCE(p_S, p_T) of every element (CrossKD, from GFL, NeurIPS 2020).

    The factor has a gradient, as in the released code.

    Args:
        student, teacher: logits of one shape.
    """
    ours, theirs = _full(student), _full(teacher.detach()).sigmoid()
    entropy = binary_cross_entropy_with_logits(ours, theirs, reduction="none")
    return (theirs - ours.sigmoid()).abs().pow(beta) * entropy
