"""RetinaNet that can be distilled and can teach."""

from collections.abc import Iterable

import torch
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, ImageList
from detectron2.utils.events import get_event_storage

from kd_search.structures import Knowledge, Layout

#: Fields of :class:`Knowledge` that RetinaNet can fill as a teacher.
TEACHER_FIELDS = frozenset({"images", "features", "anchors", "anchor_logits", "anchor_deltas"})


@META_ARCH_REGISTRY.register()
class DistillableRetinaNet(RetinaNet):
    """Detectron2's RetinaNet, able to say what it thought of every anchor.

    Weights, losses and detections are RetinaNet's. As a student it offers :meth:`forward_train`,
    as a teacher :meth:`observe`.
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
