"""Faster R-CNN as a student and as a teacher."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.utils.events import get_event_storage

from kd_search.modeling.roi_heads.distillable import DistillableHeads
from kd_search.modeling.rpn import DistillableRPN, anchor_spec
from kd_search.outputs import (
    ANCHOR_PARTS,
    REGION_PARTS,
    ModelOutputs,
    ModelSpec,
    Part,
    RegionOutputs,
    RegionSpec,
)


@META_ARCH_REGISTRY.register()
class DistillableRCNN(GeneralizedRCNN):
    """GeneralizedRCNN that can be a student and a teacher. Weights and results are the same.

    It outputs features, anchors with a :class:`DistillableRPN`, and regions with
    :class:`DistillableHeads`. Other proposal generators and ROI heads, such as Detectron2's
    ``CascadeROIHeads``, are supported without their parts. See
    :func:`kd_search.modeling.as_distillable`.
    """

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """As GeneralizedRCNN: a dict of scalar losses in training, otherwise detections."""
        if not self.training:
            return self.inference(batched_inputs)
        return self.forward_train(batched_inputs)[0]

    def spec(self) -> ModelSpec:
        """Feature maps, classes, anchors and delta scales of this network."""
        spec = ModelSpec(
            features=self.backbone.output_shape(),
            num_classes=self.roi_heads.num_classes,
            size_divisibility=self.backbone.size_divisibility,
            image_format=self.input_format or "BGR",
        )
        if isinstance(self.proposal_generator, DistillableRPN):
            anchors = anchor_spec(self.proposal_generator)
            spec = replace(spec, parts=spec.parts | ANCHOR_PARTS, anchors=anchors)
        if isinstance(self.roi_heads, DistillableHeads):
            predictor = self.roi_heads.box_predictor
            weights = tuple(predictor.box2box_transform.weights)
            regions = RegionSpec(weights, predictor.has_softmax)
            spec = replace(spec, parts=spec.parts | REGION_PARTS, regions=regions)
        return spec

    def forward_train(
        self, batched_inputs: list[dict[str, Any]]
    ) -> tuple[dict[str, torch.Tensor], ModelOutputs]:
        """Losses and outputs of a training batch."""
        images = self.preprocess_image(batched_inputs)
        targets = [x["instances"].to(self.device) for x in batched_inputs]
        features = self.backbone(images.tensor)
        anchors: Any = None
        regions: Any = None
        identities: Any = None
        if isinstance(self.proposal_generator, DistillableRPN):
            proposals, losses, anchors = self.proposal_generator.forward_train(
                images, features, targets
            )
        else:
            proposals, losses = self.proposal_generator(images, features, targets)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batched_inputs, proposals)
        if isinstance(self.roi_heads, DistillableHeads):
            region_losses, regions, identities = self.roi_heads.forward_train(
                features, proposals, targets
            )
        else:
            _, region_losses = self.roi_heads(images, features, proposals, targets)
        outputs = ModelOutputs(images, features, anchors, regions, identities, annotated=targets)
        return {**losses, **region_losses}, outputs

    @torch.no_grad()
    def forward_teacher(
        self, batched_inputs: list[dict[str, Any]], parts: frozenset[Part]
    ) -> ModelOutputs:
        """Outputs of this network as a teacher, without proposals and gradient.

        Anchors if in ``parts``; :meth:`forward_regions` adds regions.
        """
        images = self.preprocess_image(batched_inputs)
        outputs = ModelOutputs(images, self.backbone(images.tensor))
        if not parts & ANCHOR_PARTS:
            return outputs
        anchors = self.proposal_generator.predict_anchors(outputs.features)
        return replace(outputs, anchors=anchors)

    @torch.no_grad()
    def forward_regions(
        self, outputs: ModelOutputs, student: ModelOutputs, parts: frozenset[Part]
    ) -> ModelOutputs:
        """Predictions of this network, as a teacher, for the student's regions.

        Args:
            outputs: of :meth:`forward_teacher`, of the same batch.
            student: of the same batch, with ``regions.proposals``.
            parts: to compute.

        Returns:
            ``outputs`` with ``regions``, in this network's classes; unchanged if no part of
            regions is required.
        """
        if not parts & REGION_PARTS:
            return outputs
        sampled, features = student.regions, outputs.features
        # The student's classes define the foreground; its logits have K + 1 columns.
        num_classes = sampled.logits.shape[1] - 1
        logits: Any = None
        deltas: Any = None
        foreground: Any = None
        if parts & {Part.REGION_LOGITS, Part.REGION_DELTAS}:
            boxes = [p.proposal_boxes for p in sampled.proposals]
            logits, deltas = self.roi_heads.predict_boxes(features, boxes)
            if Part.FOREGROUND_LOGITS in parts:
                foreground = logits[sampled.foreground(num_classes)]
        else:
            boxes = sampled.foreground_boxes(num_classes)
            foreground, _ = self.roi_heads.predict_boxes(features, boxes)
        regions = RegionOutputs(sampled.proposals, logits, deltas, foreground)
        return replace(outputs, regions=regions)
