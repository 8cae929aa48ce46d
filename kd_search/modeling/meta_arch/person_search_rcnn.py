"""Faster R-CNN that also says who it found."""

from collections.abc import Iterable
from typing import Optional

import torch
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import Boxes, Instances

from kd_search.modeling.id_table import IDTable
from kd_search.modeling.rpn import DistillableRPN
from kd_search.structures import Knowledge


@META_ARCH_REGISTRY.register()
class PersonSearchRCNN(GeneralizedRCNN):
    """End-to-end person search: Detectron2's GeneralizedRCNN with a re-ID branch in its ROI heads.

    ``MODEL.ROI_HEADS.NAME`` is ``PersonSearchROIHeads`` (FPN) or ``PersonSearchRes5ROIHeads`` (C4).
    As a student it offers :meth:`forward_train`, as a teacher :meth:`observe`.
    """

    @property
    def id_table(self) -> Optional[IDTable]:
        """The network's own identity table, or ``None`` where it trains without OIM."""
        return self.roi_heads.reid.id_table

    def forward(self, batched_inputs: list[dict]):
        """
        Args:
            batched_inputs: as Detectron2's, each with ``image`` (3, H, W), in training
                ``instances`` with ``gt_boxes``, ``gt_classes`` and ``gt_person_ids``.

        Returns:
            In training a dict of scalar losses. Otherwise per image a dict, see :meth:`inference`.
        """
        if not self.training:
            return self.inference(batched_inputs)
        return self.forward_train(batched_inputs)[0]

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
        if self.vis_period > 0:
            self._visualize_now_and_then(batched_inputs, proposals)
        region_losses, knowledge = self.roi_heads.forward_train(features, proposals, targets)
        knowledge.images = images
        knowledge.features = features
        if anchors is not None:
            knowledge.anchors = anchors.anchors
            knowledge.anchor_logits = anchors.logits
            knowledge.anchor_deltas = anchors.deltas
            knowledge.anchor_labels = anchors.labels
            knowledge.anchor_gt_boxes = anchors.gt_boxes
        return {**losses, **region_losses}, knowledge

    @torch.no_grad()
    def observe(
        self, batched_inputs: list[dict], student: Knowledge, fields: Iterable[str]
    ) -> Knowledge:
        """What this network, as a teacher, thinks of a batch and of the student's regions.

        Args:
            batched_inputs: the student's batch.
            student: the student's knowledge; its ``proposals`` are judged, nothing is proposed.
            fields: names of the fields of :class:`Knowledge` to fill; the rest is not computed.

        Returns:
            knowledge without gradient.
        """
        fields = set(fields)
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        knowledge = Knowledge(images=images, features=features, proposals=student.proposals)
        if fields & {"anchor_logits", "anchor_deltas"}:
            anchors = self.proposal_generator.judge(features)
            knowledge.anchors = anchors.anchors
            knowledge.anchor_logits = anchors.logits
            knowledge.anchor_deltas = anchors.deltas
        if fields & {"region_logits", "region_deltas"}:
            boxes = [p.proposal_boxes for p in student.proposals]
            knowledge.region_logits, knowledge.region_deltas = self.roi_heads.judge(features, boxes)
        if fields & {"embeddings", "identity_logits"}:
            classes = self.roi_heads.num_classes
            boxes = [
                p.proposal_boxes[(p.gt_classes >= 0) & (p.gt_classes < classes)]
                for p in student.proposals
            ]
            knowledge.embeddings = self.roi_heads.embed(features, boxes)
            knowledge.person_ids = student.person_ids
            if "identity_logits" in fields:
                table = self.id_table
                knowledge.identity_logits = table.logits(knowledge.embeddings)[:, : table.num_ids]
        return knowledge

    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: Optional[list[Instances]] = None,
        do_postprocess: bool = True,
    ):
        """Find people and embed them.

        Args:
            batched_inputs: as Detectron2's. ``query_boxes`` (Q, 4), XYXY in pixels of ``image``,
                asks for the embeddings of these boxes too; ``gallery_boxes`` (G, 4), the same,
                replaces detection by given boxes (scores 1).
            detected_instances: boxes that replace detection, as in Detectron2.
            do_postprocess: scale boxes to the ``height`` and ``width`` of each input.

        Returns:
            Per image ``{"instances": Instances}`` with ``pred_boxes``, ``scores``,
            ``pred_classes`` and ``pred_embeddings`` (N, D), and ``"query_embeddings"`` (Q, D)
            where asked for. Without post-processing, the list of ``Instances`` alone.
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if detected_instances is None and "gallery_boxes" in batched_inputs[0]:
            detected_instances = [
                _as_detections(x["gallery_boxes"], size)
                for x, size in zip(batched_inputs, images.image_sizes)
            ]
        if detected_instances is None:
            proposals, _ = self.proposal_generator(images, features, None)
            results, _ = self.roi_heads(images, features, proposals, None)
        else:
            detected_instances = [x.to(self.device) for x in detected_instances]
            results = self.roi_heads.forward_with_given_boxes(features, detected_instances)
        if not do_postprocess:
            return results
        outputs = GeneralizedRCNN._postprocess(results, batched_inputs, images.image_sizes)
        if any("query_boxes" in x for x in batched_inputs):
            self._add_query_embeddings(outputs, batched_inputs, features)
        return outputs

    def embed(self, batched_inputs: list[dict], boxes: list[torch.Tensor]) -> torch.Tensor:
        """Embeddings of given boxes, such as queries or ground truth.

        Args:
            batched_inputs: N inputs with ``image``.
            boxes: N tensors (n_i, 4), XYXY in pixels of ``image``.

        Returns:
            (sum n_i, D) L2-normalised embeddings, image after image.
        """
        features = self.backbone(self.preprocess_image(batched_inputs).tensor)
        return self.roi_heads.embed(features, [Boxes(b.to(self.device)) for b in boxes])

    def _add_query_embeddings(self, outputs, batched_inputs, features) -> None:
        none = torch.zeros((0, 4))
        boxes = [Boxes(x.get("query_boxes", none).to(self.device)) for x in batched_inputs]
        embeddings = self.roi_heads.embed(features, boxes).split([len(b) for b in boxes])
        for output, x, part in zip(outputs, batched_inputs, embeddings):
            if "query_boxes" in x:
                output["query_embeddings"] = part

    def _visualize_now_and_then(self, batched_inputs, proposals) -> None:
        from detectron2.utils.events import get_event_storage

        if get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batched_inputs, proposals)


def _as_detections(boxes: torch.Tensor, image_size: tuple[int, int]) -> Instances:
    return Instances(
        image_size,
        pred_boxes=Boxes(boxes),
        scores=boxes.new_ones(len(boxes)),
        pred_classes=torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device),
    )
