"""The few dataclasses that the rooms of kd_search hand to each other."""

from dataclasses import dataclass
from typing import Optional

import torch
from detectron2.structures import ImageList, Instances


@dataclass
class Knowledge:
    """What a network knows about a batch; the common language of students, teachers and terms.

    A meta-architecture fills what it has and leaves the rest ``None``. R is the number of regions
    of the whole batch (image after image), K the number of classes, D the embedding size.
    """

    #: Normalised, padded input batch that everything below was computed from.
    images: Optional[ImageList] = None
    #: Backbone features by name, each (N, C, H, W).
    features: Optional[dict[str, torch.Tensor]] = None
    #: Anchors per level, each (A_l, 4), absolute pixels of the padded input, XYXY.
    anchors: Optional[list[torch.Tensor]] = None
    #: Objectness (or class) logits per level, each (N, A_l) or (N, A_l, K).
    anchor_logits: Optional[list[torch.Tensor]] = None
    #: Box deltas per level, each (N, A_l, 4), in the scale of the anchor box transform.
    anchor_deltas: Optional[list[torch.Tensor]] = None
    #: (N, sum A_l) int8: 1 positive, 0 negative, -1 not sampled; the student's own sampling.
    anchor_labels: Optional[torch.Tensor] = None
    #: (N, sum A_l, 4) boxes matched to the anchors, absolute pixels, XYXY.
    anchor_gt_boxes: Optional[torch.Tensor] = None
    #: Sampled regions per image with ``proposal_boxes``, ``gt_classes``, ``gt_boxes`` and
    #: ``gt_person_ids``; absolute pixels of the network input, XYXY.
    proposals: Optional[list[Instances]] = None
    #: (R, K + 1) class logits of the regions, background last as in Detectron2.
    region_logits: Optional[torch.Tensor] = None
    #: (R, 4) or (R, 4 K) box deltas, in the scale of the region box transform.
    region_deltas: Optional[torch.Tensor] = None
    #: (P, D) L2-normalised embeddings of the foreground regions.
    embeddings: Optional[torch.Tensor] = None
    #: (P,) int64 identity of each embedding: a row of the ID table, or -1 where unlabelled.
    person_ids: Optional[torch.Tensor] = None
    #: (P, L) identity logits over the rows of the ID table.
    identity_logits: Optional[torch.Tensor] = None
