"""Specifications and outputs of networks for distillation, nested by part."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, ImageList, Instances

#: ``None``, the default of a part or specification that a network does not have. Parts are typed as
#: if they were present: a term reads only the parts that it declares, which a Distiller checks.
_ABSENT: Any = None


class Part(enum.Enum):
    """A tensor, or list of tensors, of :class:`ModelOutputs` that a term can require.

    The value is the path of its field.
    """

    FEATURES = "features"
    ANCHOR_LOGITS = "anchors.logits"
    ANCHOR_DELTAS = "anchors.deltas"
    REGION_LOGITS = "regions.logits"
    #: The rows of ``regions.logits`` of foreground regions. A teacher without other parts of
    #: regions predicts no background region.
    FOREGROUND_LOGITS = "regions.foreground_logits"
    REGION_DELTAS = "regions.deltas"
    EMBEDDINGS = "identities.embeddings"
    IDENTITY_LOGITS = "identities.logits"
    CROP_EMBEDDINGS = "crops.embeddings"
    CROP_LOGITS = "crops.logits"


ANCHOR_PARTS = frozenset({Part.ANCHOR_LOGITS, Part.ANCHOR_DELTAS})
REGION_PARTS = frozenset({Part.REGION_LOGITS, Part.FOREGROUND_LOGITS, Part.REGION_DELTAS})
IDENTITY_PARTS = frozenset({Part.EMBEDDINGS, Part.IDENTITY_LOGITS})
CROP_PARTS = frozenset({Part.CROP_EMBEDDINGS, Part.CROP_LOGITS})


def names_of(parts: frozenset[Part]) -> str:
    """The paths of parts, e.g. "features, regions.logits"."""
    return ", ".join(sorted(part.value for part in parts))


# ------------------------------------------------------------------------------- specifications


@dataclass(frozen=True)
class AnchorSpec:
    """Anchors of an RPN or a RetinaNet."""

    #: Anchors of one cell per level, each (A, 4), pixels around the cell's origin, XYXY.
    cells: list[torch.Tensor]
    #: Distance of the cells per level, pixels.
    strides: list[int]
    #: Position of the first anchor in its cell, as a fraction of the stride.
    offset: float
    #: Weights of the box transform that ``anchors.deltas`` are scaled with.
    delta_weights: tuple[float, ...]
    #: Whether anchors carry K class logits (RetinaNet) instead of one objectness logit (RPN).
    dense_classes: bool = False


@dataclass(frozen=True)
class RegionSpec:
    """The box head of a two-stage detector."""

    #: Weights of the box transform that ``regions.deltas`` are scaled with.
    delta_weights: tuple[float, ...]
    #: Whether the classes and the background of a region share a softmax.
    softmax: bool = True


@dataclass(frozen=True)
class IdentitySpec:
    """A re-ID branch or network."""

    #: D, length of an embedding.
    embedding_dim: int
    #: L, number of identities of the logits; 0 without logits.
    num_identities: int = 0


@dataclass(frozen=True)
class ModelSpec:
    """Fixed properties of a network.

    When a Distiller is built, terms compare the specifications of student and teacher, and create
    their adapters from them.
    """

    #: Backbone features by name, with ``channels`` and ``stride``.
    features: Mapping[str, ShapeSpec]
    #: K, without background; 0 for a network that detects nothing.
    num_classes: int
    #: The parts that the network can output, as a student and as a teacher.
    parts: frozenset[Part] = frozenset({Part.FEATURES})
    #: Batches are padded to a multiple of it, in pixels; 0 for none.
    size_divisibility: int = 0
    #: Order of the channels that the network was trained with: "BGR" or "RGB".
    image_format: str = "BGR"
    #: ``None`` for a network without anchors, as below.
    anchors: AnchorSpec = _ABSENT
    regions: RegionSpec = _ABSENT
    identities: IdentitySpec = _ABSENT
    #: Embeddings and logits of given crops.
    crops: IdentitySpec = _ABSENT


# --------------------------------------------------------------------------------------- outputs


@dataclass(frozen=True)
class AnchorTargets:
    """Training targets of a student's anchors."""

    #: (N, sum A_l) int8: 1 positive, 0 negative, -1 not sampled; the student's own sampling.
    labels: torch.Tensor
    #: (P, 4) deltas from the positive anchors to their boxes, image after image, in the scale of
    #: ``AnchorOutputs.deltas``.
    deltas: torch.Tensor
    #: Divisor of the network's own anchor losses: the number of sampled anchors of an RPN, a
    #: running mean of the number of positive anchors of RetinaNet.
    normalizer: float
    #: (N, sum A_l) int64 class of every anchor, K for background; dense detectors only.
    classes: torch.Tensor = _ABSENT


@dataclass(frozen=True)
class AnchorOutputs:
    """Predictions for every anchor."""

    #: Anchors per level, each (A_l, 4), absolute pixels of the padded input, XYXY.
    boxes: list[torch.Tensor]
    #: Objectness (or class) logits per level, each (N, A_l) or (N, A_l, K); like the deltas
    #: ``None`` if not required of a teacher.
    logits: list[torch.Tensor] = _ABSENT
    #: Box deltas per level, each (N, A_l, 4), in the scale of the anchor box transform.
    deltas: list[torch.Tensor] = _ABSENT
    #: Of a student.
    targets: AnchorTargets = _ABSENT


@dataclass(frozen=True)
class RegionTargets:
    """Training targets of a student's sampled regions."""

    #: (R,) int64 class of every region, K for background.
    classes: torch.Tensor
    #: (F, 4) deltas from the foreground regions to their boxes, in the scale of
    #: ``RegionOutputs.deltas``.
    deltas: torch.Tensor


@dataclass(frozen=True)
class RegionOutputs:
    """Predictions for the regions that the student sampled; R of the batch, image after image."""

    #: Per image ``proposal_boxes``, ``gt_classes``, ``gt_boxes`` and, in person search,
    #: ``gt_person_ids``; absolute pixels of the network input, XYXY.
    proposals: list[Instances]
    #: (R, K + 1) class logits, background last as in Detectron2.
    logits: torch.Tensor = _ABSENT
    #: (R, 4) or (R, 4 K) box deltas, in the scale of the region box transform.
    deltas: torch.Tensor = _ABSENT
    #: (F, K + 1), see :attr:`Part.FOREGROUND_LOGITS`; of a teacher.
    foreground_logits: torch.Tensor = _ABSENT
    #: Of a student.
    targets: RegionTargets = _ABSENT

    def foreground(self, num_classes: int) -> torch.Tensor:
        """(R,) bool: regions that are neither background nor ignored; of a student."""
        return (self.targets.classes >= 0) & (self.targets.classes < num_classes)

    def foreground_boxes(self, num_classes: int) -> list[Boxes]:
        """Boxes of :meth:`foreground`, image by image; absolute pixels of the input, XYXY."""
        chosen = torch.split(self.foreground(num_classes), [len(p) for p in self.proposals])
        return [p.proposal_boxes[mask] for p, mask in zip(self.proposals, chosen)]


@dataclass(frozen=True)
class IdentityOutputs:
    """Embeddings and identity logits of the foreground regions, or of the samples of a batch."""

    #: (P, D), L2-normalised for regions.
    embeddings: torch.Tensor = _ABSENT
    #: (P,) int64 identity of each embedding: a row of the ID table, or -1 where unlabelled.
    person_ids: torch.Tensor = _ABSENT
    #: (P, L) logits over the labelled identities.
    logits: torch.Tensor = _ABSENT


@dataclass(frozen=True)
class Crops:
    """Boxes of people that both a student and a re-ID teacher embed; G of the batch."""

    #: Per image (g_i, 4), pixels of the network's input, XYXY.
    boxes: list[torch.Tensor]
    #: (G,) int64 identity of each, -1 where unlabelled.
    person_ids: torch.Tensor
    #: (G,) bool: shifted from the annotated box.
    shifted: torch.Tensor
    #: The same boxes in pixels of the original images.
    original_boxes: list[torch.Tensor] = field(default_factory=list)
    #: Per image (g_i,) int64: index of the annotation that a box equals, or -1.
    annotations: list[torch.Tensor] = field(default_factory=list)

    def to(self, device: torch.device) -> "Crops":
        """A copy on a device, except for the fields in terms of the original images."""
        return replace(
            self,
            boxes=[boxes.to(device) for boxes in self.boxes],
            person_ids=self.person_ids.to(device),
            shifted=self.shifted.to(device),
        )


@dataclass(frozen=True)
class CropOutputs:
    """Embeddings and identity logits of crops."""

    crops: Crops
    #: (G, D), not necessarily of length one.
    embeddings: torch.Tensor = _ABSENT
    #: (G, L).
    logits: torch.Tensor = _ABSENT


@dataclass(frozen=True)
class ModelOutputs:
    """Outputs of a network for a batch.

    A network fills the parts that it has and leaves the others ``None``. Outputs are not modified:
    add a part by :func:`dataclasses.replace`.
    """

    #: Normalised, padded input batch.
    images: ImageList = _ABSENT
    #: Backbone features by name, each (N, C, H, W).
    features: dict[str, torch.Tensor] = _ABSENT
    anchors: AnchorOutputs = _ABSENT
    regions: RegionOutputs = _ABSENT
    identities: IdentityOutputs = _ABSENT
    crops: CropOutputs = _ABSENT
    #: The annotations of the batch, per image with ``gt_boxes``, ``gt_classes`` and, in person
    #: search, ``gt_person_ids``; absolute pixels of the network input, XYXY. Of a student.
    annotated: list[Instances] = _ABSENT
    #: Values that companions add for their terms, by name of the companion.
    extras: Mapping[str, Any] = field(default_factory=dict)

    def get(self, part: Part) -> Any:
        """The tensor, or list of tensors, of a part.

        Raises:
            ValueError: the part is missing.
        """
        value: Any = self
        for name in part.value.split("."):
            value = None if value is None else getattr(value, name)
        if value is None:
            raise ValueError(f"the outputs have no {part.value}")
        return value

    def with_extra(self, name: str, value: Any) -> "ModelOutputs":
        """The same outputs with another entry in ``extras``."""
        return replace(self, extras={**self.extras, name: value})
