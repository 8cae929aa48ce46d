"""Faster R-CNN with a re-ID branch."""

from dataclasses import replace
from typing import Any, Optional

import torch
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import Boxes, Instances

from kd_search.modeling.id_table import IDTable
from kd_search.modeling.meta_arch.rcnn import DistillableRCNN
from kd_search.outputs import (
    IDENTITY_PARTS,
    CropOutputs,
    Crops,
    IdentityOutputs,
    IdentitySpec,
    ModelOutputs,
    ModelSpec,
    Part,
)


@META_ARCH_REGISTRY.register()
class PersonSearchRCNN(DistillableRCNN):
    """End-to-end person search: Detectron2's GeneralizedRCNN with a re-ID branch in its ROI heads.

    ``MODEL.ROI_HEADS.NAME`` is ``PersonSearchROIHeads`` (FPN) or ``PersonSearchRes5ROIHeads`` (C4).
    Training batches hold ``instances`` with ``gt_boxes``, ``gt_classes`` and ``gt_person_ids``.
    """

    @property
    def id_table(self) -> Optional[IDTable]:
        """The network's own identity table, or ``None`` if it trains without OIM."""
        return self.roi_heads.reid.id_table

    def spec(self) -> ModelSpec:
        """As :meth:`DistillableRCNN.spec`, with identities and crops."""
        reid, spec = self.roi_heads.reid, super().spec()
        identities = IdentitySpec(reid.head.embedding_dim, reid.num_identities)
        parts = {Part.EMBEDDINGS, Part.CROP_EMBEDDINGS}
        if reid.num_identities:
            parts |= {Part.IDENTITY_LOGITS, Part.CROP_LOGITS}
        return replace(spec, parts=spec.parts | parts, identities=identities, crops=identities)

    def forward_train(
        self, batched_inputs: list[dict[str, Any]]
    ) -> tuple[dict[str, torch.Tensor], ModelOutputs]:
        """As :meth:`DistillableRCNN.forward_train`, with ``identities.logits`` if it has any."""
        losses, outputs = super().forward_train(batched_inputs)
        logits = self.roi_heads.reid.identity_logits(outputs.identities.embeddings)
        return losses, replace(outputs, identities=replace(outputs.identities, logits=logits))

    def embed_crops(self, outputs: ModelOutputs, crops: Crops) -> CropOutputs:
        """Embeddings and, if the network has any, identity logits of boxes of a batch.

        ``outputs`` are those of the batch, with ``features``.
        """
        boxes = [Boxes(b.to(self.device)) for b in crops.boxes]
        embeddings = self.roi_heads.embed(outputs.features, boxes)
        return CropOutputs(crops, embeddings, self.roi_heads.reid.identity_logits(embeddings))

    @torch.no_grad()
    def forward_regions(
        self, outputs: ModelOutputs, student: ModelOutputs, parts: frozenset[Part]
    ) -> ModelOutputs:
        """As :meth:`DistillableRCNN.forward_regions`, with ``identities``."""
        outputs = super().forward_regions(outputs, student, parts)
        if not parts & IDENTITY_PARTS:
            return outputs
        sampled = student.regions
        boxes = sampled.foreground_boxes(sampled.logits.shape[1] - 1)
        embeddings = self.roi_heads.embed(outputs.features, boxes)
        identities = IdentityOutputs(embeddings, student.identities.person_ids)
        if Part.IDENTITY_LOGITS in parts:
            logits = self.roi_heads.reid.identity_logits(embeddings)
            identities = replace(identities, logits=logits)
        return replace(outputs, identities=identities)

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: Optional[list[Instances]] = None,
        do_postprocess: bool = True,
    ) -> Any:
        """Detect people and embed them.

        Args:
            batched_inputs: as Detectron2's, with optional boxes, XYXY in pixels of ``image``:
                ``query_boxes`` (Q, 4) and ``annotated_boxes`` (A, 4) are embedded as well,
                ``gallery_boxes`` (G, 4) replace detection (scores 1).
            detected_instances: boxes that replace detection, as in Detectron2.
            do_postprocess: scale boxes to the ``height`` and ``width`` of each input.

        Returns:
            Per image ``{"instances": Instances}`` with ``pred_boxes``, ``scores``,
            ``pred_classes`` and ``pred_embeddings`` (N, D), for query boxes
            ``"query_embeddings"`` (Q, D), and for annotated boxes ``"gt_instances"``, as
            ``instances``. Without post-processing, the list of ``Instances`` only.
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if detected_instances is None and "gallery_boxes" in batched_inputs[0]:
            detected_instances = self._given_boxes(batched_inputs, images)
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
        if any("annotated_boxes" in x for x in batched_inputs):
            self._add_annotated(outputs, batched_inputs, features, images.image_sizes)
        return outputs

    def embed(
        self, batched_inputs: list[dict[str, Any]], boxes: list[torch.Tensor]
    ) -> torch.Tensor:
        """(sum n_i, D) L2-normalised embeddings of given boxes, such as queries or ground truth.

        Args:
            batched_inputs: N inputs with ``image``.
            boxes: N tensors (n_i, 4), XYXY in pixels of ``image``.
        """
        features = self.backbone(self.preprocess_image(batched_inputs).tensor)
        return self.roi_heads.embed(features, [Boxes(b.to(self.device)) for b in boxes])

    def _given_boxes(self, batched_inputs: list[dict[str, Any]], images: Any) -> list[Instances]:
        """``gallery_boxes`` of the inputs as detections, which replace those of the network."""
        return [
            _as_detections(x["gallery_boxes"], size)
            for x, size in zip(batched_inputs, images.image_sizes)
        ]

    def _add_query_embeddings(
        self,
        outputs: list[dict[str, Any]],
        batched_inputs: list[dict[str, Any]],
        features: dict[str, torch.Tensor],
    ) -> None:
        none = torch.zeros((0, 4))
        boxes = [Boxes(x.get("query_boxes", none).to(self.device)) for x in batched_inputs]
        embeddings = self.roi_heads.embed(features, boxes).split([len(b) for b in boxes])
        for output, x, part in zip(outputs, batched_inputs, embeddings):
            if "query_boxes" in x:
                output["query_embeddings"] = part

    def _add_annotated(
        self,
        outputs: list[dict[str, Any]],
        batched_inputs: list[dict[str, Any]],
        features: dict[str, torch.Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> None:
        none = torch.zeros((0, 4))
        given = [
            _as_detections(x.get("annotated_boxes", none), size).to(self.device)
            for x, size in zip(batched_inputs, image_sizes)
        ]
        given = self.roi_heads.forward_with_given_boxes(features, given)
        scaled = GeneralizedRCNN._postprocess(given, batched_inputs, image_sizes)
        for output, x, people in zip(outputs, batched_inputs, scaled):
            if "annotated_boxes" in x:
                output["gt_instances"] = people["instances"]


def _as_detections(boxes: torch.Tensor, image_size: tuple[int, int]) -> Instances:
    return Instances(
        image_size,
        # A copy: post-processing scales it in place.
        pred_boxes=Boxes(boxes.clone()),
        scores=boxes.new_ones(len(boxes)),
        pred_classes=torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device),
    )
