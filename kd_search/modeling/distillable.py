"""Networks of Detectron2, and subclasses of them, as students and teachers."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, RetinaNet
from torch import nn

from kd_search.outputs import ModelOutputs, ModelSpec, Part

_META_ARCHITECTURES = {
    "GeneralizedRCNN": "DistillableRCNN",
    "RetinaNet": "DistillableRetinaNet",
}
_PROPOSAL_GENERATORS = {"RPN": "DistillableRPN"}
_ROI_HEADS = {
    "StandardROIHeads": "DistillableROIHeads",
    "Res5ROIHeads": "DistillableRes5ROIHeads",
}


def as_distillable(cfg: CfgNode) -> CfgNode:
    """A copy of a config that builds the same network as a student or a teacher.

    Detectron2's own classes are replaced by their subclasses of this package. Weights and results
    are the same, so that any Detectron2 config and its weights can be used as they are.

    Args:
        cfg: of a detector; ``MODEL.META_ARCHITECTURE`` must be that of the network itself.
    """
    cfg = cfg.clone()
    cfg.defrost()
    model = cfg.MODEL
    model.META_ARCHITECTURE = _META_ARCHITECTURES.get(
        model.META_ARCHITECTURE, model.META_ARCHITECTURE
    )
    name = model.PROPOSAL_GENERATOR.NAME
    model.PROPOSAL_GENERATOR.NAME = _PROPOSAL_GENERATORS.get(name, name)
    model.ROI_HEADS.NAME = _ROI_HEADS.get(model.ROI_HEADS.NAME, model.ROI_HEADS.NAME)
    return cfg


class FeatureNetwork:
    """Makes a detector of another package a student and a teacher of terms on features.

    Mixed in before a subclass of ``GeneralizedRCNN`` or ``RetinaNet`` by :func:`build_distillable`.
    The subclass trains and detects by its own ``forward``; a hook records what its backbone
    returned, so that the backbone must run once in a training step.
    """

    def spec(self) -> ModelSpec:
        """Feature maps and classes; :attr:`Part.FEATURES` is the only part."""
        heads = getattr(self, "roi_heads", self)
        return ModelSpec(
            features=self.backbone.output_shape(),
            num_classes=heads.num_classes,
            size_divisibility=self.backbone.size_divisibility,
            image_format=self.input_format or "BGR",
        )

    def forward_train(
        self, batched_inputs: list[dict[str, Any]]
    ) -> tuple[dict[str, torch.Tensor], ModelOutputs]:
        """Losses of the network's own ``forward``, and features."""
        recorded: list[dict[str, torch.Tensor]] = []
        handle = self.backbone.register_forward_hook(lambda *args: recorded.append(args[2]))
        try:
            losses = self(batched_inputs)
        finally:
            handle.remove()
        if len(recorded) != 1:
            raise ValueError(
                f"{type(self).__name__} ran its backbone {len(recorded)} times in a training step: "
                "to be a student it needs a forward_train() of its own"
            )
        targets = [x["instances"].to(self.device) for x in batched_inputs]
        return losses, ModelOutputs(features=recorded[0], annotated=targets)

    @torch.no_grad()
    def forward_teacher(
        self, batched_inputs: list[dict[str, Any]], parts: frozenset[Part]
    ) -> ModelOutputs:
        """Images and features; ``parts`` holds nothing else."""
        images = self.preprocess_image(batched_inputs)
        return ModelOutputs(images, self.backbone(images.tensor))


def build_distillable(cfg: CfgNode) -> nn.Module:
    """Build the network of a config as a student or a teacher, on ``MODEL.DEVICE``'s default.

    Subclasses of ``GeneralizedRCNN`` and ``RetinaNet`` without ``forward_train`` get what
    :class:`FeatureNetwork` has. Any other network is built as it is.

    Args:
        cfg: of the network itself.

    Raises:
        ValueError: ``MODEL.META_ARCHITECTURE`` is not registered.
    """
    cfg = as_distillable(cfg)
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in META_ARCH_REGISTRY:
        known = ", ".join(sorted(known for known, _ in META_ARCH_REGISTRY))
        raise ValueError(f"MODEL.META_ARCHITECTURE {name!r} is none of {known}")
    network = META_ARCH_REGISTRY.get(name)
    foreign = isinstance(network, type) and issubclass(network, (GeneralizedRCNN, RetinaNet))
    if foreign and not hasattr(network, "forward_train"):
        network = type(name, (FeatureNetwork, network), {"__module__": network.__module__})
    return network(cfg)
