"""Config keys of detector distillation (Chen et al., NIPS 2017)."""

from __future__ import annotations

from detectron2.config import CfgNode

from kd_search.config import register_config


@register_config
def add_detector_config(cfg: CfgNode) -> None:
    """Add ``DISTILLATION.SOFT_LABELS``, ``BOUNDED_REGRESSION`` and ``HINT``."""
    CN = type(cfg)  # noqa: N806
    # Keys of RegionClassTerm and AnchorClassTerm.
    cfg.DISTILLATION.SOFT_LABELS = CN()
    # mu of Chen et al. (NIPS 2017): the share of the student's own classification loss; the soft
    # loss has the share 1 - mu. The paper gives no value; implementations use 0.5 or 0.8.
    cfg.DISTILLATION.SOFT_LABELS.HARD_WEIGHT = 0.5
    # mu at the end of training, linearly from HARD_WEIGHT by iterations; -1 keeps it constant. Not
    # in the paper; an implementation schedules mu and nu like this.
    cfg.DISTILLATION.SOFT_LABELS.HARD_WEIGHT_END = -1.0
    # Weight of the background class in the soft loss: 1.5 (Chen et al., NIPS 2017; some write-ups
    # swap the two weights).
    cfg.DISTILLATION.SOFT_LABELS.BACKGROUND_WEIGHT = 1.5
    # Weight of every object class in the soft loss: 1.0 (Chen et al., NIPS 2017).
    cfg.DISTILLATION.SOFT_LABELS.OBJECT_WEIGHT = 1.0
    # Softmax temperature of both sides: 1.0, "no temperature works best" (Chen et al., NIPS 2017).
    cfg.DISTILLATION.SOFT_LABELS.TEMPERATURE = 1.0
    # Dense detectors only: soft labels are weighted by |p_teacher - p_student| to this power, as
    # hard labels are by the focal loss (RetinaNet, ICCV 2017); 0 for none. The paper has no dense
    # detector. (kd_search)
    cfg.DISTILLATION.SOFT_LABELS.FOCAL_GAMMA = 2.0
    # Weight of the soft loss of regions: 1.0 (Chen et al., NIPS 2017).
    cfg.DISTILLATION.SOFT_LABELS.REGION_LOSS_WEIGHT = 1.0
    # Weight of the soft loss of anchors: 1.0 (Chen et al., NIPS 2017).
    cfg.DISTILLATION.SOFT_LABELS.ANCHOR_LOSS_WEIGHT = 1.0

    # Keys of RegionRegressionTerm and AnchorRegressionTerm.
    cfg.DISTILLATION.BOUNDED_REGRESSION = CN()
    # "bounded": a loss only where the student is not better than the teacher by the margin; "l2":
    # distance to the teacher, an ablation with worse results (both Chen et al., NIPS 2017).
    cfg.DISTILLATION.BOUNDED_REGRESSION.KIND = "bounded"
    # m for regions: squared length in the scale of the student's region deltas, which Detectron2
    # multiplies by 10, 10, 5, 5. The paper gives no value; implementations use 0 or 0.2.
    cfg.DISTILLATION.BOUNDED_REGRESSION.REGION_MARGIN = 0.0
    # m for anchors: the same in the scale of the anchor deltas, multiplied by 1, 1, 1, 1.
    cfg.DISTILLATION.BOUNDED_REGRESSION.ANCHOR_MARGIN = 0.0
    # nu for regions: 0.5, attributed to Chen et al. (NIPS 2017), not verified.
    cfg.DISTILLATION.BOUNDED_REGRESSION.REGION_LOSS_WEIGHT = 0.5
    # nu for regions at the end of training, linearly from REGION_LOSS_WEIGHT by iterations; -1
    # keeps it constant. Not in the paper, see SOFT_LABELS.HARD_WEIGHT_END.
    cfg.DISTILLATION.BOUNDED_REGRESSION.REGION_LOSS_WEIGHT_END = -1.0
    # nu for anchors.
    cfg.DISTILLATION.BOUNDED_REGRESSION.ANCHOR_LOSS_WEIGHT = 0.5
    # nu for anchors at the end of training, likewise.
    cfg.DISTILLATION.BOUNDED_REGRESSION.ANCHOR_LOSS_WEIGHT_END = -1.0

    # Keys of HintTerm.
    cfg.DISTILLATION.HINT = CN()
    # Feature maps to compare: names that both networks have, or pairs [student, teacher]; empty:
    # every name that both have. The paper does not name its layer.
    cfg.DISTILLATION.HINT.FEATURES = []
    # Adapt the student's map by a 1x1 convolution, also if the channels are equal (Chen et al.,
    # NIPS 2017); False is for the ablation and requires equal channels.
    cfg.DISTILLATION.HINT.ADAPTATION = True
    # "l2" or "l1"; the paper has both and does not name the one of its tables.
    cfg.DISTILLATION.HINT.NORM = "l2"
    # gamma: 0.5 (Chen et al., NIPS 2017).
    cfg.DISTILLATION.HINT.LOSS_WEIGHT = 0.5
