"""Keys of the networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def add_model(cfg: CfgNode) -> None:
    """Add the keys of networks."""
    _add_model(cfg)
    _add_reid_network(cfg)
    _add_two_step(cfg)
    _add_reid_backbones(cfg)


def _add_model(cfg: CfgNode) -> None:
    CN = type(cfg)  # noqa: N806
    # Channel multiplier of every stage of build_width_resnet(_fpn)_backbone: 1.0 is the published
    # ResNet, 0.5 the half-width student of DDPS (TMM 2024). (kd_search)
    cfg.MODEL.RESNETS.WIDTH_MULTIPLIER = 1.0
    # Stride of the first block of res5 of these backbones: 2 as published, 1 for re-ID (BoT, CVPRW
    # 2019; VKD, ECCV 2020), which keeps a finer map.
    cfg.MODEL.RESNETS.RES5_STRIDE = 2
    # Keep the last ReLU; without it features have both signs (VKD, ECCV 2020).
    cfg.MODEL.RESNETS.FINAL_RELU = True
    # Keep the ReLUs of the last block of res5, the last one included. VKD's networks have none: its
    # code replaces the module that all activations of torchvision's block share. (VKD, ECCV 2020,
    # its code)
    cfg.MODEL.RESNETS.LAST_BLOCK_RELUS = True

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
    # level alone is too shallow for identities. (kd_search)
    cfg.MODEL.REID_HEAD.NUM_CONV = 2
    # Channels of these convolutions. (kd_search)
    cfg.MODEL.REID_HEAD.CONV_DIM = 256
    # Normalisation after these convolutions: "", "BN", "GN", ... as Detectron2's get_norm.
    cfg.MODEL.REID_HEAD.NORM = "BN"
    # Pooling to one vector: "avg" as in OIM (CVPR 2017) or "max" as in SeqNet (AAAI 2021).
    cfg.MODEL.REID_HEAD.POOL = "avg"
    # Horizontal stripes that are pooled separately and concatenated before the linear layer; 1 is
    # the global pooling of OIM, more keeps the order head, body, legs (PCB, ECCV 2018).
    cfg.MODEL.REID_HEAD.NUM_STRIPES = 1
    # Length of the embedding: 256 in OIM (CVPR 2017) and nearly all later person search.
    cfg.MODEL.REID_HEAD.EMBEDDING_DIM = 256
    # Normalisation after the linear layer: "" as in OIM, "BN" (1-d) as in NAE and SeqNet.
    cfg.MODEL.REID_HEAD.EMBEDDING_NORM = ""

    # Also train a linear classifier of the labelled identities on the embeddings: cosine logits at
    # MODEL.OIM.TEMPERATURE. DKD (AAAI 2021) compares class probabilities; without a classifier they
    # are those of the OIM table. (kd_search)
    cfg.MODEL.REID_HEAD.CLASSIFIER = False
    # Weight of its cross-entropy. DKD does not specify its re-ID loss. (kd_search)
    cfg.MODEL.REID_HEAD.CLASSIFIER_WEIGHT = 1.0
    # C4 only: a separate res5 for re-ID, parallel to that of detection as in DKD's figure (AAAI
    # 2021); False shares one, as OIM (CVPR 2017). (kd_search)
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
    # Iterations between two refreshes of the student's own table by means of the student's
    # embeddings of ground-truth boxes of the training set (IDTableRefreshHook); 0 for none.
    # (kd_search)
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
    # Frames of each set that are used in training, sampled in every step: M of VKD (ECCV 2020),
    # whose student has 2 of the teacher's 8; 0 for all of them.
    cfg.MODEL.REID_NETWORK.TRAIN_VIEWS = 0
    # Embedding compared at test: "after" the neck's normalisation (BoT) or "before" it (VKD).
    cfg.MODEL.REID_NETWORK.TEST_EMBEDDING = "after"


def _add_two_step(cfg: CfgNode) -> None:
    CN = type(cfg)  # noqa: N806
    # TwoStepSearch: a detector, which is the network of this config, and a re-ID network.
    cfg.MODEL.TWO_STEP = CN()
    cfg.MODEL.TWO_STEP.REID = CN()
    # Config file of the re-ID network (ReIDNetwork), or name of a shipped one. (kd_search)
    cfg.MODEL.TWO_STEP.REID.CONFIG_FILE = ""
    # Its weights; empty: MODEL.WEIGHTS of its config file. (kd_search)
    cfg.MODEL.TWO_STEP.REID.WEIGHTS = ""
    # "KEY VALUE" overrides of its config. (kd_search)
    cfg.MODEL.TWO_STEP.REID.OPTS = []


def _add_reid_backbones(cfg: CfgNode) -> None:
    CN = type(cfg)  # noqa: N806
    # build_torchvision_backbone, build_torchvision_fpn_backbone and
    # build_retinanet_torchvision_fpn_backbone; docs/backbones.md.
    cfg.MODEL.TORCHVISION = CN()
    # Network: a name of torchvision.models, or "timm:NAME" for one of timm, which is installed
    # separately. (kd_search)
    cfg.MODEL.TORCHVISION.NAME = "mobilenet_v2"
    # Its ImageNet weights: a file with torchvision's, or timm's, names; a name of torchvision's,
    # such as "IMAGENET1K_V1", for the file in torchvision's own cache; or empty for a random start.
    cfg.MODEL.TORCHVISION.WEIGHTS = ""
    # Channel multiplier of the networks that have one (MobileNets, CVPR 2018); 1.0 as published.
    cfg.MODEL.TORCHVISION.WIDTH_MULTIPLIER = 1.0
    # Maps of build_torchvision_backbone: "res2" to "res5", the deepest maps of strides 4 to 32, and
    # "last", behind the 1x1 convolution that MobileNets and EfficientNets end with. For C4
    # ["res4"]: the ROI heads run the rest of the network. Pyramids output MODEL.FPN.IN_FEATURES.
    # (Detectron2: MODEL.RESNETS.OUT_FEATURES)
    cfg.MODEL.TORCHVISION.OUT_FEATURES = ["res4"]
    # What replaces batch normalisation: "BN", "FrozenBN", "SyncBN", "GN", ... as
    # MODEL.RESNETS.NORM of Detectron2; "BN" keeps it. Other kinds stay, as the LayerNorms of Swin.
    cfg.MODEL.TORCHVISION.NORM = "BN"
    # A LayerNorm on every output map, as Swin's detectors have (ICCV 2021, its code): for networks
    # whose stages end without a normalisation, Swin and ConvNeXt.
    cfg.MODEL.TORCHVISION.OUT_NORM = False
    # Stride of the last stage: 2 as published; 1 for re-ID, of MobileNet-V2 in VKD (ECCV 2020, its
    # code).
    cfg.MODEL.TORCHVISION.LAST_STRIDE = 2
    # Keep the last activation: torchvision's networks have it, those of VKD do not.
    cfg.MODEL.TORCHVISION.FINAL_ACTIVATION = True

    # build_bam_resnet_backbone: attention after res2, res3 and res4 (BAM, Park et al., BMVC 2018).
    cfg.MODEL.BAM = CN()
    # How channel and spatial attention are combined: "sum" (the paper) or "product" (the authors'
    # code, which VKD uses).
    cfg.MODEL.BAM.COMBINE = "sum"
    # Reduction r of the channels in both branches: 16 (BAM).
    cfg.MODEL.BAM.REDUCTION = 16
    # Dilation d of the spatial branch: 4 (BAM).
    cfg.MODEL.BAM.DILATION = 4
