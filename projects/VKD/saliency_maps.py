"""Saliency maps of re-ID networks: the share of each place of a picture in a score.

A ``ReIDNetwork`` averages its last feature map A over places p to the feature f of a crop, and a
score s of f therefore has a first-order part for each place, with the weights of Grad-CAM
(Selvaraju et al., ICCV 2017; gradients of the score, pooled over places):

    w = ds/df = sum_p ds/dA_p,        m_p = w . A_p

The mean of m over places is w . f: of a score that is linear in f, the score itself.

Grad-CAM needs a class, and the classifier has none for people of a test set. Two scores do not need
it:

- *margin*: the mean cosine to other pictures of the same person less that to pictures of other
  people, which determines the ranking. Embeddings before a neck share a large common part: all
  cosines are near 1, and the map of a cosine alone shows that part, while the map of the difference
  shows what distinguishes the person. The length of the embedding is held fixed: a cosine does not
  depend on it, so its full gradient is orthogonal to the embedding, and its map would sum to 0.
- *logit*: the greatest logit, of whichever training identity the crop resembles most. The authors'
  code of VKD (Porrello et al., ECCV 2020) weighs its maps so.
"""

from typing import Callable

import torch
from torch.nn import functional as F  # noqa: N812

from kd_search.modeling.meta_arch import ReIDNetwork

#: Per-crop scores (P,) of embeddings (P, D) and identity logits (P, L).
Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def margin_maps(
    network: ReIDNetwork, crops: torch.Tensor, own: torch.Tensor, others: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Share of each place in the margin of a crop.

    Args:
        network: a ``ReIDNetwork`` in evaluation mode.
        crops: (P, 3, H, W), 0..255, on its device.
        own: (P, D) means of the unit embeddings, by the same network, of other pictures of the
            person.
        others: (P, D) means of those of other people's.

    Returns:
        maps (P, h, w) and margins (P,): mean cosine to own pictures less that to others'. Where the
        embedding is that before the neck, the mean of a map is the margin.
    """
    directions = (own - others).detach()

    def margin(embeddings: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        lengths = embeddings.detach().norm(dim=1).clamp(min=1e-12)
        return (embeddings * directions).sum(dim=1) / lengths

    return score_maps(network, crops, margin)


def logit_maps(network: ReIDNetwork, crops: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Share of each place in the greatest identity logit.

    Args:
        network, crops: as :func:`margin_maps`.

    Returns:
        maps (P, h, w) and logits (P,).
    """
    return score_maps(network, crops, lambda embeddings, logits: logits.amax(dim=1))


def score_maps(
    network: ReIDNetwork, crops: torch.Tensor, score: Score
) -> tuple[torch.Tensor, torch.Tensor]:
    """The maps m of this module's docstring for any score.

    Returns:
        maps (P, h, w), of both signs, and scores (P,).

    Raises:
        ValueError: the network is in training mode: its normalisations would mix the crops.
    """
    if network.training:
        raise ValueError("saliency needs a network in evaluation mode: call eval() before")
    with torch.no_grad():
        maps = network.feature_maps(crops)
    with torch.enable_grad():
        maps = maps.detach().requires_grad_()
        scores = score(*network.classify(maps.mean(dim=(2, 3))))
        (gradients,) = torch.autograd.grad(scores.sum(), maps)
    weights = gradients.sum(dim=(2, 3))
    return torch.einsum("pd,pdhw->phw", weights, maps.detach()), scores.detach()


def heat(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Positive shares of the score, scaled to the size of a crop.

    As in Grad-CAM negative shares are left out; then the map is scaled up (bilinear) and divided by
    its greatest value, each for itself: heat compares places of a picture, not pictures.

    Args:
        maps: (P, h, w).
        size: height and width of the crop.

    Returns:
        (P, height, width) in 0..1; all 0 where nothing speaks for it.
    """
    positive = F.interpolate(
        maps.clamp(min=0)[:, None], size=size, mode="bilinear", align_corners=False
    )[:, 0]
    greatest = positive.amax(dim=(1, 2), keepdim=True)
    return positive / torch.where(greatest > 0, greatest, torch.ones_like(greatest))
