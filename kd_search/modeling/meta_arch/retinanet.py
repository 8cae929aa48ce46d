"""RetinaNet as a student and as a teacher."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from detectron2.modeling.box_regression import _dense_box_regression_loss
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, ImageList
from detectron2.utils.events import get_event_storage
from fvcore.nn import sigmoid_focal_loss
from torch.nn.functional import one_hot

from kd_search.modeling.rpn import anchor_spec, per_anchor
from kd_search.outputs import (
    ANCHOR_PARTS,
    AnchorOutputs,
    AnchorTargets,
    ModelOutputs,
    ModelSpec,
    Part,
)


@META_ARCH_REGISTRY.register()
class DistillableRetinaNet(RetinaNet):
    """RetinaNet that can be a student and a teacher.

    Weights, losses and detections are RetinaNet's; the losses have the same bits in every process.
    """

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """As RetinaNet: a dict of scalar losses in training, otherwise detections."""
        if not self.training:
            return super().forward(batched_inputs)
        return self.forward_train(batched_inputs)[0]

    def forward_train(
        self, batched_inputs: list[dict[str, Any]]
    ) -> tuple[dict[str, torch.Tensor], ModelOutputs]:
        """Losses, see :meth:`losses`, and images, features and anchors of a training batch.

        An anchor between the two IoU thresholds is ignored: its label and class are -1.
        """
        images = self.preprocess_image(batched_inputs)
        targets = [x["instances"].to(self.device) for x in batched_inputs]
        features = self.backbone(images.tensor)
        maps = [features[name] for name in self.head_in_features]
        anchors = self.anchor_generator(maps)
        predictions = self.head(maps)
        logits = [per_anchor(x, self.num_classes) for x in predictions[0]]
        deltas = [per_anchor(x, 4) for x in predictions[1]]
        classes, gt_boxes = self.label_anchors(anchors, targets)
        losses = self.losses(anchors, logits, classes, deltas, gt_boxes)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self._visualize(batched_inputs, images, maps, anchors, predictions)
        outputs = ModelOutputs(
            images,
            features,
            AnchorOutputs(
                boxes=[a.tensor for a in anchors],
                logits=logits,
                deltas=deltas,
                targets=self._targets(anchors, torch.stack(classes), gt_boxes),
            ),
            annotated=targets,
        )
        return losses, outputs

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[torch.Tensor],
        gt_labels: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        gt_boxes: list[torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Detectron2's losses up to rounding, by the same operations in every process.

        Detectron2 calls a TorchScript function, which torch compiles again after its first calls in
        a process: the first steps of a resumed run would have other rounding errors.

        Args:
            anchors: of each level A_l boxes.
            pred_logits: of each level (N, A_l, K).
            gt_labels: of each image (sum A_l,): 0 to K - 1, K for background, -1 for ignored.
            pred_anchor_deltas: of each level (N, A_l, 4).
            gt_boxes: of each image (sum A_l, 4) XYXY, undefined without an object.

        Returns:
            ``loss_cls`` and ``loss_box_reg``: sums over anchors, divided by a running mean of the
            number of positive anchors, which every call updates: call it once a step.
        """
        labels = torch.stack(gt_labels)
        valid = labels >= 0
        positive = valid & (labels != self.num_classes)
        num_positive = int(positive.sum())
        get_event_storage().put_scalar("num_pos_anchors", num_positive / len(gt_labels))
        # Detectron2 main has no attribute for the momentum, and initially none for the mean.
        momentum = getattr(self, "loss_normalizer_momentum", 0.9)
        mean = getattr(self, "loss_normalizer", 100)
        self.loss_normalizer = momentum * mean + (1 - momentum) * max(num_positive, 1)

        logits = torch.cat(pred_logits, dim=1)[valid]
        loss_cls = sigmoid_focal_loss(
            logits,
            one_hot(labels[valid], self.num_classes + 1)[:, :-1].to(logits.dtype),
            alpha=self.focal_loss_alpha,
            gamma=self.focal_loss_gamma,
            reduction="sum",
        )
        loss_box_reg = _dense_box_regression_loss(
            anchors,
            self.box2box_transform,
            pred_anchor_deltas,
            gt_boxes,
            positive,
            box_reg_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        return {
            "loss_cls": loss_cls / self.loss_normalizer,
            "loss_box_reg": loss_box_reg / self.loss_normalizer,
        }

    @torch.no_grad()
    def forward_teacher(
        self, batched_inputs: list[dict[str, Any]], parts: frozenset[Part]
    ) -> ModelOutputs:
        """Outputs of this network as a teacher, without gradient; anchors if in ``parts``."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        outputs = ModelOutputs(images, features)
        if not parts & ANCHOR_PARTS:
            return outputs
        maps = [features[name] for name in self.head_in_features]
        boxes = [a.tensor for a in self.anchor_generator(maps)]
        logits, deltas = self._head_outputs(maps, parts)
        if logits is not None:
            logits = [per_anchor(x, self.num_classes) for x in logits]
        if deltas is not None:
            deltas = [per_anchor(x, 4) for x in deltas]
        return replace(outputs, anchors=AnchorOutputs(boxes, logits, deltas))

    def spec(self) -> ModelSpec:
        """Feature maps, classes and anchors of this network."""
        return ModelSpec(
            features=self.backbone.output_shape(),
            num_classes=self.num_classes,
            parts=frozenset({Part.FEATURES}) | ANCHOR_PARTS,
            size_divisibility=self.backbone.size_divisibility,
            image_format=self.input_format,
            anchors=anchor_spec(self, dense_classes=True),
        )

    def _head_outputs(self, maps: list[torch.Tensor], parts: frozenset[Part]) -> tuple[Any, Any]:
        """Logits and deltas of the head, ``None`` for a half that is not required."""
        head = self.head
        if type(head) is not RetinaNetHead or parts >= ANCHOR_PARTS:
            logits, deltas = head(maps)
            return (
                logits if Part.ANCHOR_LOGITS in parts else None,
                deltas if Part.ANCHOR_DELTAS in parts else None,
            )
        # The two halves share no layer, and each costs as much as a backbone.
        if Part.ANCHOR_LOGITS in parts:
            return [head.cls_score(head.cls_subnet(x)) for x in maps], None
        return None, [head.bbox_pred(head.bbox_subnet(x)) for x in maps]

    def _targets(
        self, anchors: list[Boxes], classes: torch.Tensor, gt_boxes: list[torch.Tensor]
    ) -> AnchorTargets:
        """Labels and delta targets from (N, sum A_l) classes; ``gt_boxes`` N times (sum A_l, 4)."""
        positive = (classes >= 0) & (classes < self.num_classes)
        labels = torch.zeros_like(classes, dtype=torch.int8)
        labels[positive] = 1
        labels[classes < 0] = -1
        boxes = torch.cat([a.tensor for a in anchors])
        deltas = [
            self.box2box_transform.get_deltas(boxes[chosen], wanted[chosen])
            for chosen, wanted in zip(positive, gt_boxes)
        ]
        return AnchorTargets(labels, torch.cat(deltas), float(self.loss_normalizer), classes)

    @torch.no_grad()
    def _visualize(
        self,
        batched_inputs: list[dict[str, Any]],
        images: ImageList,
        maps: list[torch.Tensor],
        anchors: list[Boxes],
        predictions: tuple[list[torch.Tensor], list[torch.Tensor]],
    ) -> None:
        # Detectron2's inference turns logits into scores in place; the terms still need them.
        copies = [[x.clone() for x in part] for part in predictions]
        if hasattr(self, "forward_inference"):
            results = self.forward_inference(images, maps, copies)
        else:  # Detectron2 0.5
            logits = [per_anchor(x, self.num_classes) for x in copies[0]]
            deltas = [per_anchor(x, 4) for x in copies[1]]
            results = self.inference(anchors, logits, deltas, images.image_sizes)
        self.visualize_training(batched_inputs, results)
