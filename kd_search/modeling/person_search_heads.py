"""What the ROI heads of C4 and FPN networks have in common."""

from typing import Optional

import torch
from detectron2.structures import ImageList, Instances

from kd_search.modeling.reid_branch import foreground_person_ids, set_embeddings
from kd_search.structures import Knowledge


class PersonSearchHeads:
    """Mixed in before ROI heads of Detectron2, it makes them speak of identities too.

    The class that it is mixed into offers ``forward_train(features, proposals, targets)``,
    ``embed(features, boxes)`` and the :class:`ReIDBranch` ``reid``.
    """

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: Optional[list[Instances]] = None,
    ):
        """As Detectron2's: (proposals, losses) in training, (detections, {}) otherwise."""
        if not self.training:
            return super().forward(images, features, proposals, targets)
        losses, knowledge = self.forward_train(features, proposals, targets)
        return knowledge.proposals, losses

    def forward_with_given_boxes(
        self, features: dict[str, torch.Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """Add ``pred_embeddings`` to instances that have ``pred_boxes``."""
        embeddings = self.embed(features, [x.pred_boxes for x in instances])
        return set_embeddings(instances, embeddings)

    def _losses_and_knowledge(
        self,
        proposals: list[Instances],
        logits: torch.Tensor,
        deltas: torch.Tensor,
        foreground: list[Instances],
        embeddings: torch.Tensor,
    ) -> tuple[dict[str, torch.Tensor], Knowledge]:
        person_ids = foreground_person_ids(foreground, embeddings.device)
        losses = {
            **self.box_predictor.losses((logits, deltas), proposals),
            **self.reid.losses(embeddings, person_ids),
        }
        return losses, Knowledge(
            proposals=proposals,
            region_logits=logits,
            region_deltas=deltas,
            embeddings=embeddings,
            person_ids=person_ids,
        )
