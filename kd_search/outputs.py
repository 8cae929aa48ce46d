"""The few dataclasses that the rooms of kd_search hand to each other."""

from dataclasses import dataclass, field, replace
from typing import Optional

import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, ImageList, Instances


@dataclass
class Layout:
    """What is fixed about a network, known before its first batch.

    Terms compare the layouts of student and teacher when they are built: adapters get their
    channels from it, and networks that do not fit together are refused before training starts.
    """

    #: Backbone features by name, with ``channels`` and ``stride``.
    features: dict[str, ShapeSpec]
    #: K, without background.
    num_classes: int
    #: Batches are padded to a multiple of it, in pixels; 0 for none.
    size_divisibility: int = 0
    #: Order of the channels that the network was trained with: "BGR" or "RGB".
    image_format: str = "BGR"
    #: Anchors of one cell per level, each (A, 4), pixels around the cell's origin, XYXY.
    anchor_cells: Optional[list[torch.Tensor]] = None
    #: Distance of the cells per level, pixels.
    anchor_strides: Optional[list[int]] = None
    #: Position of the first anchor in its cell, as a fraction of the stride.
    anchor_offset: float = 0.0
    #: Whether anchors carry K class logits (RetinaNet) instead of one objectness logit (RPN).
    dense_classes: bool = False
    #: Weights of the box transforms that ``anchor_deltas`` and ``region_deltas`` are scaled with.
    anchor_delta_weights: Optional[tuple[float, ...]] = None
    region_delta_weights: Optional[tuple[float, ...]] = None
    #: Whether the classes and the background of a region share a softmax.
    region_softmax: bool = True
    #: Length of the embeddings, and number of identities that ``identity_logits`` tell apart; 0 for
    #: a network without them.
    embedding_dim: int = 0
    num_identities: int = 0


@dataclass
class Crops:
    """People that a student and a re-ID teacher both look at: boxes that one of them may shift."""

    #: Per image (g_i, 4), pixels of the network's input, XYXY.
    boxes: list[torch.Tensor]
    #: (G,) int64 identity of each, -1 where unlabelled.
    person_ids: torch.Tensor
    #: (G,) bool: moved from where it was annotated.
    shifted: torch.Tensor
    #: The same boxes in pixels of the original images.
    original_boxes: list[torch.Tensor]
    #: Per image (g_i,) int64: number of the annotation that a box is exactly, -1 where it is none.
    annotations: list[torch.Tensor]

    def to(self, device: torch.device) -> "Crops":
        """A copy for a network there; what belongs to the original images stays where it is."""
        return replace(
            self,
            boxes=[boxes.to(device) for boxes in self.boxes],
            person_ids=self.person_ids.to(device),
            shifted=self.shifted.to(device),
        )


@dataclass
class Agreement:
    """Regions of a batch beside the prototypes of their class: how far two networks agree on them.

    R regions, image after image; lists have an entry for every level. The lists of features and
    prototypes are empty where no term compares with prototypes.
    """

    #: (R, 4), pixels of the network's input, XYXY.
    boxes: torch.Tensor
    #: (R,) int64, the image of each region.
    image_index: torch.Tensor
    #: (R,) int64, in 0..K-1.
    classes: torch.Tensor
    #: (R,) int64, position in ``names``: the level that a region belongs to by its size.
    levels: torch.Tensor
    #: Feature maps that both networks have, finest first, and pixels of the input to a cell.
    names: list[str]
    strides: list[int]
    #: (R,) r in 0..1, without gradient; ones where regions are not weighed.
    weights: list[torch.Tensor]
    #: (R, D_s) features of the regions, with gradient, and (R, D_t), without.
    student: list[torch.Tensor] = field(default_factory=list)
    teacher: list[torch.Tensor] = field(default_factory=list)
    #: (P_l, D_s) and (P_l, D_t), those of all classes; P_l may be 0.
    prototypes_student: list[torch.Tensor] = field(default_factory=list)
    prototypes_teacher: list[torch.Tensor] = field(default_factory=list)
    #: (P,) r of the positive anchors at the level of their own boxes, image after image; where a
    #: term of a one-stage student asks for it.
    anchor_weights: Optional[torch.Tensor] = None
    #: What fading losses are multiplied by: 1 at the start of training.
    attenuation: float = 1.0

    def assigned_weights(self) -> torch.Tensor:
        """(R,) r of every region at the level that it belongs to."""
        return torch.stack(self.weights).gather(0, self.levels[None])[0]


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
    #: (N, sum A_l) int64 class of every anchor, K for background; dense detectors only.
    anchor_classes: Optional[torch.Tensor] = None
    #: (P, 4) deltas from the positive anchors to their boxes, image after image, in the scale of
    #: ``anchor_deltas``.
    anchor_delta_targets: Optional[torch.Tensor] = None
    #: What the network's own anchor losses are divided by: sampled anchors of an RPN, positive ones
    #: of RetinaNet, a running mean.
    anchor_normalizer: Optional[float] = None
    #: Sampled regions per image with ``proposal_boxes``, ``gt_classes``, ``gt_boxes`` and
    #: ``gt_person_ids``; absolute pixels of the network input, XYXY.
    proposals: Optional[list[Instances]] = None
    #: (R, K + 1) class logits of the regions, background last as in Detectron2.
    region_logits: Optional[torch.Tensor] = None
    #: (F, K + 1) the rows of ``region_logits`` of the foreground regions: of a teacher that nobody
    #: asked about the others.
    foreground_logits: Optional[torch.Tensor] = None
    #: (R, 4) or (R, 4 K) box deltas, in the scale of the region box transform.
    region_deltas: Optional[torch.Tensor] = None
    #: (R,) int64 class of every region, K for background.
    region_classes: Optional[torch.Tensor] = None
    #: (F, 4) deltas from the foreground regions to their boxes, in the scale of
    #: ``region_deltas``.
    region_delta_targets: Optional[torch.Tensor] = None
    #: (P, D) L2-normalised embeddings of the foreground regions.
    embeddings: Optional[torch.Tensor] = None
    #: (P,) int64 identity of each embedding: a row of the ID table, or -1 where unlabelled.
    person_ids: Optional[torch.Tensor] = None
    #: (P, L) identity logits over the rows of the ID table.
    identity_logits: Optional[torch.Tensor] = None
    #: People that a re-ID teacher was asked about; G of them.
    crops: Optional[Crops] = None
    #: (G, D) embeddings of the crops, not necessarily of length one.
    crop_embeddings: Optional[torch.Tensor] = None
    #: (G, L) identity logits of the crops.
    crop_identity_logits: Optional[torch.Tensor] = None
    #: What was annotated, per image with ``gt_boxes``, ``gt_classes`` and, in person search,
    #: ``gt_person_ids``; absolute pixels of the network input, XYXY.
    annotated: Optional[list[Instances]] = None
    #: The student's regions beside prototypes; in the student's knowledge, once the teacher spoke.
    agreement: Optional[Agreement] = None

    def foreground(self) -> torch.Tensor:
        """(R,) bool: which regions of a student are of a class, neither background nor ignored."""
        num_classes = self.region_logits.shape[1] - 1
        return (self.region_classes >= 0) & (self.region_classes < num_classes)

    def foreground_boxes(self) -> list[Boxes]:
        """Boxes of :meth:`foreground`, image by image; absolute pixels of the input, XYXY."""
        chosen = self.foreground().split([len(p) for p in self.proposals])
        return [p.proposal_boxes[mask] for p, mask in zip(self.proposals, chosen)]
