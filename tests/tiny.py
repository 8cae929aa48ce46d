"""A person search network small enough for unit tests, and batches for it."""

from pathlib import Path

import torch
from detectron2.structures import Boxes, Instances

from kd_search.config import get_cfg

REPO = Path(__file__).resolve().parent.parent

#: Height and width of the pictures.
SIZE = (96, 128)
NUM_IDS = 6


def tiny_cfg(kind: str = "fpn", *overrides):
    """Config of a quarter-width ResNet-18; ``kind`` is "fpn" or "c4"."""
    cfg = get_cfg()
    cfg.merge_from_file(str(REPO / f"configs/Base-PersonSearch-{kind.upper()}.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.WIDTH_MULTIPLIER = 0.25
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.REID_HEAD.CONV_DIM = 16
    cfg.MODEL.REID_HEAD.EMBEDDING_DIM = 8
    cfg.MODEL.OIM.NUM_IDS = NUM_IDS
    cfg.MODEL.OIM.QUEUE_SIZE = 5
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 40
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.merge_from_list(list(overrides))
    return cfg


def tiny_detector_cfg(kind: str = "fpn", num_classes: int = 3, *overrides):
    """The same network without a re-ID branch, in Detectron2's own classes."""
    return tiny_cfg(
        kind,
        *("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.PROPOSAL_GENERATOR.NAME", "RPN"),
        *("MODEL.ROI_HEADS.NAME", "StandardROIHeads" if kind == "fpn" else "Res5ROIHeads"),
        *("MODEL.ROI_HEADS.NUM_CLASSES", num_classes),
        *overrides,
    )


def detection_input(classes=(0, 2, 1), seed: int = 0) -> dict:
    """One training input with an object per class index, side by side, without identities."""
    x = training_input((-1,) * len(classes), seed)
    x["instances"].gt_classes = torch.tensor(classes, dtype=torch.int64)
    x["instances"].remove("gt_person_ids")
    return x


def picture(seed: int = 0, size=SIZE) -> torch.Tensor:
    """(3, H, W) uint8 noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)


def training_input(person_ids=(0, -1, 3), seed: int = 0) -> dict:
    """One training input with a person per id, side by side."""
    boxes = [[5.0 + 30 * i, 10.0, 28.0 + 30 * i, 80.0] for i in range(len(person_ids))]
    instances = Instances(SIZE)
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.zeros(len(person_ids), dtype=torch.int64)
    instances.gt_person_ids = torch.tensor(person_ids, dtype=torch.int64)
    height, width = SIZE
    return {
        "image": picture(seed),
        "instances": instances,
        "height": height,
        "width": width,
        "file_name": f"picture{seed}.jpg",
        "image_id": seed,
    }
