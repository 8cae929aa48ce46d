"""A RetinaNet small enough for unit tests, and batches with objects of three classes for it."""

import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from tiny import SIZE, picture

import kd_search.modeling  # noqa: F401  registers the network
from kd_search.config import get_cfg

NUM_CLASSES = 3


def tiny_retinanet_cfg(*overrides):
    """Config of a quarter-width ResNet-18 with 16 channels in pyramid and head."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.META_ARCHITECTURE = "DistillableRetinaNet"
    cfg.MODEL.BACKBONE.NAME = "build_width_retinanet_resnet_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.WIDTH_MULTIPLIER = 0.25
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [
        [size, size * 2 ** (1 / 3), size * 2 ** (2 / 3)] for size in (32, 64, 128, 256, 512)
    ]
    cfg.MODEL.RETINANET.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    cfg.MODEL.RETINANET.SMOOTH_L1_LOSS_BETA = 0.0
    cfg.merge_from_list(list(overrides))
    return cfg


def object_input(classes=(0, 1, 2), seed: int = 0) -> dict:
    """One training input with an object per class, side by side, of growing height."""
    boxes = [[4.0 + 40 * i, 6.0, 42.0 + 40 * i, 40.0 + 20 * i] for i in range(len(classes))]
    instances = Instances(SIZE)
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    height, width = SIZE
    return {
        "image": picture(seed),
        "instances": instances,
        "height": height,
        "width": width,
        "file_name": f"picture{seed}.jpg",
        "image_id": seed,
    }


def build(name: str = "DistillableRetinaNet", *overrides):
    """The network with weights by seed 0."""
    torch.manual_seed(0)
    return build_model(tiny_retinanet_cfg("MODEL.META_ARCHITECTURE", name, *overrides))


def batch() -> list[dict]:
    """Two images, with three objects and with one."""
    return [object_input(), object_input((2,), seed=1)]


def forward_train(model, inputs):
    """Losses and outputs of a training step."""
    with EventStorage():
        return model.forward_train(inputs)
