"""Every configuration key of kd_search, with its meaning and where its default comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def add_kd_search_config(cfg: CfgNode) -> None:
    """Add the keys of kd_search to a Detectron2 config, in place.

    Call it on the result of ``detectron2.config.get_cfg()`` before ``merge_from_file``. Keys of
    Detectron2 keep their meaning; everything new lives under the nodes below.
    """
    _add_input(cfg)
    _add_datasets(cfg)
    _add_model(cfg)
    _add_reid_network(cfg)
    _add_reid_backbones(cfg)
    _add_reid_data(cfg)
    _add_reid_test(cfg)
    _add_distillation(cfg)
    _add_training(cfg)
    _add_test(cfg)


def _add_input(cfg: CfgNode) -> None:
    # What to do with an image that is missing or cannot be decoded: "raise" stops and names the
    # file; "skip" draws another image, counts the loss and warns. (kd_search)
    cfg.INPUT.ON_IMAGE_ERROR = "raise"
    # Training stops when more than this fraction of the drawn images was skipped. (kd_search)
    cfg.INPUT.MAX_SKIPPED_FRACTION = 0.01
    # Images with more pixels than this are refused from their header, before decoding, as a guard
    # against decompression bombs. (kd_search)
    cfg.INPUT.MAX_IMAGE_PIXELS = 50_000_000


def _add_datasets(cfg: CfgNode) -> None:
    # People's own data sets, each [name, annotations.json, image folder] and, for a test set, the
    # query file: registered under that name before anything is loaded. (kd_search)
    cfg.DATASETS.PERSON_SEARCH_COCO = []
    # The same for folders of MOTChallenge, each [name, folder, "option=value", ...] with the
    # options of docs/datasets.md. (kd_search)
    cfg.DATASETS.PERSON_SEARCH_MOT = []


def _add_model(cfg: CfgNode) -> None:
    CN = type(cfg)  # noqa: N806
    # Channel multiplier of every stage of build_width_resnet(_fpn)_backbone: 1.0 is the published
    # ResNet, 0.5 the half-width student of DDPS (TMM 2024). (kd_search)
    cfg.MODEL.RESNETS.WIDTH_MULTIPLIER = 1.0
    # Stride of the first block of res5 of these backbones: 2 as published, 1 for re-ID (BoT, CVPRW
    # 2019; VKD, ECCV 2020), which keeps a finer map.
    cfg.MODEL.RESNETS.RES5_STRIDE = 2
    # Leave out the last ReLU, so that features have both signs (VKD, ECCV 2020, its code).
    cfg.MODEL.RESNETS.FINAL_RELU = True

    # Weight of background regions in the hard cross-entropy of the box predictor: 1.0 as in
    # Detectron2. Chen et al. (NIPS 2017) weigh only the soft labels. (kd_search)
    cfg.MODEL.ROI_BOX_HEAD.BACKGROUND_WEIGHT = 1.0

    cfg.MODEL.REID_HEAD = CN()
    # Class from REID_HEAD_REGISTRY that turns pooled region features into embeddings. (kd_search)
    cfg.MODEL.REID_HEAD.NAME = "EmbeddingHead"
    # Feature maps that regions are pooled from; FPN heads only (C4 heads share res5). (kd_search)
    cfg.MODEL.REID_HEAD.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    # Height and width of the pooled region; people are tall (psd2 pools 16x8). FPN heads only.
    cfg.MODEL.REID_HEAD.POOLER_RESOLUTION = [16, 8]
    # RoIAlign samples per cell; 0 adapts to the region, as in Detectron2.
    cfg.MODEL.REID_HEAD.POOLER_SAMPLING_RATIO = 0
    # Region pooling operator, as MODEL.ROI_BOX_HEAD.POOLER_TYPE of Detectron2.
    cfg.MODEL.REID_HEAD.POOLER_TYPE = "ROIAlignV2"
    # 3x3 convolutions before pooling to a vector; OIM (CVPR 2017) has none beyond res5, an FPN
    # level alone is too shallow to tell people apart. (kd_search)
    cfg.MODEL.REID_HEAD.NUM_CONV = 2
    # Channels of these convolutions. (kd_search)
    cfg.MODEL.REID_HEAD.CONV_DIM = 256
    # Normalisation after these convolutions: "", "BN", "GN", ... as Detectron2's get_norm.
    cfg.MODEL.REID_HEAD.NORM = "BN"
    # Pooling to one vector: "avg" as in OIM (CVPR 2017) or "max" as in SeqNet (AAAI 2021).
    cfg.MODEL.REID_HEAD.POOL = "avg"
    # Horizontal stripes that are pooled apart and concatenated before the linear layer; 1 is the
    # global pooling of OIM, more keeps the order head, body, legs (PCB, ECCV 2018).
    cfg.MODEL.REID_HEAD.NUM_STRIPES = 1
    # Length of the embedding: 256 in OIM (CVPR 2017) and nearly all later person search.
    cfg.MODEL.REID_HEAD.EMBEDDING_DIM = 256
    # Normalisation after the linear layer: "" as in OIM, "BN" (1-d) as in NAE and SeqNet.
    cfg.MODEL.REID_HEAD.EMBEDDING_NORM = ""

    # Train a linear classifier of the labelled identities on the embeddings too: cosine logits at
    # MODEL.OIM.TEMPERATURE. DKD (AAAI 2021) compares class probabilities; without a classifier they
    # are those of the OIM table. (kd_search)
    cfg.MODEL.REID_HEAD.CLASSIFIER = False
    # Weight of its cross-entropy. DKD does not say what its re-ID loss is made of. (kd_search)
    cfg.MODEL.REID_HEAD.CLASSIFIER_WEIGHT = 1.0
    # C4 only: a res5 of its own for re-ID, side by side with that of detection as in DKD's figure
    # (AAAI 2021); False shares one, as OIM (CVPR 2017). (kd_search)
    cfg.MODEL.REID_HEAD.SEPARATE_RES5 = False

    cfg.MODEL.OIM = CN()
    # Train the student's own online instance matching loss (OIM, CVPR 2017). Off where the
    # teacher's table replaces it (Munjal et al., BMVC 2019).
    cfg.MODEL.OIM.ENABLED = True
    # Rows of the identity table. CUHK-SYSU 5532, PRW 483 (the 482 of several ports lacks a row).
    # 0 takes the number of identities of DATASETS.TRAIN from its metadata. (kd_search)
    cfg.MODEL.OIM.NUM_IDS = 0
    # Slots of the circular queue for unlabelled people: 5000 for CUHK-SYSU (OIM, CVPR 2017), 500
    # for PRW (later ports), 0 for none.
    cfg.MODEL.OIM.QUEUE_SIZE = 5000
    # Softmax temperature: 0.1 in the paper ("scale 10"); NAE, SeqNet and later ports use 1/30.
    cfg.MODEL.OIM.TEMPERATURE = 0.1
    # Share of the old row kept at an update: v <- m v + (1 - m) x. 0.5 (OIM, CVPR 2017).
    cfg.MODEL.OIM.MOMENTUM = 0.5
    # Weight of the loss: 1.0 (OIM, CVPR 2017).
    cfg.MODEL.OIM.LOSS_WEIGHT = 1.0
    # Recompute the student's table every so many iterations from ground-truth boxes of the
    # training set (IDTableRefreshHook); 0 never. (kd_search)
    cfg.MODEL.OIM.REFRESH_PERIOD = 0


def _add_reid_network(cfg: CfgNode) -> None:
    CN = type(cfg)  # noqa: N806
    # ReIDNetwork: identities of crops and tracklets.
    cfg.MODEL.REID_NETWORK = CN()
    # Identities of the classifier; 0 takes those of DATASETS.TRAIN. (kd_search)
    cfg.MODEL.REID_NETWORK.NUM_IDS = 0
    # Backbone map that is pooled.
    cfg.MODEL.REID_NETWORK.FEATURE = "res5"
    # Of the cross-entropy: 0.1 in BoT (CVPRW 2019), 0 in VKD (ECCV 2020).
    cfg.MODEL.REID_NETWORK.LABEL_SMOOTHING = 0.0
    # Weight of the cross-entropy: 1 (BoT, VKD).
    cfg.MODEL.REID_NETWORK.CLS_WEIGHT = 1.0
    # Weight of the batch-hard triplet loss: 1 (BoT, VKD); 0 for none.
    cfg.MODEL.REID_NETWORK.TRIPLET_WEIGHT = 1.0
    # Its margin; negative for the soft margin log(1 + exp(d_p - d_n)) of VKD.
    cfg.MODEL.REID_NETWORK.MARGIN = -1.0
    # Frames of each set that the network looks at in training, drawn anew in every step: M of VKD
    # (ECCV 2020), whose student sees 2 of the teacher's 8; 0 for all of them.
    cfg.MODEL.REID_NETWORK.TRAIN_VIEWS = 0
    # Embedding compared at test: "after" the neck's normalisation (BoT) or "before" it (VKD).
    cfg.MODEL.REID_NETWORK.TEST_EMBEDDING = "after"


def _add_reid_backbones(cfg: CfgNode) -> None:
    CN = type(cfg)  # noqa: N806
    # build_densenet121_backbone and build_mobilenet_v2_backbone, from torchvision.
    cfg.MODEL.TORCHVISION = CN()
    # Their ImageNet weights: a file with torchvision's names; a name of torchvision's, such as
    # "IMAGENET1K_V1", for the file in torchvision's own cache; or empty for a random start.
    cfg.MODEL.TORCHVISION.WEIGHTS = ""
    # Stride of the last stage: 2 as published; 1 for re-ID, of MobileNet-V2 in VKD (ECCV 2020, its
    # code).
    cfg.MODEL.TORCHVISION.LAST_STRIDE = 2
    # Keep the last activation: torchvision's networks have it, those of VKD do not.
    cfg.MODEL.TORCHVISION.FINAL_ACTIVATION = True

    # build_bam_resnet_backbone: attention after res2, res3 and res4 (BAM, Park et al., BMVC 2018).
    cfg.MODEL.BAM = CN()
    # How channel and spatial attention are joined: "sum" (the paper) or "product" (the authors'
    # code, which VKD uses).
    cfg.MODEL.BAM.COMBINE = "sum"
    # Reduction r of the channels in both branches: 16 (BAM).
    cfg.MODEL.BAM.REDUCTION = 16
    # Dilation d of the spatial branch: 4 (BAM).
    cfg.MODEL.BAM.DILATION = 4


def _add_reid_data(cfg: CfgNode) -> None:
    CN = type(cfg)  # noqa: N806
    cfg.REID_DATA = CN()
    # Height and width of crops: 256x128 for people; 224x224 for vehicles and animals (VKD, ECCV
    # 2020).
    cfg.REID_DATA.SIZE = [256, 128]
    # P identities of a batch, with K = SOLVER.IMS_PER_BATCH / P samples each: 16 and 4 in Luo et
    # al. (CVPR workshops 2019), 8 and 4 in VKD.
    cfg.REID_DATA.IDS_PER_BATCH = 16
    # Probability that a crop is mirrored: 0.5 (Luo et al., VKD).
    cfg.REID_DATA.FLIP_PROB = 0.5
    # Black pixels around the resized crop before one of SIZE is cut out at random: 10 (Luo et al.,
    # VKD).
    cfg.REID_DATA.PAD = 10
    # Probability that a rectangle is painted over with MODEL.PIXEL_MEAN (random erasing, AAAI
    # 2020): 0.5 (Luo et al., VKD).
    cfg.REID_DATA.ERASING_PROB = 0.5
    # Its smallest and largest share of the crop: 0.02, 0.4 (Luo et al., VKD).
    cfg.REID_DATA.ERASING_SCALE = [0.02, 0.4]
    # Its smallest and largest height through width: 0.3, 3.3 for people; 0.7, 1.4 for vehicles
    # (VKD).
    cfg.REID_DATA.ERASING_RATIO = [0.3, 3.3]

    # Spatial-invariant augmentation of the image level (ISA, Zhang et al., AAAI 2021), for crops
    # that are cut from larger images: the box moves instead of the padding above.
    cfg.REID_DATA.SIA = CN()
    # Move boxes; without it every crop is padded. (kd_search)
    cfg.REID_DATA.SIA.IMAGE_LEVEL = False
    # dp: pixels of the re-ID input; as DISTILLATION.SIA.PADDING.
    cfg.REID_DATA.SIA.PADDING = 10.0
    # alpha: pixels of the original image; as DISTILLATION.SIA.LIMIT.
    cfg.REID_DATA.SIA.LIMIT = 20.0

    # Frames of a training sample.
    cfg.REID_DATA.VIEWS = CN()
    # N: 1 for images; 8 in VKD, of which a student sees MODEL.REID_NETWORK.TRAIN_VIEWS.
    cfg.REID_DATA.VIEWS.NUM = 1
    # "tracklet": of one tracklet (teachers of VKD); "cameras": over different cameras, then
    # tracklets (its students); "tracklets": over different tracklets, whatever their camera;
    # "frames": any frames of the identity. (kd_search)
    cfg.REID_DATA.VIEWS.SOURCE = "tracklet"

    cfg.REID_DATA.TEST = CN()
    # "<query>-to-<gallery>" with image or video; for sets of single images all are the same. VKD
    # reports image-to-video and video-to-video.
    cfg.REID_DATA.TEST.SETTINGS = ["video-to-video"]
    # Frames of a video, the first of as many equal chunks of it: 8 (VKD); 0 takes all.
    cfg.REID_DATA.TEST.FRAMES = 8
    # Samples of a batch. (kd_search)
    cfg.REID_DATA.TEST.BATCH_SIZE = 32


def _add_reid_test(cfg: CfgNode) -> None:
    CN = type(cfg)  # noqa: N806
    cfg.TEST.REID = CN()
    # "cosine" (VKD, ECCV 2020) or "euclidean".
    cfg.TEST.REID.METRIC = "cosine"
    # Area under the curve of precision and recall: "market", the trapezoid of Market-1501's own
    # code, which VKD uses; "exact", the mean precision at the hits, as in most later re-ID code
    # (BoT, CVPRW 2019).
    cfg.TEST.REID.AP_RULE = "market"
    # Ranks of the reported top-k accuracies.
    cfg.TEST.REID.TOP_K = [1, 5, 10]
    # Write the embeddings beside the results, so that they can be looked at without the model.
    # (kd_search)
    cfg.TEST.REID.SAVE_EMBEDDINGS = True


def _add_distillation(cfg: CfgNode) -> None:
    CN = type(cfg)  # noqa: N806
    cfg.DISTILLATION = CN()
    # Meta-architecture of the student; MODEL.META_ARCHITECTURE is "Distiller". (kd_search)
    cfg.DISTILLATION.STUDENT_META_ARCH = "PersonSearchRCNN"
    # Names from DISTILLATION_TERM_REGISTRY; any subset, in any order. (kd_search)
    cfg.DISTILLATION.TERMS = []

    cfg.DISTILLATION.TEACHER = CN()
    # Config file of the frozen teacher; empty where no term observes a teacher. (kd_search)
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
    # Recompute the rows every so many iterations (IDTableRefreshHook); 0 never. (kd_search)
    cfg.DISTILLATION.ID_TABLE.REFRESH_PERIOD = 0


def _add_detector_distillation(cfg: CfgNode) -> None:
    CN = type(cfg)  # noqa: N806
    # Classification by the teacher, of RegionClassTerm and AnchorClassTerm.
    cfg.DISTILLATION.SOFT_LABELS = CN()
    # mu of Chen et al. (NIPS 2017): the share of the student's own classification loss, the rest
    # goes to the teacher's labels. The paper gives no value; implementers use 0.5 or 0.8.
    cfg.DISTILLATION.SOFT_LABELS.HARD_WEIGHT = 0.5
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
    # nu for anchors.
    cfg.DISTILLATION.BOUNDED_REGRESSION.ANCHOR_LOSS_WEIGHT = 0.5

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
    # lambda beta_pr: weight of PairRelationTerm. (kd_search)
    cfg.DISTILLATION.DKD.PAIR_WEIGHT = 1.0
    # lambda beta_tr: weight of TripletRelationTerm. (kd_search)
    cfg.DISTILLATION.DKD.TRIPLET_WEIGHT = 1.0
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
    # Temperature of ViewLogitsTerm, 10 (the authors' code).
    cfg.DISTILLATION.VKD.TEMPERATURE = 10.0
    # beta: weight of DistancePreservationTerm, 1e-4 (the authors' code).
    cfg.DISTILLATION.VKD.DISTANCE_WEIGHT = 0.0001


def _add_training(cfg: CfgNode) -> None:
    # "SGD", as in Detectron2 and every person search paper, or "ADAMW", which gets further in the
    # few iterations of the small CPU configs. (kd_search)
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Steps in a row whose loss or gradient is not finite before training stops with an error.
    cfg.SOLVER.MAX_SKIPPED_STEPS = 3
    # Checkpoints kept on disk beside the final one; older ones are removed. (kd_search)
    cfg.SOLVER.CHECKPOINTS_TO_KEEP = 3
    # Execute pickled weights (.pkl) from any source. Arrays-only pickles, such as Detectron2's
    # ImageNet weights, load without it; anything else is refused while this is False.
    cfg.MODEL.TRUST_PICKLE = False


def _add_test(cfg: CfgNode) -> None:
    CN = type(cfg)  # noqa: N806
    cfg.TEST.PERSON_SEARCH = CN()
    # Gallery detections below this score take no part in the search metric: 0.5 (OIM and SeqNet
    # protocol; AlignPS and PSTR use 0.15 to 0.25, so compare with care).
    cfg.TEST.PERSON_SEARCH.SCORE_THRESH = 0.5
    # Detections below this score take no part in detection AP and recall: 0.5 (OIM protocol);
    # SeqNet uses 0.01.
    cfg.TEST.PERSON_SEARCH.DET_SCORE_THRESH = 0.5
    # A detection is right at this IoU; small boxes need less (docs of evaluation). (OIM protocol)
    cfg.TEST.PERSON_SEARCH.IOU_THRESH = 0.5
    # Ranks of the reported top-k accuracies.
    cfg.TEST.PERSON_SEARCH.TOP_K = [1, 5, 10]
    # Search among ground-truth boxes instead of detections: re-ID quality alone.
    cfg.TEST.PERSON_SEARCH.USE_GT_BOXES = False
    # Write detections and embeddings beside the results, so that evaluation can run again
    # without the model. (kd_search)
    cfg.TEST.PERSON_SEARCH.SAVE_FEATURES = True
    # Embed the ground-truth boxes in the same pass as the detections, so that the table of
    # protocols has rows for both. (kd_search)
    cfg.TEST.PERSON_SEARCH.EMBED_GT_BOXES = False
    # Gallery of the returned numbers: "all", a list of the set's protocol such as "G100", or
    # "auto", which is G100 where the set lists it (CUHK-SYSU as the field reports it), else "all".
    cfg.TEST.PERSON_SEARCH.GALLERY = "auto"
    # "cosine" (OIM), or "score_weighted": times the score of the detection (NAE, SeqNet).
    cfg.TEST.PERSON_SEARCH.SIMILARITY = "cosine"
    # Also rate every protocol that the set has, in one table. (kd_search)
    cfg.TEST.PERSON_SEARCH.TABLE = True
    # Gallery sizes of the table, -1 for the whole pool; [] for all that the set's protocol lists
    # (CUHK-SYSU: 50, 100, 500, 1000, 2000, 4000) and the whole pool.
    cfg.TEST.PERSON_SEARCH.GALLERY_SIZES = []
    # Cameras of the table: "all", "cross_camera" (PRW's multi-view gallery), "junk_same_camera"
    # (PRW's own baseline); others than "all" need a set of several cameras.
    cfg.TEST.PERSON_SEARCH.CAMERAS = ["all", "cross_camera", "junk_same_camera"]
    # Modes of the table: "corrected", "compat" (the published evaluation code of the SeqNet family,
    # quirks included; docs/evaluation.md lists them).
    cfg.TEST.PERSON_SEARCH.MODES = ["corrected", "compat"]
    # Also re-rank by context bipartite graph matching. (SeqNet, section 3.4)
    cfg.TEST.PERSON_SEARCH.CBGM = True
    # Most similar detections whose images are looked at again: CUHK-SYSU 10, PRW 30. (SeqNet)
    cfg.TEST.PERSON_SEARCH.CBGM_K1 = 10
    # People of the query's context, itself included: CUHK-SYSU 3, PRW 4. (SeqNet)
    cfg.TEST.PERSON_SEARCH.CBGM_K2 = 3
    # Resamples of the 95 % bootstrap intervals over queries; 0 for none. (kd_search)
    cfg.TEST.PERSON_SEARCH.BOOTSTRAP = 1000
