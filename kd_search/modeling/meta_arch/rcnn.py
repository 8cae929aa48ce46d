"""Faster R-CNN as a student and as a teacher."""

from collections.abc import Iterable
from functools import partial

import torch
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.utils.events import get_event_storage

from kd_search.modeling.rpn import DistillableRPN
from kd_search.outputs import (
    Knowledge,
    Layout,
)


@META_ARCH_REGISTRY.register()
class DistillableRCNN(GeneralizedRCNN):
    """Detectron2's GeneralizedRCNN; as a student :meth:`forward_train`, as a teacher
    :meth:`observe` and :meth:`judge_regions`. Weights and results are GeneralizedRCNN's.

    Its proposal generator is a :class:`DistillableRPN`, its ROI heads are distillable ones: see
    :func:`kd_search.modeling.as_distillable`.
    """

    def forward(self, batched_inputs: list[dict]):
        """As GeneralizedRCNN: a dict of scalar losses in training, otherwise detections."""
        if not self.training:
            return self.inference(batched_inputs)
        return self.forward_train(batched_inputs)[0]

    def layout(self) -> Layout:
        """Feature maps, classes, anchors and delta scales of this network."""
        anchors = {}
        if isinstance(self.proposal_generator, DistillableRPN):
            anchors = self.proposal_generator.layout()
        predictor = self.roi_heads.box_predictor
        return Layout(
            features=self.backbone.output_shape(),
            num_classes=self.roi_heads.num_classes,
            size_divisibility=self.backbone.size_divisibility,
            image_format=self.input_format or "BGR",
            region_delta_weights=tuple(predictor.box2box_transform.weights),
            region_softmax=predictor.has_softmax,
            **anchors,
        )

    def forward_train(
        self, batched_inputs: list[dict]
    ) -> tuple[dict[str, torch.Tensor], Knowledge]:
        """Losses of a training batch and what the network knows of it."""
        images = self.preprocess_image(batched_inputs)
        targets = [x["instances"].to(self.device) for x in batched_inputs]
        features = self.backbone(images.tensor)
        anchors = None
        if isinstance(self.proposal_generator, DistillableRPN):
            proposals, losses, anchors = self.proposal_generator.forward_train(
                images, features, targets
            )
        else:
            proposals, losses = self.proposal_generator(images, features, targets)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batched_inputs, proposals)
        region_losses, knowledge = self.roi_heads.forward_train(features, proposals, targets)
        knowledge.images = images
        knowledge.features = features
        knowledge.annotated = targets
        if anchors is not None:
            knowledge.anchors = anchors.anchors
            knowledge.anchor_logits = anchors.logits
            knowledge.anchor_deltas = anchors.deltas
            knowledge.anchor_labels = anchors.labels
            knowledge.anchor_delta_targets = anchors.delta_targets
            knowledge.anchor_normalizer = anchors.normalizer
        return {**losses, **region_losses}, knowledge

    @torch.no_grad()
    def observe(self, batched_inputs: list[dict], fields: Iterable[str]) -> Knowledge:
        """What this network, as a teacher, thinks of a batch; nothing is proposed.

        Args:
            batched_inputs: the student's batch.
            fields: names of the fields of :class:`Knowledge` to fill; the rest is not computed, and
                those of regions are left to :meth:`judge_regions`.

        Returns:
            knowledge without gradient.
        """
        fields = set(fields)
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        knowledge = Knowledge(images=images, features=features)
        if fields & {"anchor_logits", "anchor_deltas"}:
            anchors = self.proposal_generator.judge(features)
            knowledge.anchors = anchors.anchors
            knowledge.anchor_logits = anchors.logits
            knowledge.anchor_deltas = anchors.deltas
        return knowledge

    @torch.no_grad()
    def judge_regions(
        self, knowledge: Knowledge, student: Knowledge, fields: Iterable[str]
    ) -> None:
        """Add what this network, as a teacher, thinks of the student's regions.

        Args:
            knowledge: of :meth:`observe`, of the same batch.
            student: the student's knowledge; its ``proposals`` are judged.
            fields: names of the fields to fill, as of :meth:`observe`.
        """
        fields = set(fields)
        knowledge.proposals = student.proposals
        judge = partial(self.roi_heads.judge, knowledge.features)
        if fields & {"region_logits", "region_deltas"}:
            boxes = [p.proposal_boxes for p in student.proposals]
            knowledge.region_logits, knowledge.region_deltas = judge(boxes)
            if "foreground_logits" in fields:
                knowledge.foreground_logits = knowledge.region_logits[student.foreground()]
        elif "foreground_logits" in fields:
            knowledge.foreground_logits, _ = judge(student.foreground_boxes())
