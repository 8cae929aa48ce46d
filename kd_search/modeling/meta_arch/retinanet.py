"""RetinaNet that can be distilled and can teach."""

from collections.abc import Iterable

import torch
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from detectron2.modeling.box_regression import _dense_box_regression_loss
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, ImageList
from detectron2.utils.events import get_event_storage
from fvcore.nn import sigmoid_focal_loss
from torch.nn.functional import one_hot

from kd_search.outputs import (
    Knowledge,
    Layout,
)

#: Fields of :class:`Knowledge` that RetinaNet can fill as a teacher.
TEACHER_FIELDS = frozenset({"images", "features", "anchors", "anchor_logits", "anchor_deltas"})


@META_ARCH_REGISTRY.register()
class DistillableRetinaNet(RetinaNet):
    """Detectron2's RetinaNet, able to say what it thought of every anchor.

    Weights, losses and detections are RetinaNet's, the losses with the same bits in every process.
    As a student it offers :meth:`forward_train`, as a teacher :meth:`observe`.
    """

    def forward(self, batched_inputs: list[dict]):
        """
        Args:
            batched_inputs: as Detectron2's, each with ``image`` (3, H, W), in training
                ``instances`` with ``gt_boxes`` and ``gt_classes``.

        Returns:
            In training a dict of scalar losses. Otherwise per image ``{"instances": Instances}``.
        """
        if not self.training:
            return super().forward(batched_inputs)
        return self.forward_train(batched_inputs)[0]

    def forward_train(
        self, batched_inputs: list[dict]
    ) -> tuple[dict[str, torch.Tensor], Knowledge]:
        """Losses of a training batch and what the network knows of it.

        The losses are divided by a running mean of the number of positive anchors, which every
        call moves: call it once a step.

        Args:
            batched_inputs: see :meth:`forward`.

        Returns:
            ``loss_cls`` and ``loss_box_reg``, and knowledge about images, features and anchors.
            An anchor between the two IoU thresholds is ignored: its label and class are -1.
        """
        images = self.preprocess_image(batched_inputs)
        targets = [x["instances"].to(self.device) for x in batched_inputs]
        features = self.backbone(images.tensor)
        maps = [features[name] for name in self.head_in_features]
        anchors = self.anchor_generator(maps)
        predictions = self.head(maps)
        logits = [_per_anchor(x, self.num_classes) for x in predictions[0]]
        deltas = [_per_anchor(x, 4) for x in predictions[1]]
        classes, gt_boxes = self.label_anchors(anchors, targets)
        losses = self.losses(anchors, logits, classes, deltas, gt_boxes)
        if self.vis_period > 0:
            self._visualize_now_and_then(batched_inputs, images, maps, anchors, predictions)
        knowledge = Knowledge(
            images=images,
            features=features,
            annotated=targets,
            anchors=[a.tensor for a in anchors],
            anchor_logits=logits,
            anchor_deltas=deltas,
            anchor_classes=torch.stack(classes),
            anchor_normalizer=float(self.loss_normalizer),
        )
        self._add_targets(knowledge, gt_boxes)
        return losses, knowledge

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[torch.Tensor],
        gt_labels: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        gt_boxes: list[torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Detectron2's losses to rounding, by the same operations in every process.

        Detectron2 calls a TorchScript function, which torch compiles anew after its first calls in
        a process: a resumed run would round its first steps otherwise than one that never stopped.

        Args:
            anchors: of each level A_l boxes.
            pred_logits: of each level (N, A_l, K).
            gt_labels: of each image (sum A_l,): 0 to K - 1, K for background, -1 for ignored.
            pred_anchor_deltas: of each level (N, A_l, 4).
            gt_boxes: of each image (sum A_l, 4) XYXY, undefined where there is no object.

        Returns:
            ``loss_cls`` and ``loss_box_reg``: sums over anchors, divided by a running mean of the
            number of positive ones that every call moves.
        """
        labels = torch.stack(gt_labels)
        valid = labels >= 0
        positive = valid & (labels != self.num_classes)
        num_positive = int(positive.sum())
        get_event_storage().put_scalar("num_pos_anchors", num_positive / len(gt_labels))
        # Detectron2 main has no attribute for the momentum, and none for the mean at first.
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
    def observe(self, batched_inputs: list[dict], fields: Iterable[str]) -> Knowledge:
        """What this network, as a teacher, thinks of a batch.

        Args:
            batched_inputs: the student's batch.
            fields: names from :data:`TEACHER_FIELDS`; the rest is neither computed nor kept.

        Returns:
            knowledge without gradient.

        Raises:
            ValueError: if asked for what a network without regions cannot know.
        """
        fields = set(fields)
        if fields - TEACHER_FIELDS:
            raise ValueError(
                f"{type(self).__name__} cannot teach {sorted(fields - TEACHER_FIELDS)}, only "
                f"{sorted(TEACHER_FIELDS)}: drop the terms of DISTILLATION.TERMS that ask for it"
            )
        knowledge = Knowledge(images=self.preprocess_image(batched_inputs))
        if not fields - {"images"}:
            return knowledge
        features = self.backbone(knowledge.images.tensor)
        if "features" in fields:
            knowledge.features = features
        if fields & {"anchors", "anchor_logits", "anchor_deltas"}:
            maps = [features[name] for name in self.head_in_features]
            knowledge.anchors = [a.tensor for a in self.anchor_generator(maps)]
            logits, deltas = self._judge(maps, fields)
            if "anchor_logits" in fields:
                knowledge.anchor_logits = [_per_anchor(x, self.num_classes) for x in logits]
            if "anchor_deltas" in fields:
                knowledge.anchor_deltas = [_per_anchor(x, 4) for x in deltas]
        return knowledge

    def layout(self) -> Layout:
        """What is fixed about this network; tensors are copies on the CPU."""
        generator = self.anchor_generator
        return Layout(
            features=self.backbone.output_shape(),
            num_classes=self.num_classes,
            size_divisibility=self.backbone.size_divisibility,
            image_format=self.input_format,
            anchor_cells=[cells.detach().cpu().clone() for cells in generator.cell_anchors],
            anchor_strides=[int(stride) for stride in generator.strides],
            anchor_offset=float(generator.offset),
            dense_classes=True,
            anchor_delta_weights=tuple(self.box2box_transform.weights),
        )

    def _judge(self, maps: list[torch.Tensor], fields: set[str]):
        """Logits and deltas of the head, ``None`` for a half that nobody asks for."""
        if not fields & {"anchor_logits", "anchor_deltas"}:
            return None, None
        head = self.head
        if type(head) is not RetinaNetHead or {"anchor_logits", "anchor_deltas"} <= fields:
            return head(maps)
        # The two halves share no layer, and each is as large as a backbone.
        if "anchor_logits" in fields:
            return [head.cls_score(head.cls_subnet(x)) for x in maps], None
        return None, [head.bbox_pred(head.bbox_subnet(x)) for x in maps]

    def _add_targets(self, knowledge: Knowledge, gt_boxes: list[torch.Tensor]) -> None:
        """Fill labels and delta targets from the classes; ``gt_boxes`` N times (sum A_l, 4)."""
        classes = knowledge.anchor_classes
        positive = (classes >= 0) & (classes < self.num_classes)
        labels = torch.zeros_like(classes, dtype=torch.int8)
        labels[positive] = 1
        labels[classes < 0] = -1
        anchors = torch.cat(knowledge.anchors)
        deltas = [
            self.box2box_transform.get_deltas(anchors[chosen], boxes[chosen])
            for chosen, boxes in zip(positive, gt_boxes)
        ]
        knowledge.anchor_labels = labels
        knowledge.anchor_delta_targets = torch.cat(deltas)

    @torch.no_grad()
    def _visualize_now_and_then(
        self,
        batched_inputs: list[dict],
        images: ImageList,
        maps: list[torch.Tensor],
        anchors: list[Boxes],
        predictions: tuple[list[torch.Tensor], list[torch.Tensor]],
    ) -> None:
        if get_event_storage().iter % self.vis_period != 0:
            return
        # Detectron2's inference turns logits into scores in place; the terms still need them.
        predictions = [[x.clone() for x in part] for part in predictions]
        if hasattr(self, "forward_inference"):
            results = self.forward_inference(images, maps, predictions)
        else:  # Detectron2 0.5
            logits = [_per_anchor(x, self.num_classes) for x in predictions[0]]
            deltas = [_per_anchor(x, 4) for x in predictions[1]]
            results = self.inference(anchors, logits, deltas, images.image_sizes)
        self.visualize_training(batched_inputs, results)


def _per_anchor(x: torch.Tensor, size: int) -> torch.Tensor:
    """(N, A * size, H, W) to (N, H * W * A, size), the order of the anchors."""
    return x.unflatten(1, (-1, size)).permute(0, 3, 4, 1, 2).flatten(1, 3)
