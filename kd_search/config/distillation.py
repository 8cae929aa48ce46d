"""Keys of distillation: teachers, and what each paper's terms need."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def add_distillation(cfg: CfgNode) -> None:
    CN = type(cfg)  # noqa: N806
    cfg.DISTILLATION = CN()
    # Meta-architecture of the student; MODEL.META_ARCHITECTURE is "Distiller". (kd_search)
    cfg.DISTILLATION.STUDENT_META_ARCH = "PersonSearchRCNN"
    # Names from DISTILLATION_TERM_REGISTRY; any subset, in any order. (kd_search)
    cfg.DISTILLATION.TERMS = []

    cfg.DISTILLATION.TEACHER = CN()
    # Config file of the frozen teacher; empty where no term observes a teacher or refreshes a table
    # from one. (kd_search)
    cfg.DISTILLATION.TEACHER.CONFIG_FILE = ""
    # Weights of the teacher; empty takes MODEL.WEIGHTS of its config file. (kd_search)
    cfg.DISTILLATION.TEACHER.WEIGHTS = ""
    # "KEY VALUE" overrides of the teacher's config. (kd_search)
    cfg.DISTILLATION.TEACHER.OPTS = []
    # Pairs [class of the teacher, class of the student] where the two differ; several classes of
    # the teacher may become one, and those not named count as background. Empty: the same classes
    # in the same order. (kd_search)
    cfg.DISTILLATION.TEACHER.CLASS_MAP = []

    # Let the teacher normalise by the statistics of the batch, without keeping them, instead of its
    # running ones: what the code of VKD (ECCV 2020) does. Its weights stay frozen.
    cfg.DISTILLATION.TEACHER.BATCH_STATISTICS = False

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

    # What of the teacher the student starts with, after MODEL.WEIGHTS: prefixes of parameter names,
    # or [prefix of the student, prefix of the teacher]. (kd_search)
    cfg.DISTILLATION.INIT_FROM_TEACHER = []
    # Prefixes of the student's parameter names that start anew after MODEL.WEIGHTS: VKD (ECCV 2020)
    # draws the last block and the classifier of a trained student again. (kd_search)
    cfg.DISTILLATION.FRESH_LAYERS = []

    _add_detector_distillation(cfg)
    _add_diverse_distillation(cfg)
    _add_view_distillation(cfg)
    _add_global_knowledge(cfg)

    cfg.DISTILLATION.ID_TABLE = CN()
    # Table written by tools/build_id_table.py (Munjal et al., BMVC 2019). (kd_search)
    cfg.DISTILLATION.ID_TABLE.PATH = ""
    # "frozen": rows never move, our reading of BMVC 2019; "momentum": rows start at the teacher's
    # and follow OIM's update; "ema": the same with the slower EMA_MOMENTUM. The paper does not say.
    cfg.DISTILLATION.ID_TABLE.MODE = "frozen"
    # Share of the old row kept in mode "momentum": 0.5 (OIM, CVPR 2017).
    cfg.DISTILLATION.ID_TABLE.MOMENTUM = 0.5
    # Share of the old row kept in mode "ema". Not in the paper. (kd_search)
    cfg.DISTILLATION.ID_TABLE.EMA_MOMENTUM = 0.99
    # Circular queue of unlabelled people: "student" starts empty and is filled by the student,
    # "teacher" starts with the teacher's embeddings of unlabelled boxes, "off" has none.
    # The paper does not say. (kd_search)
    cfg.DISTILLATION.ID_TABLE.QUEUE = "student"
    # Slots of that queue: 5000 (OIM, CVPR 2017), 500 for PRW.
    cfg.DISTILLATION.ID_TABLE.QUEUE_SIZE = 5000
    # Softmax temperature: 0.1 (OIM, CVPR 2017).
    cfg.DISTILLATION.ID_TABLE.TEMPERATURE = 0.1
    # Weight of the loss: 1.0, that of the loss it replaces.
    cfg.DISTILLATION.ID_TABLE.LOSS_WEIGHT = 1.0
    # Make the rows anew every so many iterations (IDTableRefreshHook); 0 never. (kd_search)
    cfg.DISTILLATION.ID_TABLE.REFRESH_PERIOD = 0
    # Whose embeddings the new rows are. "teacher": means of those that DISTILLATION.TEACHER gives
    # the training images, as the student's augmentation shows them at that time. "blend": the rows
    # of PATH with a share of the means of the student's own, not augmented; not with MODE "frozen".
    # Never the student's alone: MODEL.OIM.REFRESH_PERIOD does that to its own table. (kd_search)
    cfg.DISTILLATION.ID_TABLE.REFRESH_SOURCE = "teacher"
    # Source "teacher": average the means of all refreshes so far, of which each sees another draw
    # of the augmentation, in place of those of the last alone. (kd_search)
    cfg.DISTILLATION.ID_TABLE.REFRESH_AVERAGE = False
    # Source "blend": share s of the student between 0 and 1, in normalize((1 - s) teacher +
    # s student). (kd_search)
    cfg.DISTILLATION.ID_TABLE.REFRESH_STUDENT_SHARE = 0.5


def _add_detector_distillation(cfg: CfgNode) -> None:
    CN = type(cfg)  # noqa: N806
    # Classification by the teacher, of RegionClassTerm and AnchorClassTerm.
    cfg.DISTILLATION.SOFT_LABELS = CN()
    # mu of Chen et al. (NIPS 2017): the share of the student's own classification loss, the rest
    # goes to the teacher's labels. The paper gives no value; implementers use 0.5 or 0.8.
    cfg.DISTILLATION.SOFT_LABELS.HARD_WEIGHT = 0.5
    # mu at the end of training, linearly from HARD_WEIGHT by iterations; -1 keeps it constant. Not
    # in the paper; an implementation schedules mu and nu so.
    cfg.DISTILLATION.SOFT_LABELS.HARD_WEIGHT_END = -1.0
    # Weight of the background class in the soft loss: 1.5 (Chen et al., NIPS 2017; some write-ups
    # have the two weights the other way round).
    cfg.DISTILLATION.SOFT_LABELS.BACKGROUND_WEIGHT = 1.5
    # Weight of every object class in the soft loss: 1.0 (Chen et al., NIPS 2017).
    cfg.DISTILLATION.SOFT_LABELS.OBJECT_WEIGHT = 1.0
    # Softmax temperature of both sides: 1.0, "no temperature works best" (Chen et al., NIPS 2017).
    cfg.DISTILLATION.SOFT_LABELS.TEMPERATURE = 1.0
    # Dense detectors only: soft labels are weighted by |p_teacher - p_student| to this power, as
    # the focal loss (RetinaNet, ICCV 2017) weighs hard ones; 0 for none. The paper has no dense
    # detector. (kd_search)
    cfg.DISTILLATION.SOFT_LABELS.FOCAL_GAMMA = 2.0
    # Weight of the soft loss of regions: 1.0 (Chen et al., NIPS 2017).
    cfg.DISTILLATION.SOFT_LABELS.REGION_LOSS_WEIGHT = 1.0
    # Weight of the soft loss of anchors: 1.0 (Chen et al., NIPS 2017).
    cfg.DISTILLATION.SOFT_LABELS.ANCHOR_LOSS_WEIGHT = 1.0

    # Box regression by the teacher, of RegionRegressionTerm and AnchorRegressionTerm.
    cfg.DISTILLATION.BOUNDED_REGRESSION = CN()
    # "bounded": paid only where the student is not better than the teacher by the margin; "l2":
    # distance to the teacher, the ablation that hurts (both Chen et al., NIPS 2017).
    cfg.DISTILLATION.BOUNDED_REGRESSION.KIND = "bounded"
    # m for regions: squared length in the scale of the student's region deltas, which Detectron2
    # weighs by 10, 10, 5, 5. The paper gives no value; implementers use 0 or 0.2.
    cfg.DISTILLATION.BOUNDED_REGRESSION.REGION_MARGIN = 0.0
    # m for anchors: the same in the scale of the anchor deltas, weighed by 1, 1, 1, 1.
    cfg.DISTILLATION.BOUNDED_REGRESSION.ANCHOR_MARGIN = 0.0
    # nu for regions: 0.5, as remembered from Chen et al. (NIPS 2017), not verified.
    cfg.DISTILLATION.BOUNDED_REGRESSION.REGION_LOSS_WEIGHT = 0.5
    # nu for regions at the end of training, linearly from REGION_LOSS_WEIGHT by iterations; -1
    # keeps it constant. Not in the paper, see SOFT_LABELS.HARD_WEIGHT_END.
    cfg.DISTILLATION.BOUNDED_REGRESSION.REGION_LOSS_WEIGHT_END = -1.0
    # nu for anchors.
    cfg.DISTILLATION.BOUNDED_REGRESSION.ANCHOR_LOSS_WEIGHT = 0.5
    # nu for anchors at the end of training, likewise.
    cfg.DISTILLATION.BOUNDED_REGRESSION.ANCHOR_LOSS_WEIGHT_END = -1.0

    # Feature maps by the teacher, of HintTerm.
    cfg.DISTILLATION.HINT = CN()
    # Maps that are compared: names that both networks have, or pairs [student, teacher]; empty
    # takes every name that both have. The paper does not say which layer it used.
    cfg.DISTILLATION.HINT.FEATURES = []
    # Adapt the student's map by a 1x1 convolution, even where channels agree (Chen et al.,
    # NIPS 2017); False is for the ablation and needs equal channels.
    cfg.DISTILLATION.HINT.ADAPTATION = True
    # "l2" or "l1"; the paper has both, its tables do not say which.
    cfg.DISTILLATION.HINT.NORM = "l2"
    # gamma: 0.5 (Chen et al., NIPS 2017).
    cfg.DISTILLATION.HINT.LOSS_WEIGHT = 0.5


def _add_diverse_distillation(cfg: CfgNode) -> None:
    CN = type(cfg)  # noqa: N806
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


def _add_view_distillation(cfg: CfgNode) -> None:
    CN = type(cfg)  # noqa: N806
    # Terms of VKD (Porrello et al., ECCV 2020): the teacher sees more views of a person.
    cfg.DISTILLATION.VKD = CN()
    # alpha: weight of ViewLogitsTerm, 0.1 (the authors' code).
    cfg.DISTILLATION.VKD.LOGITS_WEIGHT = 0.1
    # "kl": divergence of the probabilities, the paper's; "mse": mean squared difference of the
    # logits, without a temperature (--logits_dist of the authors' code).
    cfg.DISTILLATION.VKD.LOGITS_DISTANCE = "kl"
    # Temperature of ViewLogitsTerm, 10 (the authors' code).
    cfg.DISTILLATION.VKD.TEMPERATURE = 10.0
    # beta: weight of DistancePreservationTerm, 1e-4 (the authors' code).
    cfg.DISTILLATION.VKD.DISTANCE_WEIGHT = 0.0001


def _add_global_knowledge(cfg: CfgNode) -> None:
    CN = type(cfg)  # noqa: N806
    # Terms of Tang et al. (ECCV 2022): prototypes of every class and feature map, picked from the
    # training set, say how far student and teacher agree on a region.
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE = CN()
    # Feature maps with prototypes; empty takes all of the same name and stride in both networks.
    # (kd_search)
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.FEATURES = []
    # Prototypes of every group (GROUPS) and feature map: 10 (the authors' code).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.PER_CLASS = 10
    # How far both spaces have to agree on the weights of the pursuit: 10 (the authors'
    # code).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.ALPHA = 10.0
    # Of the instances, this percentage with the lowest density is no prototype: 40 (the authors'
    # code).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.PERCENTILE = 40.0
    # Width of the kernel of that density, in units of 1 - cos: 0.1 (the authors' code).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.BANDWIDTH = 0.1
    # Images of every class, at most, that instances are taken from: 800 (the authors' code).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.IMAGES_PER_CLASS = 800
    # Instances are wider and higher than this, pixels of the original image: 30 (the authors'
    # code).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.MIN_SIZE = 30.0
    # Take boxes that the teacher detects, too, where they overlap no annotated one. The authors'
    # code reads its boxes from a file and sets every confidence to 1; its configuration names the
    # annotations. (kd_search)
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.CONFIDENT_BOXES = False
    # Score that such boxes exceed: 0.9 (the authors' configuration, where it filters nothing).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.MIN_SCORE = 0.9
    # Iterations between two generations of prototypes; 0 for an epoch (the authors' code).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.PERIOD = 0
    # "class": prototypes of every class. "identity": of every cluster of people that look alike;
    # person search only, whose one class would have PER_CLASS prototypes in all. Not in the paper.
    # (kd_search)
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.GROUPS = "class"
    # Clusters of people where GROUPS is "identity". (kd_search)
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.CLUSTERS = 8
    # A region's feature is the mean of SAMPLES x SAMPLES points; 0 takes one for every cell. The
    # authors' code takes the mean of the cells. (kd_search)
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.SAMPLES = 7
    # Regions of less than twice this size, pixels, belong to the finest map, of less than four
    # times to the next, and so on: 56 (the authors' code).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.FINEST_SCALE = 56.0
    # Weigh regions by agreement; False weighs all 1, for ablations. (kd_search)
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.WEIGHTED = True
    # Weight of GlobalKnowledgeTerm: 5 (the authors' code).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.PROJECTION_WEIGHT = 5.0
    # Weight of WeightedFeatureTerm inside of boxes: 1 (the authors' code).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.FOREGROUND_WEIGHT = 1.0
    # Weight of WeightedFeatureTerm outside of boxes: 4 (the authors' code).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.BACKGROUND_WEIGHT = 4.0
    # WeightedFeatureTerm over feature maps: "mean" or "sum"; "auto" takes the mean for two-stage
    # students and the sum for RetinaNet (the authors' code).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.LEVEL_REDUCTION = "auto"
    # Side of the convolutions of WeightedFeatureTerm: 3 (the authors' code). They run over whole
    # maps: beside a small student 1 is much faster.
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.ADAPTER_KERNEL = 3
    # Weight of WeightedSoftLabelTerm: 1 (the authors' code).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.SOFT_LABEL_WEIGHT = 1.0
    # Temperature of WeightedSoftLabelTerm: 2 (the authors' code).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.TEMPERATURE = 2.0
    # WeightedSoftLabelTerm of RetinaNet: KL of the "softmax" over its class logits (the authors'
    # code), or of a "binary" distribution for every class, as its own loss has. (kd_search)
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.ONE_STAGE_DIVERGENCE = "softmax"
    # Fade GlobalKnowledgeTerm and WeightedFeatureTerm out linearly over training, by iterations
    # (the authors' code: by epochs).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.ATTENUATION = True
