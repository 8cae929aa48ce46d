"""Config keys of views knowledge distillation (Porrello et al., ECCV 2020)."""

from __future__ import annotations

from detectron2.config import CfgNode

from kd_search.config import register_config


@register_config
def add_vkd_config(cfg: CfgNode) -> None:
    """Add ``DISTILLATION.VKD``."""
    CN = type(cfg)  # noqa: N806
    # Terms of VKD (Porrello et al., ECCV 2020): the teacher has more views of a person.
    cfg.DISTILLATION.VKD = CN()
    # alpha: weight of ViewLogitsTerm, 0.1 (the authors' code).
    cfg.DISTILLATION.VKD.LOGITS_WEIGHT = 0.1
    # "kl": divergence of the probabilities, the paper's; "mse": mean squared difference of the
    # logits, without a temperature (--logits_dist of the authors' code).
    cfg.DISTILLATION.VKD.LOGITS_DISTANCE = "kl"
    # Temperature of ViewLogitsTerm, 10 (the authors' code).
    cfg.DISTILLATION.VKD.TEMPERATURE = 10.0
    # beta: weight of DistancePreservationTerm, 1e-4 (the authors' code).
    cfg.DISTILLATION.VKD.DISTANCE_WEIGHT = 0.0001
