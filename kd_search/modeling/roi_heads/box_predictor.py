"""Detectron2's box predictor, with what distillation needs to know of its targets."""

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import nn
from torch.nn import functional as F  # noqa: N812


class DistillableBoxPredictor(FastRCNNOutputLayers):
    """FastRCNNOutputLayers that hand out their targets and can weigh the background.

    Weights, and losses at background weight 1, are FastRCNNOutputLayers'. The ROI heads of this
    package hold it; see :func:`distillable_predictor`.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, background_weight: float = 1.0, **kwargs):
        """
        Args:
            input_shape: of the pooled region features.
            background_weight: of background regions in the hard cross-entropy.
            kwargs: as ``FastRCNNOutputLayers``.

        Raises:
            ValueError: a background weight for a head without a softmax.
        """
        super().__init__(input_shape, **kwargs)
        if background_weight != 1.0 and not self.has_softmax:
            raise ValueError(
                "MODEL.ROI_BOX_HEAD.BACKGROUND_WEIGHT needs a softmax over the classes: leave it "
                "at 1.0 with MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE"
            )
        self.background_weight = background_weight

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        ret = super().from_config(cfg, input_shape)
        ret["background_weight"] = cfg.MODEL.ROI_BOX_HEAD.BACKGROUND_WEIGHT
        return ret

    @property
    def has_softmax(self) -> bool:
        """Whether classes and background share a softmax; newer Detectron2 has sigmoids too."""
        return not getattr(self, "use_sigmoid_ce", False)

    def losses(self, predictions, proposals: list[Instances]) -> dict[str, torch.Tensor]:
        """As Detectron2's; the weighted cross-entropy is a sum over all regions, divided by R."""
        losses = super().losses(predictions, proposals)
        if self.background_weight != 1.0 and proposals:
            logits = predictions[0]
            classes = cat([p.gt_classes for p in proposals])
            weights = logits.new_ones(self.num_classes + 1)
            weights[-1] = self.background_weight
            loss = F.cross_entropy(logits, classes, weights, reduction="sum")
            factor = self.loss_weight.get("loss_cls", 1.0)
            losses["loss_cls"] = factor * loss / max(len(classes), 1)
        return losses

    @torch.no_grad()
    def targets(self, proposals: list[Instances]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the regions should have been judged as.

        Args:
            proposals: sampled regions with ``proposal_boxes``, ``gt_classes`` and ``gt_boxes``.

        Returns:
            classes: (R,) int64, K for background.
            deltas: (F, 4) of the foreground regions, in the scale of this box transform.
        """
        classes = cat([p.gt_classes for p in proposals])
        foreground = (classes >= 0) & (classes < self.num_classes)
        boxes = cat([p.proposal_boxes.tensor for p in proposals])[foreground]
        # An image without objects has no gt_boxes; its regions are all background.
        truth = [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
        return classes, self.box2box_transform.get_deltas(boxes, cat(truth)[foreground])


def distillable_predictor(predictor: nn.Module, cfg, input_shape: ShapeSpec) -> nn.Module:
    """The same predictor as :class:`DistillableBoxPredictor`.

    It keeps the weights that were drawn and leaves the random state alone, so that a seed gives
    the same network as with Detectron2's own heads.
    """
    with torch.random.fork_rng(devices=[]):
        ours = DistillableBoxPredictor(cfg, input_shape)
    ours.load_state_dict(predictor.state_dict())
    return ours
