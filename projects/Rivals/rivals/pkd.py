"""PKD: feature maps are compared by Pearson's correlation.

Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson Correlation
Coefficient", NeurIPS 2022, arXiv 2207.02039.
"""

import torch
from detectron2.config import configurable
from torch import nn

from kd_search.config import ConfigError, register_config
from kd_search.distillation import DISTILLATION_TERM_REGISTRY, DistillationTerm
from kd_search.losses import align_maps
from kd_search.outputs import Part
from rivals.losses import pearson_loss


@register_config
def add_pkd_config(cfg):
    """Add ``DISTILLATION.PKD``."""
    node = cfg.DISTILLATION.PKD = type(cfg)()
    # Factor of the sum over feature maps: 6 in the authors' configs of OpenMMLab, for detectors of
    # one and of two stages.
    node.LOSS_WEIGHT = 6.0
    # Feature maps; empty: all that both networks have. The authors take those of the pyramid.
    node.FEATURES = []


@DISTILLATION_TERM_REGISTRY.register()
class PearsonTerm(DistillationTerm):
    """Sum over feature maps of 1 - r, r the mean correlation of a channel with the teacher's.

    Where student and teacher have other numbers of channels, a 1x1 convolution adapts the
    student's; the paper's pyramids have equal ones. Where both have as many, there is none.
    """

    student_parts = teacher_parts = frozenset({Part.FEATURES})

    @configurable
    def __init__(self, *, features, loss_weight):
        super().__init__()
        self.features, self.loss_weight = list(features), loss_weight
        self.adapters = nn.ModuleDict()

    @classmethod
    def from_config(cls, cfg):
        node = cfg.DISTILLATION.PKD
        return {"features": node.FEATURES, "loss_weight": node.LOSS_WEIGHT}

    def setup(self, student, teacher):
        self.features, self.adapters = common_maps(
            "DISTILLATION.PKD.FEATURES", self.features, student, teacher
        )
        self.strides = {
            name: (student.features[name].stride, teacher.features[name].stride)
            for name in self.features
        }

    def forward(self, student, teacher):
        losses = []
        for name in self.features:
            ours = adapted(self.adapters, name, student.features[name])
            own, other = self.strides[name]
            losses.append(pearson_loss(*align_maps(ours, own, teacher.features[name], other)))
        return {"loss_pkd": self.loss_weight * torch.stack(losses).sum()}


def common_maps(key, names, student, teacher):
    """Names of the maps to compare, and adapters of those with other numbers of channels.

    Args:
        key: config key that lists the names; empty lists stand for all that both have.

    Raises:
        ConfigError: a network lacks a map, or they have none in common.
    """
    chosen = list(names) or [name for name in student.features if name in teacher.features]
    for name in chosen:
        for side, spec in (("student", student), ("teacher", teacher)):
            if name not in spec.features:
                raise ConfigError(f"{key}: the {side} has no {name!r}, but {list(spec.features)}")
    if not chosen:
        raise ConfigError(f"{key}: student and teacher have no feature map of the same name")
    adapters = nn.ModuleDict()
    for name in chosen:
        ours, theirs = student.features[name].channels, teacher.features[name].channels
        if ours != theirs:
            adapters[name.replace(".", "_")] = nn.Conv2d(ours, theirs, kernel_size=1)
    return chosen, adapters


def adapted(adapters, name, maps):
    """The student's map with the teacher's number of channels."""
    key = name.replace(".", "_")
    return adapters[key](maps) if key in adapters else maps
