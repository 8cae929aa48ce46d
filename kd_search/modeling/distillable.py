"""Networks of Detectron2, and subclasses of them, as students and teachers."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, RetinaNet
from torch import nn

from kd_search.modeling.meta_arch.retinanet import DistillableRetinaNet
from kd_search.outputs import ModelOutputs, ModelSpec, Part

_SUBCLASSES = {
    "GeneralizedRCNN": "DistillableRCNN",
    "RetinaNet": "DistillableRetinaNet",
    "RPN": "DistillableRPN",
    "StandardROIHeads": "DistillableROIHeads",
    "Res5ROIHeads": "DistillableRes5ROIHeads",
}


def as_distillable(cfg: CfgNode) -> CfgNode:
    """A copy of a config that builds the same network as a student or a teacher.

    Detectron2's own classes are replaced by their subclasses of this package, with the same weights
    and results.

    Args:
        cfg: of a detector; ``MODEL.META_ARCHITECTURE`` must be that of the network itself.
    """
    cfg = cfg.clone()
    cfg.defrost()
    model = cfg.MODEL
    for node, key in (
        (model, "META_ARCHITECTURE"),
        (model.PROPOSAL_GENERATOR, "NAME"),
        (model.ROI_HEADS, "NAME"),
    ):
        node[key] = _SUBCLASSES.get(node[key], node[key])
    return cfg


class FeatureNetwork:
    """Mixin that makes a detector of another package a student and a teacher of feature terms.

    :func:`build_distillable` puts it before a subclass of ``GeneralizedRCNN`` or ``RetinaNet``. The
    subclass trains and detects by its own ``forward``; a hook records the output of its backbone,
    which must run once in a training step.
    """

    # Of the detector.
    backbone: Any
    device: torch.device
    input_format: str
    preprocess_image: Any
    __call__: Any

    def spec(self) -> ModelSpec:
        """Feature maps and classes; :attr:`Part.FEATURES` is the only part."""
        heads: Any = getattr(self, "roi_heads", self)
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
                "a student like this requires a forward_train() of its own"
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


def build_distillable(cfg: CfgNode, key: str = "MODEL.META_ARCHITECTURE") -> nn.Module:
    """Build the network of a config as a student or a teacher.

    Subclasses of ``GeneralizedRCNN`` and ``RetinaNet`` without ``forward_train`` become
    :class:`FeatureNetwork`; other networks are not changed.

    Args:
        cfg: of the network itself.
        key: config key that names the network, for the error.

    Raises:
        ValueError: the network is not registered.
    """
    cfg = as_distillable(cfg)
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in META_ARCH_REGISTRY:
        known = ", ".join(sorted(known for known, _ in META_ARCH_REGISTRY))
        raise ValueError(
            f"{key} {name!r} is none of {known}; a network of another package is registered by "
            "importing it (--import MODULE)"
        )
    network = META_ARCH_REGISTRY.get(name)
    foreign = isinstance(network, type) and issubclass(network, (GeneralizedRCNN, RetinaNet))
    if foreign and not hasattr(network, "forward_train"):
        members: dict[str, Any] = {"__module__": network.__module__}
        if getattr(network, "losses", None) is RetinaNet.losses:
            # Detectron2's are TorchScript, which rounds otherwise in a resumed run.
            members["losses"] = DistillableRetinaNet.losses
        network = type(name, (FeatureNetwork, network), members)
    return network(cfg)
