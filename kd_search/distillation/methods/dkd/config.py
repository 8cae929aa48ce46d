"""Config keys of diverse knowledge distillation (Zhang et al., AAAI 2021)."""

from __future__ import annotations

from detectron2.config import CfgNode

from kd_search.config import register_config


@register_config
def add_dkd_config(cfg: CfgNode) -> None:
    """Add ``DISTILLATION.REID_TEACHER``, ``DKD`` and ``SIA``."""
    CN = type(cfg)  # noqa: N806
    cfg.DISTILLATION.REID_TEACHER = CN()
    # Config file of a frozen re-ID network (ReIDNetwork) that embeds crops of the original images
    # (DKD, AAAI 2021); empty for none. It runs beside the detector teacher. (kd_search)
    cfg.DISTILLATION.REID_TEACHER.CONFIG_FILE = ""
    # Weights of that network; empty: MODEL.WEIGHTS of its config file. (kd_search)
    cfg.DISTILLATION.REID_TEACHER.WEIGHTS = ""
    # "KEY VALUE" overrides of that network's config. (kd_search)
    cfg.DISTILLATION.REID_TEACHER.OPTS = []
    # Mirror the teacher's crops if the student's image is mirrored, so that both have the same
    # view. The paper does not state it. (kd_search)
    cfg.DISTILLATION.REID_TEACHER.MIRROR_CROPS = True
    # Folder of a cache of the teacher's features of annotated boxes; empty: no cache. Features of
    # shifted boxes (feature-level augmentation) are computed in every step. (kd_search)
    cfg.DISTILLATION.REID_TEACHER.CACHE_DIR = ""

    # Terms of DKD (Zhang et al., AAAI 2021), with the teacher of DISTILLATION.REID_TEACHER. The
    # paper's weights (lambda, beta_p, beta_pr, beta_tr), margin and temperature are not known.
    cfg.DISTILLATION.DKD = CN()
    # lambda beta_p: weight of IdentityProbabilityTerm. (kd_search)
    cfg.DISTILLATION.DKD.PROBABILITY_WEIGHT = 1.0
    # lambda beta_pr: weight of PairRelationTerm. With 60 here and 12 below, the three terms have
    # gradients of equal size at the backbone, measured on the training images of the generated set:
    # projects/DKD/README.md. (kd_search)
    cfg.DISTILLATION.DKD.PAIR_WEIGHT = 60.0
    # lambda beta_tr: weight of TripletRelationTerm, chosen in the same way. (kd_search)
    cfg.DISTILLATION.DKD.TRIPLET_WEIGHT = 12.0
    # Normalise embeddings to length one in PairRelationTerm, as TripletRelationTerm does; False
    # leaves the teacher's lengths, the student's are one. The paper does not state it. (kd_search)
    cfg.DISTILLATION.DKD.NORMALIZE_PAIRS = True
    # "student_teacher": KL(student || teacher), as printed in the paper; "teacher_student": the
    # usual direction.
    cfg.DISTILLATION.DKD.KL_DIRECTION = "student_teacher"
    # Softmax temperature of both sides. (kd_search)
    cfg.DISTILLATION.DKD.TEMPERATURE = 1.0
    # m of the triplet-wise term, in units of embeddings of length one. (kd_search)
    cfg.DISTILLATION.DKD.MARGIN = 0.3
    # The triplet-wise term as printed in the paper: every other box is a negative, also of the same
    # person.
    cfg.DISTILLATION.DKD.LITERAL_TRIPLETS = False
    # Project the student's embeddings to the teacher's size by a trained linear layer, for
    # TripletRelationTerm; False requires equal sizes. (kd_search)
    cfg.DISTILLATION.DKD.PROJECTION = False

    # Spatial-invariant augmentation (DKD): boxes move by up to min(2 h dp / H, alpha) in total.
    cfg.DISTILLATION.SIA = CN()
    # Feature level: student and re-ID teacher also embed a shifted box of every person (DKD).
    cfg.DISTILLATION.SIA.FEATURE_LEVEL = False
    # dp: pixels of the re-ID input. The paper's value is not known; 10 is the usual padding.
    # (kd_search)
    cfg.DISTILLATION.SIA.PADDING = 10.0
    # alpha: pixels of the original image. The paper's value is not known. (kd_search)
    cfg.DISTILLATION.SIA.LIMIT = 20.0
