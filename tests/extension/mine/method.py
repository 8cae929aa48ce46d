"""A method of another package: hints without the teacher's mean, which a companion tracks."""

import torch
from detectron2.config import configurable
from torch import nn

from kd_search.config import ConfigError, register_config
from kd_search.distillation import (
    COMPANION_REGISTRY,
    DISTILLATION_TERM_REGISTRY,
    Companion,
    DistillationTerm,
)
from kd_search.outputs import Part
from kd_search.utils.comm import join_rows


@register_config
def add_centred_hint_config(cfg):
    """Add ``DISTILLATION.CENTRED_HINT``."""
    node = cfg.DISTILLATION.CENTRED_HINT = type(cfg)()
    # Weight of the term.
    node.LOSS_WEIGHT = 1.0
    # Feature map that student and teacher are compared at.
    node.FEATURE = "p3"
    # Share of the old mean that every step keeps.
    node.MOMENTUM = 0.9


def channels_of(spec, feature):
    """Channels of a feature map; the command line prints a ConfigError in one line."""
    if feature not in spec.features:
        raise ConfigError(
            f"DISTILLATION.CENTRED_HINT.FEATURE {feature!r} is none of {list(spec.features)}"
        )
    return spec.features[feature].channels


@COMPANION_REGISTRY.register()
class TeacherMean(Companion):
    """Tracks the mean of each channel of the teacher's map; its buffer is saved in checkpoints."""

    teacher_parts = frozenset({Part.FEATURES})

    @configurable
    def __init__(self, *, feature: str, channels: int, momentum: float):
        super().__init__()
        self.feature, self.momentum = feature, momentum
        self.register_buffer("mean", torch.zeros(channels))

    @classmethod
    def from_config(cls, cfg, student, teacher):
        node = cfg.DISTILLATION.CENTRED_HINT
        channels = channels_of(teacher, node.FEATURE)
        return {"feature": node.FEATURE, "channels": channels, "momentum": node.MOMENTUM}

    def after_student(self, network, student, teacher, early):
        if torch.is_grad_enabled():  # a training step, in which all ranks take part
            (means,) = join_rows(teacher.features[self.feature].mean(dim=(0, 2, 3))[None])
            self.mean.lerp_(means.mean(dim=0), 1 - self.momentum)
        return student, teacher.with_extra("TeacherMean", self.mean.clone())


@DISTILLATION_TERM_REGISTRY.register()
class CentredHintTerm(DistillationTerm):
    """Mean squared distance of the adapted map to the teacher's centred one."""

    student_parts = teacher_parts = frozenset({Part.FEATURES})
    companions = ("TeacherMean",)

    @configurable
    def __init__(self, *, feature: str, loss_weight: float):
        super().__init__()
        self.feature, self.loss_weight = feature, loss_weight

    @classmethod
    def from_config(cls, cfg):
        node = cfg.DISTILLATION.CENTRED_HINT
        return {"feature": node.FEATURE, "loss_weight": node.LOSS_WEIGHT}

    def setup(self, student, teacher):
        ours, theirs = (channels_of(spec, self.feature) for spec in (student, teacher))
        # Trained with the student, saved under "terms", and no part of an exported model.
        self.adapter = nn.Conv2d(ours, theirs, kernel_size=1)

    def forward(self, student, teacher):
        mean = teacher.extras["TeacherMean"][:, None, None]
        adapted = self.adapter(student.features[self.feature])
        loss = (adapted - (teacher.features[self.feature] - mean)).square().mean()
        return {"loss_centred_hint": self.loss_weight * loss}
