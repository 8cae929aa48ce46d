"""Config keys of global knowledge (Tang et al., ECCV 2022)."""

from __future__ import annotations

from detectron2.config import CfgNode

from kd_search.config import register_config


@register_config
def add_global_knowledge_config(cfg: CfgNode) -> None:
    """Add ``DISTILLATION.GLOBAL_KNOWLEDGE``."""
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
