"""A person search network as one graph whose shapes do not depend on what a picture shows.

Detectron2's own forward branches on values (the number of proposals, boxes that are not finite), so
that ``torch.export`` cannot record it. The forward of :class:`FlatPersonSearch` makes the same
selections with fixed numbers of rows and masks. It is what the formats ``onnx`` and ``pt2`` hold.
"""

import math
from typing import Any, Optional

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from torch import nn
from torchvision.ops import nms

from kd_search.export.windows import check_windows
from kd_search.modeling.roi_heads.person_search import (
    PersonSearchRes5ROIHeads,
    PersonSearchROIHeads,
)

#: Names of the inputs and outputs of :class:`FlatPersonSearch` in exported files.
INPUTS = ("image", "size", "query_boxes")
OUTPUTS = ("boxes", "scores", "embeddings", "valid", "query_embeddings")
#: Score of rows that hold nothing.
_NOTHING = -math.inf


class FlatPersonSearch(nn.Module):
    """Detection, embedding of the detected people, and embedding of given boxes, of one picture.

    Equal to ``PersonSearchRCNN.inference`` and ``embed``.
    """

    def __init__(self, model: nn.Module):
        """
        Args:
            model: a PersonSearchRCNN with one class, in evaluation mode.

        Raises:
            ValueError: a part of the network is of a kind that is not supported.
        """
        super().__init__()
        check_supported(model)
        self.model = model

    @property
    def size_divisibility(self) -> int:
        """Height and width of the input must be multiples of it."""
        model: Any = self.model
        return max(int(model.backbone.size_divisibility), 1)

    def forward(
        self, image: torch.Tensor, size: torch.Tensor, query_boxes: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Detect and embed people, and embed given boxes.

        Args:
            image: (3, H, W) uint8, channels in the order of ``INPUT.FORMAT``, padded at the right
                and at the bottom to multiples of :attr:`size_divisibility`. Padding may have any
                value.
            size: (2,) int64 height and width without the padding.
            query_boxes: (Q, 4) float32 XYXY in pixels of ``image``; Q may be 0.

        Returns:
            boxes: (K, 4) float32 XYXY in pixels of ``image``, highest score first, where K is
                ``TEST.DETECTIONS_PER_IMAGE``. Rows that are not valid are 0.
            scores: (K,) float32 in [0, 1].
            embeddings: (K, D) float32 of length one.
            valid: (K,) bool, true for the rows that hold a person; they come first.
            query_embeddings: (Q, D) float32 of length one.
        """
        model: Any = self.model
        heads = model.roi_heads
        features = model.backbone(self._normalised(image, size))
        limit = size.flip(0).repeat(2).float()
        boxes, scores = self._detections(features, limit, *self._proposals(features, limit))
        valid = scores > _NOTHING
        # With one box more than asked for: the graph of a convolution needs a row.
        queries = torch.cat([query_boxes, query_boxes.new_zeros((1, 4))])
        return (
            boxes,
            torch.where(valid, scores, 0.0),
            self._embeddings(features, boxes, valid),
            valid,
            embed(heads, features, queries)[:-1],
        )

    def _embeddings(
        self, features: dict[str, torch.Tensor], boxes: torch.Tensor, valid: torch.Tensor
    ) -> torch.Tensor:
        """(K, D) embeddings, 0 in rows that are not valid."""
        model: Any = self.model
        # Only the rows with a person are embedded: the re-ID head is the dearest part by region.
        # The first row always is, as the graph of a convolution exists for one row or more only.
        rows = (valid | (torch.arange(boxes.shape[0], device=boxes.device) == 0)).nonzero()[:, 0]
        torch._check(rows.shape[0] >= 1)
        found = embed(model.roi_heads, features, boxes.index_select(0, rows))
        embeddings = found.new_zeros((boxes.shape[0], found.shape[1])).index_put((rows,), found)
        return torch.where(valid[:, None], embeddings, 0.0)

    def _normalised(self, image: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        """(1, 3, H, W) normalised image; the padding is 0, as Detectron2's."""
        model: Any = self.model
        centred = image.float() - model.pixel_mean
        if self.size_divisibility == 1:
            return (centred / model.pixel_std)[None]
        height, width = image.shape[1:]
        rows = torch.arange(height, device=image.device) < size[0]
        columns = torch.arange(width, device=image.device) < size[1]
        # Two products take less than half the time of a quotient and a choice by a mask.
        return (centred * (rows[:, None] / model.pixel_std) * columns)[None]

    def _proposals(
        self,
        features: dict[str, torch.Tensor],
        limit: torch.Tensor,
        added_logits: Optional[list[torch.Tensor]] = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(P, 4) proposals and (P,) whether they exist, best first.

        ``added_logits``, (1, A, H, W) by level, are added to the objectness.
        """
        model: Any = self.model
        rpn = model.proposal_generator
        logits, changes = rpn.rpn_head([features[name] for name in rpn.in_features])
        if added_logits is not None:
            logits = [own + other for own, other in zip(logits, added_logits)]
        scores, anchors, deltas = best_anchors(
            logits, changes, rpn.anchor_generator, rpn.pre_nms_topk[False]
        )
        boxes = decoded(rpn.box2box_transform, deltas, anchors)
        exist = finite(boxes, scores)
        boxes = clipped(boxes, limit)
        exist = exist & (extent(boxes) > rpn.min_box_size)
        scores = torch.where(exist, scores, _NOTHING)
        boxes, scores = suppressed(boxes, scores, rpn.nms_thresh, groups=len(logits))
        boxes, scores = best(boxes, scores, rpn.post_nms_topk[False])
        return boxes, scores > _NOTHING

    def _detections(
        self,
        features: dict[str, torch.Tensor],
        limit: torch.Tensor,
        proposals: torch.Tensor,
        exist: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(K, 4) boxes and (K,) scores, -inf in rows without a person."""
        model: Any = self.model
        heads = model.roi_heads
        predictor = heads.box_predictor
        logits, deltas = heads._predict(region_features(heads, features, proposals))
        probabilities = logits.softmax(dim=1) if predictor.has_softmax else logits.sigmoid()
        boxes = decoded(predictor.box2box_transform, deltas, proposals)
        scores = probabilities[:, 0]
        present = exist & finite(boxes, scores) & (scores > predictor.test_score_thresh)
        boxes = clipped(boxes, limit)
        boxes, scores = suppressed(
            boxes, torch.where(present, scores, _NOTHING), predictor.test_nms_thresh
        )
        count = predictor.test_topk_per_image
        # A negative limit is none, in Detectron2.
        boxes, scores = best(boxes, scores, boxes.shape[0] if count < 0 else count)
        # As Detectron2's post-processing: boxes without an area in the image are dropped.
        return best(boxes, torch.where(extent(boxes) > 0, scores, _NOTHING), boxes.shape[0])


class FlatReID(nn.Module):
    """Test embeddings of crops, by a ReIDNetwork without its classifier."""

    def __init__(self, model: nn.Module):
        super().__init__()
        check_windows(model)
        self.model = model

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """(N, 3, h, w) uint8 crops, channels in the order of ``INPUT.FORMAT``, to (N, D)."""
        model: Any = self.model
        features = model.feature_maps(crops).mean(dim=(2, 3))
        return model.neck(features) if model.test_embedding == "after" else features


def check_supported(model: Any) -> None:
    """Check that the flat forward is that of the network.

    Raises:
        ValueError: naming the first part that is not supported.
    """
    heads, rpn = model.roi_heads, model.proposal_generator
    anchors = getattr(rpn, "anchor_generator", rpn)
    parts = (
        ("MODEL.ROI_HEADS.NAME", heads, (PersonSearchROIHeads, PersonSearchRes5ROIHeads)),
        ("MODEL.PROPOSAL_GENERATOR.NAME", rpn, (RPN,)),
        ("MODEL.ANCHOR_GENERATOR.NAME", anchors, (DefaultAnchorGenerator,)),
    )
    for key, part, kinds in parts:
        if not isinstance(part, kinds):
            raise ValueError(
                f"{key} {type(part).__name__} cannot be exported to this format: use the format "
                "torchscript"
            )
    check_windows(model)
    if heads.num_classes != 1:
        raise ValueError(
            f"MODEL.ROI_HEADS.NUM_CLASSES {heads.num_classes} cannot be exported to this format: "
            "person search has one class"
        )


def best_anchors(
    logits: list[torch.Tensor],
    deltas: list[torch.Tensor],
    generator: DefaultAnchorGenerator,
    count: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The anchors of each level with the highest scores.

    Levels are treated together as far as possible, and anchors computed for the chosen places
    alone: every operation has a cost of its own, however few its values.

    Args:
        logits: (1, A, H, W) by level.
        deltas: (1, 4 A, H, W) by level.
        generator: of the anchors.
        count: k by level; a level with fewer anchors is filled up with scores of -inf.

    Returns:
        scores (L k,), anchors (L k, 4) and deltas (L k, 4); within a level, highest score first.
    """
    levels = []
    for scores, changes in zip(logits, deltas):
        flat = scores.permute(0, 2, 3, 1).flatten()
        top, index = highest(torch.cat([flat, flat.new_full((count,), _NOTHING)]), count)
        rows = changes.permute(0, 2, 3, 1).reshape(-1, 4)
        rows = torch.cat([rows, rows.new_zeros((count, 4))]).index_select(0, index)
        levels.append((top, index, index.new_full((count,), scores.shape[3]), rows))
    top, index, width, rows = (torch.cat(parts) for parts in zip(*levels))
    cells = torch.cat(list(generator.cell_anchors))
    num_cells = cells.shape[0] // len(levels)
    level = torch.arange(len(levels), device=index.device).repeat_interleave(count)
    place = index // num_cells
    # Not place % width: ONNX has no remainder by a size of the graph.
    y = place // width
    corner = torch.stack([place - y * width, y], dim=1).to(cells.dtype)
    stride = corner.new_tensor(generator.strides)[level][:, None]
    corner = corner * stride + generator.offset * stride
    cell = cells.index_select(0, index - place * num_cells + level * num_cells)
    return top, torch.cat([corner, corner], dim=1) + cell, rows


def decoded(transform: Box2BoxTransform, deltas: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """(N, 4) boxes moved by (N, 4) deltas, as ``Box2BoxTransform.apply_deltas``.

    The same operations on pairs of coordinates instead of single ones.
    """
    weights = deltas.new_tensor(transform.weights)
    low, size = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    change = deltas / weights
    centre = change[:, :2] * size + (low + 0.5 * size)
    half = 0.5 * (change[:, 2:].clamp(max=transform.scale_clamp).exp() * size)
    return torch.cat([centre - half, centre + half], dim=1)


def finite(boxes: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """(N,) whether all four coordinates and the score are finite."""
    # 0 times a value is 0 or not a number; fewer operations than isfinite() is in ONNX.
    return (boxes * 0).sum(dim=1) + scores * 0 == 0


def suppressed(
    boxes: torch.Tensor, scores: torch.Tensor, threshold: float, groups: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Non-maximum suppression: the same rows, those that are suppressed with a score of -inf.

    Args:
        boxes: (N, 4).
        scores: (N,); -inf for rows that hold nothing.
        threshold: overlap from which the lower score is suppressed.
        groups: equal parts of the rows that do not suppress each other.
    """
    exist = scores > _NOTHING
    # Boxes without an area suppress nothing.
    boxes = torch.where(exist[:, None], boxes, 0.0)
    size = boxes.shape[0] // groups
    kept = [
        nms(boxes[start : start + size], scores[start : start + size], threshold) + start
        for start in range(0, size * groups, size)
    ]
    mask = torch.zeros_like(exist).index_put((torch.cat(kept),), exist.new_ones(()))
    return boxes, torch.where(mask & exist, scores, _NOTHING)


def best(
    boxes: torch.Tensor, scores: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``count`` rows with the highest scores in their order, filled up with zeros and -inf."""
    missing = max(count - boxes.shape[0], 0)
    boxes = torch.cat([boxes, boxes.new_zeros((missing, 4))])
    scores, rows = highest(torch.cat([scores, scores.new_full((missing,), _NOTHING)]), count)
    return torch.where(scores[:, None] > _NOTHING, boxes[rows], 0.0), scores


def highest(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``count`` highest scores and their rows; the lower row first where they are equal.

    Equal scores are common where a network sees nothing: its ReLUs are 0, its outputs the biases.
    """
    if torch.onnx.is_in_onnx_export():
        # ONNX defines the order of equal scores, torch's topk() leaves it open.
        top = scores.topk(count)
        return top.values, top.indices
    scores, rows = scores.sort(stable=True, descending=True)
    return scores[:count], rows[:count]


def clipped(boxes: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """(N, 4) boxes, limited to an image of ``limit`` (width, height, width, height)."""
    return torch.minimum(boxes.clamp(min=0), limit)


def extent(boxes: torch.Tensor) -> torch.Tensor:
    """(N,) the smaller one of width and height."""
    return (boxes[:, 2:] - boxes[:, :2]).amin(dim=1)


def embed(heads: Any, features: dict[str, torch.Tensor], boxes: torch.Tensor) -> torch.Tensor:
    """(N, D) embeddings of boxes, as :meth:`PersonSearchHeads.embed` of one image, N at least 1."""
    if isinstance(heads, PersonSearchROIHeads):
        maps = [features[name] for name in heads.reid_in_features]
        return heads.reid(pooled(heads.reid_pooler, maps, boxes))
    if heads.reid_res5 is None:
        return heads.reid(region_features(heads, features, boxes))
    maps = [features[name] for name in heads.in_features]
    return heads.reid(heads.reid_res5(pooled(heads.pooler, maps, boxes)).contiguous())


def region_features(
    heads: Any, features: dict[str, torch.Tensor], boxes: torch.Tensor
) -> torch.Tensor:
    """(N, C, h, w) input of the box predictor (C4: output of res5)."""
    if isinstance(heads, PersonSearchROIHeads):
        return pooled(heads.box_pooler, [features[name] for name in heads.box_in_features], boxes)
    regions = pooled(heads.pooler, [features[n] for n in heads.in_features], boxes)
    # The maps of a Swin are permuted, and pooling asks for the layout of an unknown number of them.
    return heads.res5(regions).contiguous()


def pooled(pooler: ROIPooler, maps: list[torch.Tensor], boxes: torch.Tensor) -> torch.Tensor:
    """(N, C, h, w) features of boxes, each from the level of its size."""
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], dim=1)
    if len(maps) == 1:
        return pooler.level_poolers[0](maps[0], rois)
    levels = level_of(pooler, boxes)
    rows = [(levels == level).nonzero()[:, 0] for level in range(len(maps))]
    features = [
        level_pooler(level_map, rois.index_select(0, here))
        for level_pooler, level_map, here in zip(pooler.level_poolers, maps, rows)
    ]
    # One copy in the order of the boxes; writing each level to its rows makes one by level.
    order = torch.cat(rows)
    torch._check(order.shape[0] == boxes.shape[0])
    ranks = torch.arange(boxes.shape[0], device=boxes.device)
    place = torch.zeros_like(levels).index_put((order,), ranks)
    return torch.cat(features).index_select(0, place)


def level_of(pooler: ROIPooler, boxes: torch.Tensor) -> torch.Tensor:
    """(N,) int64 level of each box, 0 for the finest; as ``assign_boxes_to_levels``.

    Compares sizes, because a logarithm is rounded differently by other runtimes: a box of exactly
    112 pixels would change its level.
    """
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    size = area.sqrt() / pooler.canonical_box_size + 1e-8
    levels = range(pooler.min_level + 1, pooler.max_level + 1)
    borders = size.new_tensor([2.0 ** (level - pooler.canonical_level) for level in levels])
    return (size[:, None] >= borders).sum(dim=1)
