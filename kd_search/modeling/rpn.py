"""Detectron2's RPN, able to say what it thought of every anchor."""

from dataclasses import dataclass
from typing import Optional

import torch
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, ImageList, Instances


@dataclass
class AnchorKnowledge:
    """The ``anchor_*`` fields of :class:`kd_search.outputs.Knowledge`."""

    anchors: list[torch.Tensor]
    logits: list[torch.Tensor]
    deltas: list[torch.Tensor]
    labels: Optional[torch.Tensor] = None
    delta_targets: Optional[torch.Tensor] = None
    normalizer: Optional[float] = None


@PROPOSAL_GENERATOR_REGISTRY.register()
class DistillableRPN(RPN):
    """RPN that hands out its logits, deltas and sampled labels. Weights and results are RPN's."""

    _knowledge: Optional[AnchorKnowledge] = None

    def layout(self) -> dict:
        """The ``anchor_*`` fields of :class:`kd_search.outputs.Layout`."""
        generator = self.anchor_generator
        return {
            "anchor_cells": [cells.detach().cpu().clone() for cells in generator.cell_anchors],
            "anchor_strides": [int(stride) for stride in generator.strides],
            "anchor_offset": float(generator.offset),
            "anchor_delta_weights": tuple(self.box2box_transform.weights),
        }

    def losses(self, anchors, pred_objectness_logits, gt_labels, pred_anchor_deltas, gt_boxes):
        self._knowledge = AnchorKnowledge(
            anchors=[a.tensor for a in anchors],
            logits=pred_objectness_logits,
            deltas=pred_anchor_deltas,
            labels=torch.stack(gt_labels),
            delta_targets=self._delta_targets(anchors, gt_labels, gt_boxes),
            normalizer=float(self.batch_size_per_image * len(gt_labels)),
        )
        return super().losses(
            anchors, pred_objectness_logits, gt_labels, pred_anchor_deltas, gt_boxes
        )

    @torch.no_grad()
    def _delta_targets(self, anchors, gt_labels, gt_boxes) -> torch.Tensor:
        anchors = Boxes.cat(anchors).tensor
        positive = [labels == 1 for labels in gt_labels]
        sources = torch.cat([anchors[mask] for mask in positive])
        boxes = [b.tensor if isinstance(b, Boxes) else b for b in gt_boxes]
        targets = torch.cat([b[mask] for b, mask in zip(boxes, positive)])
        return self.box2box_transform.get_deltas(sources, targets)

    def forward_train(
        self, images: ImageList, features: dict[str, torch.Tensor], targets: list[Instances]
    ) -> tuple[list[Instances], dict[str, torch.Tensor], AnchorKnowledge]:
        """As ``forward`` in training mode, with the knowledge about the anchors as well."""
        proposals, losses = self(images, features, targets)
        # Held by the caller from here on: kept, the whole graph would outlive the step.
        knowledge, self._knowledge = self._knowledge, None
        return proposals, losses, knowledge

    @torch.no_grad()
    def judge(self, features: dict[str, torch.Tensor]) -> AnchorKnowledge:
        """Logits and deltas of every anchor, without proposals and their NMS: a teacher's part."""
        maps = [features[name] for name in self.in_features]
        logits, deltas = self.rpn_head(maps)
        box_dim = self.anchor_generator.box_dim
        return AnchorKnowledge(
            anchors=[a.tensor for a in self.anchor_generator(maps)],
            logits=[x.permute(0, 2, 3, 1).flatten(1) for x in logits],
            deltas=[
                x.unflatten(1, (-1, box_dim)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in deltas
            ],
        )
