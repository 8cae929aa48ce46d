"""Config keys of diverse knowledge distillation (Zhang et al., AAAI 2021)."""

from __future__ import annotations

from detectron2.config import CfgNode

from kd_search.config import register_config


@register_config
def add_dkd_config(cfg: CfgNode) -> None:
    """Add ``DISTILLATION.REID_TEACHER``, ``DKD`` and ``SIA``."""
    CN = type(cfg)  # noqa: N806
    cfg.DISTILLATION.REID_TEACHER = CN()
    # Config file of a frozen re-ID network (ReIDNetwork) that teaches from crops of the original
    # images (DKD, AAAI 2021); empty for none. It runs beside the detector teacher. (kd_search)
    cfg.DISTILLATION.REID_TEACHER.CONFIG_FILE = ""
    # Weights of that network; empty takes MODEL.WEIGHTS of its config file. (kd_search)
    cfg.DISTILLATION.REID_TEACHER.WEIGHTS = ""
    # "KEY VALUE" overrides of that network's config. (kd_search)
    cfg.DISTILLATION.REID_TEACHER.OPTS = []
    # Show the crop mirrored where the student's image is: both see the same view. The paper does
    # not say. (kd_search)
    cfg.DISTILLATION.REID_TEACHER.MIRROR_CROPS = True
    # Folder for the teacher's outputs, computed once and read again; empty computes them in every
    # step. Needs boxes that do not move: no feature-level augmentation. (kd_search)
    cfg.DISTILLATION.REID_TEACHER.CACHE_DIR = ""

    # Terms of DKD (Zhang et al., AAAI 2021), taught by DISTILLATION.REID_TEACHER. The paper's
    # weights (lambda, beta_p, beta_pr, beta_tr), margin and temperature could not be recovered.
    cfg.DISTILLATION.DKD = CN()
    # lambda beta_p: weight of IdentityProbabilityTerm. (kd_search)
    cfg.DISTILLATION.DKD.PROBABILITY_WEIGHT = 1.0
    # lambda beta_pr: weight of PairRelationTerm. With 60 here and 12 below, each of the three pulls
    # as hard at the backbone as the others, measured on the training images of the generated set:
    # projects/DKD/README.md. (kd_search)
    cfg.DISTILLATION.DKD.PAIR_WEIGHT = 60.0
    # lambda beta_tr: weight of TripletRelationTerm, chosen likewise. (kd_search)
    cfg.DISTILLATION.DKD.TRIPLET_WEIGHT = 12.0
    # Compare embeddings at length one in PairRelationTerm, as TripletRelationTerm does; False takes
    # them as they come, the student's at length one and the teacher's not. The paper does not say.
    cfg.DISTILLATION.DKD.NORMALIZE_PAIRS = True
    # "student_teacher": KL(student || teacher), as the paper prints it; "teacher_student": the
    # usual other way round.
    cfg.DISTILLATION.DKD.KL_DIRECTION = "student_teacher"
    # Softmax temperature of both sides. (kd_search)
    cfg.DISTILLATION.DKD.TEMPERATURE = 1.0
    # m of the triplet-wise term, in units of embeddings of length one. (kd_search)
    cfg.DISTILLATION.DKD.MARGIN = 0.3
    # The triplet-wise term as printed: every other box is a negative, even of the same person.
    cfg.DISTILLATION.DKD.LITERAL_TRIPLETS = False
    # Compare student and teacher through a learnt linear projection where a term needs embeddings
    # of one size; False is an error where sizes differ. (kd_search)
    cfg.DISTILLATION.DKD.PROJECTION = False

    # Spatial-invariant augmentation (DKD): boxes move by up to min(2 h dp / H, alpha) in total.
    cfg.DISTILLATION.SIA = CN()
    # Feature level: the student and its re-ID teacher see every person shifted, too.
    cfg.DISTILLATION.SIA.FEATURE_LEVEL = False
    # dp: pixels of the re-ID input. Not in what is known of the paper; 10 is the usual padding.
    cfg.DISTILLATION.SIA.PADDING = 10.0
    # alpha: pixels of the original image. Not in what is known of the paper. (kd_search)
    cfg.DISTILLATION.SIA.LIMIT = 20.0
