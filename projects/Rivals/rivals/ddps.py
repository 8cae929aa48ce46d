"""DDPS: features of people and of background apart, decoupled classes, correlations of people.

Jia et al., "Disaggregation Distillation for Person Search", IEEE Transactions on Multimedia 27,
2025. The paper's text was not available; the losses and weights are those that its abstract and a
description of the released code give. The README says which details are ours.
"""

import torch
from detectron2.config import configurable
from detectron2.layers import batched_nms
from torch import nn

from kd_search.config import ConfigError, register_config
from kd_search.distillation import DISTILLATION_TERM_REGISTRY, DistillationTerm
from kd_search.losses import align_maps, paint_boxes
from kd_search.outputs import Part
from rivals.losses import correlation_loss, decoupled_logits, region_feature_loss
from rivals.pkd import adapted, common_maps


@register_config
def add_ddps_config(cfg):
    """Add ``DISTILLATION.DDPS``."""
    node = cfg.DISTILLATION.DDPS = type(cfg)()
    # Feature maps of DFD; empty: all that both networks have. The paper: four levels of a pyramid.
    node.FEATURES = []
    # alpha, beta, gamma, lambda: people, background, attention, global context (the released code).
    node.PEOPLE_WEIGHT = 5e-5
    node.BACKGROUND_WEIGHT = 2.5e-5
    node.ATTENTION_WEIGHT = 5e-5
    node.CONTEXT_WEIGHT = 5e-7
    # Temperature of the attentions: 0.5 (the released code).
    node.ATTENTION_TEMPERATURE = 0.5
    # LD: weights of the own class and of the others, temperature (the released code).
    node.TARGET_WEIGHT = 1.0
    node.OTHERS_WEIGHT = 0.5
    node.TEMPERATURE = 4.0
    # CD: weight of the sum (the released code).
    node.CORRELATION_WEIGHT = 0.01
    # CD: boxes of one image that overlap more than this are one person (the released code).
    node.CORRELATION_NMS = 0.7


class GlobalContext(nn.Module):
    """F plus a transformed mean of F, weighted by an attention over its places (GCNet, 2019).

    A bottleneck of half the channels, as in FGD.
    """

    def __init__(self, channels):
        super().__init__()
        self.attention = nn.Conv2d(channels, 1, kernel_size=1)
        self.transform = nn.Sequential(
            nn.Linear(channels, channels // 2),
            nn.LayerNorm(channels // 2),
            nn.ReLU(),
            nn.Linear(channels // 2, channels),
        )
        # It starts as the identity.
        nn.init.zeros_(self.transform[-1].weight)
        nn.init.zeros_(self.transform[-1].bias)

    def forward(self, maps):
        weights = self.attention(maps).flatten(2).softmax(dim=2)
        context = (maps.flatten(2) * weights).sum(dim=2)
        return maps + self.transform(context)[:, :, None, None]


@DISTILLATION_TERM_REGISTRY.register()
class DisaggregatedFeatureTerm(DistillationTerm):
    """DFD: features of people and of background apart, attentions, and global context."""

    student_parts = teacher_parts = frozenset({Part.FEATURES})

    @configurable
    def __init__(self, *, features, people, background, attention, context, temperature):
        super().__init__()
        self.features = list(features)
        self.weights = {"people": people, "background": background, "attention": attention}
        self.context_weight, self.temperature = context, temperature

    @classmethod
    def from_config(cls, cfg):
        node = cfg.DISTILLATION.DDPS
        return {
            "features": node.FEATURES,
            "people": node.PEOPLE_WEIGHT,
            "background": node.BACKGROUND_WEIGHT,
            "attention": node.ATTENTION_WEIGHT,
            "context": node.CONTEXT_WEIGHT,
            "temperature": node.ATTENTION_TEMPERATURE,
        }

    def setup(self, student, teacher):
        key = "DISTILLATION.DDPS.FEATURES"
        self.features, self.adapters = common_maps(key, self.features, student, teacher)
        self.strides = {name: student.features[name].stride for name in self.features}
        for name, stride in self.strides.items():
            if teacher.features[name].stride != stride:
                raise ConfigError(
                    f"{key}: {name} has the stride {stride} in the student and "
                    f"{teacher.features[name].stride} in the teacher: leave it out"
                )
        self.contexts = nn.ModuleDict(
            {
                context_name(side, name): GlobalContext(teacher.features[name].channels)
                for name in self.features
                for side in ("student", "teacher")
            }
        )

    def forward(self, student, teacher):
        losses = {f"loss_ddps_{name}": [] for name in (*self.weights, "context")}
        for name in self.features:
            stride = self.strides[name]
            ours, theirs = align_maps(
                adapted(self.adapters, name, student.features[name]),
                stride,
                teacher.features[name],
                stride,
            )
            masks = people_masks(student.annotated, ours, stride)
            found = region_feature_loss(ours, theirs, *masks, self.temperature)
            for (kind, weight), loss in zip(self.weights.items(), found):
                losses[f"loss_ddps_{kind}"].append(weight * loss)
            of_student = self.contexts[context_name("student", name)](ours)
            of_teacher = self.contexts[context_name("teacher", name)](theirs)
            context = (of_student - of_teacher).square().sum() / len(ours)
            losses["loss_ddps_context"].append(self.context_weight * context)
        return {name: torch.stack(of_maps).sum() for name, of_maps in losses.items()}


def context_name(side, feature):
    """Name of a module: these have no dots."""
    return f"{side}_{feature}".replace(".", "_")


def people_masks(annotated, maps, stride):
    """Masks of people and of background on a map.

    A cell of a person has 1 / (number of cells of its box), of the smallest box where several
    overlap; a cell of the background 1 / (number of such cells of the image).

    Args:
        annotated: per image ``gt_boxes``, XYXY in pixels of the network input.
        maps: (N, C, H, W).
        stride: pixels of the input to one cell.

    Returns:
        two tensors (N, H, W).
    """
    boxes = torch.cat([of_image.gt_boxes.tensor for of_image in annotated]).to(maps.device)
    counts = [len(of_image) for of_image in annotated]
    image = torch.repeat_interleave(torch.tensor(counts)).to(maps.device)
    limits = boxes.new_tensor([maps.shape[3], maps.shape[2]])
    cells = torch.minimum((boxes[:, 2:] / stride).ceil(), limits) - (boxes[:, :2] / stride).floor()
    area = cells.clamp(min=1).prod(dim=1)
    size = (len(maps), *maps.shape[2:])
    people, touched = paint_boxes(boxes, image, 1 / area, size, stride)
    free = (~touched).to(people.dtype)
    return people, free / free.sum(dim=(1, 2), keepdim=True).clamp(min=1)


@DISTILLATION_TERM_REGISTRY.register()
class DecoupledLogitTerm(DistillationTerm):
    """LD: decoupled divergence of the classes of the student's regions, the mean over regions."""

    student_parts = teacher_parts = frozenset({Part.REGION_LOGITS})

    @configurable
    def __init__(self, *, target, others, temperature):
        super().__init__()
        self.target, self.others, self.temperature = target, others, temperature

    @classmethod
    def from_config(cls, cfg):
        node = cfg.DISTILLATION.DDPS
        if not node.TEMPERATURE > 0:
            raise ConfigError(f"DISTILLATION.DDPS.TEMPERATURE {node.TEMPERATURE} must be above 0")
        weights = {"target": node.TARGET_WEIGHT, "others": node.OTHERS_WEIGHT}
        return {**weights, "temperature": node.TEMPERATURE}

    def setup(self, student, teacher):
        if not (student.regions.softmax and teacher.regions.softmax):
            raise ConfigError(
                "DecoupledLogitTerm compares softmax classes: set "
                "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE to False"
            )

    def forward(self, student, teacher):
        classes = student.regions.targets.classes
        kept = classes >= 0
        loss = decoupled_logits(
            student.regions.logits[kept],
            teacher.regions.logits[kept],
            classes[kept],
            self.target,
            self.others,
            self.temperature,
        )
        return {"loss_ddps_logits": loss.sum() / max(len(loss), 1)}


@DISTILLATION_TERM_REGISTRY.register()
class CorrelationTerm(DistillationTerm):
    """CD: cosines between the people of a batch as the teacher's, one box for each person.

    Of boxes of one image that overlap, the one stays of whose identity the teacher is surest.
    """

    student_parts = frozenset({Part.EMBEDDINGS, Part.REGION_LOGITS})
    teacher_parts = frozenset({Part.EMBEDDINGS, Part.IDENTITY_LOGITS})

    @configurable
    def __init__(self, *, nms, loss_weight):
        super().__init__()
        self.nms, self.loss_weight = nms, loss_weight

    @classmethod
    def from_config(cls, cfg):
        node = cfg.DISTILLATION.DDPS
        return {"nms": node.CORRELATION_NMS, "loss_weight": node.CORRELATION_WEIGHT}

    def forward(self, student, teacher):
        num_classes = student.regions.logits.shape[1] - 1
        boxes = student.regions.foreground_boxes(num_classes)
        counts = torch.tensor([len(of_image) for of_image in boxes])
        sure = teacher.identities.logits.softmax(dim=1).amax(dim=1)
        kept = batched_nms(
            torch.cat([of_image.tensor for of_image in boxes]).float(),
            sure.float(),
            torch.repeat_interleave(counts).to(sure.device),
            self.nms,
        )
        loss = correlation_loss(
            student.identities.embeddings[kept], teacher.identities.embeddings[kept]
        )
        return {"loss_ddps_correlation": self.loss_weight * loss}
