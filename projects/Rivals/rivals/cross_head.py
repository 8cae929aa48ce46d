"""CrossKD: the student's features go through the teacher's head.

Wang et al., "CrossKD: Cross-Head Knowledge Distillation for Object Detection", CVPR 2024, arXiv
2306.11369.
"""

import torch
from detectron2.config import configurable
from detectron2.modeling.box_regression import Box2BoxTransform
from fvcore.nn import giou_loss
from torch import nn

from kd_search.config import ConfigError, register_config
from kd_search.distillation import (
    COMPANION_REGISTRY,
    DISTILLATION_TERM_REGISTRY,
    Companion,
    DistillationTerm,
)
from kd_search.outputs import Part
from rivals.losses import quality_focal


@register_config
def add_cross_head_config(cfg):
    """Add ``DISTILLATION.CROSS_HEAD``."""
    node = cfg.DISTILLATION.CROSS_HEAD = type(cfg)()
    # Weights of classes and of boxes: 1 and 1 in the authors' config of RetinaNet.
    node.CLASS_WEIGHT = 1.0
    node.BOX_WEIGHT = 1.0
    # Exponent of the quality focal loss: 1 (the authors' configs).
    node.BETA = 1.0
    # Convolutions of the student's head before the teacher's takes over: 3 of RetinaNet's 4 (the
    # authors' config). The head of an RPN has one, and its two predictors are the teacher's.
    node.STUDENT_LAYERS = 3


@COMPANION_REGISTRY.register()
class TeacherHead(Companion):
    """Predictions of the teacher's head from features of the student's head, for every anchor.

    They are in ``extras["TeacherHead"]`` of the student's outputs: logits and deltas of every
    level, in the form of :class:`~kd_search.outputs.AnchorOutputs`. Gradients go through the frozen
    head to the student. Where the pyramids have other numbers of channels, a 1x1 convolution, one
    for each branch, adapts the student's features.
    """

    student_parts = frozenset({Part.FEATURES})

    @configurable
    def __init__(self, *, channels, layers):
        super().__init__()
        self.layers = layers
        branches = ("classes", "boxes") if channels[0] != channels[1] else ()
        self.adapters = nn.ModuleDict({name: nn.Conv2d(*channels, 1) for name in branches})
        # A list, so that the teacher is no submodule, which would be trained and saved.
        self.teacher = []

    @classmethod
    def from_config(cls, cfg, student, teacher):
        name = next((name for name in student.features if name in teacher.features), None)
        if name is None or student.anchors is None or teacher.anchors is None:
            raise ConfigError(
                "DISTILLATION.TERMS: CrossHeadTerm requires two networks with anchors and a "
                "feature map of the same name"
            )
        # Detectron2's heads keep the channels of their maps.
        channels = (student.features[name].channels, teacher.features[name].channels)
        return {"channels": channels, "layers": cfg.DISTILLATION.CROSS_HEAD.STUDENT_LAYERS}

    def set_teacher(self, network):
        self.teacher = [network]

    def after_student(self, network, student, teacher, early):
        (theirs,) = self.teacher
        predict = self._rpn if hasattr(network, "proposal_generator") else self._retinanet
        return student.with_extra("TeacherHead", predict(network, theirs, student)), teacher

    def _adapted(self, branch, features):
        return self.adapters[branch](features) if branch in self.adapters else features

    def _rpn(self, ours, theirs, student):
        names = ours.proposal_generator.in_features
        head, other = ours.proposal_generator.rpn_head, theirs.proposal_generator.rpn_head
        logits, deltas = [], []
        for name in names:
            # In Detectron2 0.6 the ReLU is part of the convolution.
            hidden = head.conv(student.features[name]).relu()
            logits.append(other.objectness_logits(self._adapted("classes", hidden)))
            deltas.append(other.anchor_deltas(self._adapted("boxes", hidden)))
        return [by_anchor(x, 1).squeeze(2) for x in logits], [by_anchor(x, 4) for x in deltas]

    def _retinanet(self, ours, theirs, student):
        logits, deltas = [], []
        for name in ours.head_in_features:
            features = student.features[name]
            for predictions, branch, subnet, predictor, size in (
                (logits, "classes", "cls_subnet", "cls_score", ours.num_classes),
                (deltas, "boxes", "bbox_subnet", "bbox_pred", 4),
            ):
                first, _ = split_layers(getattr(ours.head, subnet), self.layers)
                _, rest = split_layers(getattr(theirs.head, subnet), self.layers)
                hidden = rest(self._adapted(branch, first(features)))
                predictions.append(by_anchor(getattr(theirs.head, predictor)(hidden), size))
        return logits, deltas


def split_layers(subnet, layers):
    """A sequence of convolutions, each with its ReLU, before and after that many of them.

    Raises:
        ConfigError: it has not so many.
    """
    ends = [i + 1 for i, module in enumerate(subnet) if isinstance(module, nn.ReLU)]
    if not 0 <= layers <= len(ends):
        raise ConfigError(
            f"DISTILLATION.CROSS_HEAD.STUDENT_LAYERS {layers}: the head has {len(ends)} layers"
        )
    at = ends[layers - 1] if layers else 0
    return subnet[:at], subnet[at:]


def by_anchor(x, size):
    """(N, A * size, H, W) to (N, H * W * A, size), the order of the anchors."""
    return x.unflatten(1, (-1, size)).permute(0, 3, 4, 1, 2).flatten(1, 3)


@DISTILLATION_TERM_REGISTRY.register()
class CrossHeadTerm(DistillationTerm):
    """Classes and boxes of the teacher's head, from the student's features and from its own.

    Quality focal loss over the anchors that the student sampled, GIoU over its positive ones; both
    are sums, divided by the divisor of the student's own losses.
    """

    student_parts = teacher_parts = frozenset({Part.ANCHOR_LOGITS, Part.ANCHOR_DELTAS})
    companions = ("TeacherHead",)

    @configurable
    def __init__(self, *, class_weight, box_weight, beta):
        super().__init__()
        self.class_weight, self.box_weight, self.beta = class_weight, box_weight, beta

    @classmethod
    def from_config(cls, cfg):
        node = cfg.DISTILLATION.CROSS_HEAD
        return {
            "class_weight": node.CLASS_WEIGHT,
            "box_weight": node.BOX_WEIGHT,
            "beta": node.BETA,
        }

    def setup(self, student, teacher):
        ours, theirs = student.anchors, teacher.anchors
        same = ours.dense_classes == theirs.dense_classes and ours.strides == theirs.strides
        same = same and len(ours.cells) == len(theirs.cells)
        same = same and all(
            a.shape == b.shape and torch.allclose(a, b) for a, b in zip(ours.cells, theirs.cells)
        )
        same = same and ours.delta_weights == theirs.delta_weights
        if not same or (ours.dense_classes and student.num_classes != teacher.num_classes):
            raise ConfigError(
                "DISTILLATION.TERMS: CrossHeadTerm requires the same anchors, box transform and "
                "classes of student and teacher"
            )
        self.transform = Box2BoxTransform(ours.delta_weights)

    def forward(self, student, teacher):
        logits, deltas = (torch.cat(x, dim=1) for x in student.extras["TeacherHead"])
        targets, anchors = student.anchors.targets, torch.cat(student.anchors.boxes)
        sampled, positive = targets.labels >= 0, targets.labels == 1
        classes = quality_focal(
            logits[sampled], torch.cat(teacher.anchors.logits, dim=1)[sampled], self.beta
        )
        sources = anchors.expand(len(positive), -1, -1)[positive]
        ours, theirs = (
            self.transform.apply_deltas(x[positive].float(), sources)
            for x in (deltas, torch.cat(teacher.anchors.deltas, dim=1))
        )
        boxes = giou_loss(ours, theirs, reduction="sum")
        return {
            "loss_cross_classes": self.class_weight * classes.sum() / targets.normalizer,
            "loss_cross_boxes": self.box_weight * boxes / targets.normalizer,
        }
