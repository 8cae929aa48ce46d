"""Detectron2's RPN with outputs for every anchor."""

from typing import Any, Optional

import torch
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, ImageList, Instances

from kd_search.outputs import AnchorOutputs, AnchorSpec, AnchorTargets


def anchor_spec(network: Any, *, dense_classes: bool = False) -> AnchorSpec:
    """Anchors of an RPN or a RetinaNet; tensors are copies on the CPU."""
    generator = network.anchor_generator
    return AnchorSpec(
        cells=[cells.detach().cpu().clone() for cells in generator.cell_anchors],
        strides=[int(stride) for stride in generator.strides],
        offset=float(generator.offset),
        delta_weights=tuple(network.box2box_transform.weights),
        dense_classes=dense_classes,
    )


def per_anchor(x: torch.Tensor, size: int) -> torch.Tensor:
    """(N, A * size, H, W) to (N, H * W * A, size), the order of the anchors."""
    return x.unflatten(1, (-1, size)).permute(0, 3, 4, 1, 2).flatten(1, 3)


@PROPOSAL_GENERATOR_REGISTRY.register()
class DistillableRPN(RPN):
    """RPN that returns its logits, deltas and sampled labels. Weights and results are RPN's."""

    #: Filled by :meth:`losses` during :meth:`forward_train` only: it holds the graph of the step.
    _recorded: Optional[list[AnchorOutputs]] = None

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[torch.Tensor],
        gt_labels: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        gt_boxes: list[Any],
    ) -> dict[str, torch.Tensor]:
        if self._recorded is not None:
            targets = AnchorTargets(
                labels=torch.stack(gt_labels),
                deltas=self._delta_targets(anchors, gt_labels, gt_boxes),
                normalizer=float(self.batch_size_per_image * len(gt_labels)),
            )
            boxes = [a.tensor for a in anchors]
            outputs = AnchorOutputs(boxes, pred_objectness_logits, pred_anchor_deltas, targets)
            self._recorded.append(outputs)
        return super().losses(
            anchors, pred_objectness_logits, gt_labels, pred_anchor_deltas, gt_boxes
        )

    @torch.no_grad()
    def _delta_targets(
        self, anchors: list[Boxes], gt_labels: list[torch.Tensor], gt_boxes: list[Any]
    ) -> torch.Tensor:
        anchors = Boxes.cat(anchors).tensor
        positive = [labels == 1 for labels in gt_labels]
        sources = torch.cat([anchors[mask] for mask in positive])
        boxes = [b.tensor if isinstance(b, Boxes) else b for b in gt_boxes]
        targets = torch.cat([b[mask] for b, mask in zip(boxes, positive)])
        return self.box2box_transform.get_deltas(sources, targets)

    def forward_train(
        self, images: ImageList, features: dict[str, torch.Tensor], targets: list[Instances]
    ) -> tuple[list[Instances], dict[str, torch.Tensor], Optional[AnchorOutputs]]:
        """As ``forward``, with the outputs for the anchors as well.

        They are ``None`` in evaluation mode, which an RPN that is not trained may stay in.
        """
        self._recorded = []
        try:
            proposals, losses = self(images, features, targets)
            return proposals, losses, self._recorded[0] if self._recorded else None
        finally:
            self._recorded = None

    @torch.no_grad()
    def predict_anchors(self, features: dict[str, torch.Tensor]) -> AnchorOutputs:
        """Logits and deltas of every anchor, without proposals and their NMS; for teachers."""
        maps = [features[name] for name in self.in_features]
        logits, deltas = self.rpn_head(maps)
        return AnchorOutputs(
            boxes=[a.tensor for a in self.anchor_generator(maps)],
            logits=[per_anchor(x, 1).squeeze(2) for x in logits],
            deltas=[per_anchor(x, self.anchor_generator.box_dim) for x in deltas],
        )
