"""Distillers of tiny networks, from configs and from files of teachers with random weights."""

import copy

import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from tiny import tiny_detector_cfg
from torch import nn

from kd_search.modeling import as_distillable


def save_teacher(folder, cfg, node: str = "TEACHER"):
    """Write config and random weights of a teacher; returns overrides for a student's config."""
    torch.manual_seed(1)
    model = build_model(as_distillable(cfg))
    # With variance 1, the features of random weights would grow from layer to layer.
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_var.fill_(50.0)
    name = node.lower()
    (folder / f"{name}.yaml").write_text(cfg.dump())
    torch.save({"model": model.state_dict()}, folder / f"{name}.pth")
    return (
        *(f"DISTILLATION.{node}.CONFIG_FILE", str(folder / f"{name}.yaml")),
        *(f"DISTILLATION.{node}.WEIGHTS", str(folder / f"{name}.pth")),
    )


def distiller_of(meta_arch, *overrides, terms, base=tiny_detector_cfg):
    """A Distiller with a student of ``base()``, its weights by seed 0."""
    cfg = base()
    cfg.merge_from_list(
        [
            *("MODEL.META_ARCHITECTURE", "Distiller"),
            *("DISTILLATION.STUDENT_META_ARCH", meta_arch, "DISTILLATION.TERMS", terms),
            *overrides,
        ]
    )
    torch.manual_seed(0)
    return build_model(cfg)


def losses_of(model, batch):
    """Losses of a copy of a batch, the sampling by seed 2."""
    torch.manual_seed(2)
    with EventStorage():
        return model(copy.deepcopy(batch))
