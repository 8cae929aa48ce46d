"""What the ROI heads of C4 and FPN networks have in common."""

import torch
from detectron2.structures import Instances

from kd_search.modeling.roi_heads.reid_branch import (
    foreground_person_ids,
    set_embeddings,
)
from kd_search.outputs import Knowledge


class PersonSearchHeads:
    """Mixed in before distillable ROI heads, it makes them speak of identities too.

    The class that it is mixed into offers ``embed(features, boxes)`` and the :class:`ReIDBranch`
    ``reid``.
    """

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
        losses, knowledge = self._box_losses_and_knowledge(proposals, logits, deltas)
        knowledge.embeddings = embeddings
        knowledge.person_ids = foreground_person_ids(foreground, embeddings.device)
        return {**losses, **self.reid.losses(embeddings, knowledge.person_ids)}, knowledge
