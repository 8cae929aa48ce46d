"""Config keys of global knowledge (Tang et al., ECCV 2022)."""

from __future__ import annotations

from detectron2.config import CfgNode

from kd_search.config import register_config


@register_config
def add_global_knowledge_config(cfg: CfgNode) -> None:
    """Add ``DISTILLATION.GLOBAL_KNOWLEDGE``."""
    CN = type(cfg)  # noqa: N806
    # Terms of Tang et al. (ECCV 2022): regions are weighted by their similarity to prototypes of
    # every class and feature map, which are selected from the training set.
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE = CN()
    # Feature maps with prototypes; empty: all of the same name and stride in both networks.
    # (kd_search)
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.FEATURES = []
    # Prototypes of every group (GROUPS) and feature map: 10 (the authors' code).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.PER_CLASS = 10
    # Penalty on different weights of the matching pursuit in the two spaces: 10 (the authors'
    # code).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.ALPHA = 10.0
    # Percentage of instances that are excluded for their low density: 40 (the authors' code).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.PERCENTILE = 40.0
    # Width of the kernel of that density, in units of 1 - cos: 0.1 (the authors' code).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.BANDWIDTH = 0.1
    # Maximum number of images of a class that instances are taken from: 800 (the authors' code).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.IMAGES_PER_CLASS = 800
    # Instances are wider and higher than this, pixels of the original image: 30 (the authors'
    # code).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.MIN_SIZE = 30.0
    # Also take detections of the teacher that overlap no annotated box. The authors' code reads
    # boxes from a file and sets every confidence to 1; its configuration names the annotations.
    # (kd_search)
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.CONFIDENT_BOXES = False
    # Score that such detections exceed: 0.9 (the authors' configuration, without effect there).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.MIN_SCORE = 0.9
    # Iterations between two generations of prototypes; 0 for an epoch (the authors' code).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.PERIOD = 0
    # "class": prototypes of every class. "identity": of every cluster of people that look alike,
    # for person search, which has one class. Not in the paper. (kd_search)
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.GROUPS = "class"
    # Number of clusters with GROUPS "identity". (kd_search)
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.CLUSTERS = 8
    # A region's feature is the mean of SAMPLES x SAMPLES points; 0 takes one for every cell. The
    # authors' code takes the mean of the cells. (kd_search)
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.SAMPLES = 7
    # Regions of less than twice this size, pixels, belong to the finest map, of less than four
    # times to the next, and so on: 56 (the authors' code).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.FINEST_SCALE = 56.0
    # Weight regions; False gives all the weight 1, for ablations. (kd_search)
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.WEIGHTED = True
    # Weight of GlobalKnowledgeTerm: 5 (the authors' code).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.PROJECTION_WEIGHT = 5.0
    # Weight of WeightedFeatureTerm inside of boxes: 1 (the authors' code).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.FOREGROUND_WEIGHT = 1.0
    # Weight of WeightedFeatureTerm outside of boxes: 4 (the authors' code).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.BACKGROUND_WEIGHT = 4.0
    # Reduction of WeightedFeatureTerm over feature maps: "mean" or "sum"; "auto" is the mean for
    # two-stage students and the sum for RetinaNet (the authors' code).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.LEVEL_REDUCTION = "auto"
    # Kernel size of the convolutions of WeightedFeatureTerm: 3 (the authors' code); 1 is much
    # faster for a small student.
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.ADAPTER_KERNEL = 3
    # Weight of WeightedSoftLabelTerm: 1 (the authors' code).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.SOFT_LABEL_WEIGHT = 1.0
    # Temperature of WeightedSoftLabelTerm: 2 (the authors' code).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.TEMPERATURE = 2.0
    # WeightedSoftLabelTerm of RetinaNet: KL of the "softmax" over its class logits (the authors'
    # code), or of a "binary" distribution for every class, as in its own loss. (kd_search)
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.ONE_STAGE_DIVERGENCE = "softmax"
    # Fade out GlobalKnowledgeTerm and WeightedFeatureTerm linearly over training, by iterations
    # (the authors' code: by epochs).
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.ATTENUATION = True
