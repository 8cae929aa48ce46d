"""Backbones of torchvision and timm with random weights, by name."""

import torch
from detectron2.modeling import build_backbone
from torch import nn

import kd_search.modeling  # noqa: F401  registers the backbones
from kd_search.config import get_cfg

RES = ("res2", "res3", "res4", "res5")


def cfg_of(name, *overrides, builder="build_torchvision_backbone", features=RES):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = builder
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.TORCHVISION.NAME = name
    cfg.MODEL.TORCHVISION.OUT_FEATURES = list(features)
    cfg.MODEL.FPN.IN_FEATURES = list(features)
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.merge_from_list(list(overrides))
    return cfg


def backbone_of(name, *overrides, **kwargs):
    torch.manual_seed(0)
    return build_backbone(cfg_of(name, *overrides, **kwargs))


def random_statistics(module):
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 2)
            nn.init.normal_(m.bias)
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
            m.num_batches_tracked.fill_(3)
