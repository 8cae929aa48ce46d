"""Base of the ROI heads of C4 and FPN person search networks."""

import torch
from detectron2.modeling.roi_heads import select_foreground_proposals
from detectron2.structures import Instances

from kd_search.modeling.roi_heads.reid_branch import foreground_person_ids, set_embeddings
from kd_search.outputs import IdentityOutputs


class PersonSearchHeads:
    """Adds a re-ID branch to distillable ROI heads; mixed in before them.

    The class that it is mixed into has the :class:`ReIDBranch` ``reid`` and implements
    ``embed(features, boxes)`` and :meth:`_embed_foreground`.
    """

    def forward_with_given_boxes(
        self, features: dict[str, torch.Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """Add ``pred_embeddings`` to instances that have ``pred_boxes``."""
        embeddings = self.embed(features, [x.pred_boxes for x in instances])
        return set_embeddings(instances, embeddings)

    def _other_losses(self, features, proposals, pooled):
        foreground, masks = select_foreground_proposals(proposals, self.num_classes)
        embeddings = self._embed_foreground(features, foreground, masks, pooled)
        person_ids = foreground_person_ids(foreground, embeddings.device)
        return self.reid.losses(embeddings, person_ids), IdentityOutputs(embeddings, person_ids)

    def _embed_foreground(
        self,
        features: dict[str, torch.Tensor],
        foreground: list[Instances],
        masks: list[torch.Tensor],
        pooled: torch.Tensor,
    ) -> torch.Tensor:
        """(P, D) embeddings of the foreground regions.

        Args:
            foreground: regions of people per image.
            masks: which of the sampled regions they are, per image.
            pooled: features of all sampled regions, as the box head takes them.
        """
        raise NotImplementedError
