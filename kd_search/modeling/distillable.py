"""From the names of Detectron2's classes to those that can be distilled."""

from detectron2.config import CfgNode

_META_ARCHITECTURES = {
    "GeneralizedRCNN": "DistillableRCNN",
    "RetinaNet": "DistillableRetinaNet",
}
_PROPOSAL_GENERATORS = {"RPN": "DistillableRPN"}
_ROI_HEADS = {
    "StandardROIHeads": "DistillableROIHeads",
    "Res5ROIHeads": "DistillableRes5ROIHeads",
}


def as_distillable(cfg: CfgNode) -> CfgNode:
    """A copy of a config that builds the same network as a student or a teacher.

    Detectron2's own classes are replaced by their subclasses of this package. Weights and results
    are the same, so that any Detectron2 config and its weights can be used as they are.

    Args:
        cfg: of a detector; ``MODEL.META_ARCHITECTURE`` must be that of the network itself.
    """
    cfg = cfg.clone()
    cfg.defrost()
    model = cfg.MODEL
    model.META_ARCHITECTURE = _META_ARCHITECTURES.get(
        model.META_ARCHITECTURE, model.META_ARCHITECTURE
    )
    name = model.PROPOSAL_GENERATOR.NAME
    model.PROPOSAL_GENERATOR.NAME = _PROPOSAL_GENERATORS.get(name, name)
    model.ROI_HEADS.NAME = _ROI_HEADS.get(model.ROI_HEADS.NAME, model.ROI_HEADS.NAME)
    return cfg
