"""Tiny networks that were trained long enough to find figures and to tell them apart a little.

The student of the demo's tiny preset would prove less: after a few steps of training it finds as
many people as it may in every picture, so that nobody is ever missing or added. The processes of a
test run share them: the first one that needs a network trains it.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from tiny import tiny_cfg
from torch import nn

from kd_search.export.gate_pictures import made_scene
from kd_search.export.model_file import export_model

SIZE = (96, 128)
#: Pictures in a batch, and steps.
_SCHEDULE = {"fpn": (4, 100), "c4": (2, 60)}
_ANCHORS = {
    "fpn": [
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[24], [48], [96]]),
        *("MODEL.RPN.IN_FEATURES", ["p3", "p4", "p5"]),
        *("MODEL.FPN.NORM", "BN", "MODEL.REID_HEAD.NUM_CONV", 1),
        *("MODEL.FPN.OUT_CHANNELS", 32, "MODEL.ROI_BOX_HEAD.FC_DIM", 64),
    ],
    "c4": [
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[24, 48, 96]]),
        *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 8),
    ],
}


@cache
def trained_network(kind: str, backbone: str = "") -> tuple[CfgNode, nn.Module]:
    """A network that was trained on made scenes of 96 x 128 pixels for a few seconds.

    Args:
        kind: "fpn" or "c4".
        backbone: as ``MODEL.TORCHVISION.NAME``; by default a ResNet-18 of a quarter of the width.
    """
    torch.manual_seed(0)
    cfg = tiny_cfg(
        kind,
        *("INPUT.MIN_SIZE_TEST", 96, "INPUT.MAX_SIZE_TEST", 192),
        *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 64, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.3),
        *("MODEL.OIM.ENABLED", False, "MODEL.RPN.PRE_NMS_TOPK_TEST", 100),
        *("TEST.DETECTIONS_PER_IMAGE", 30, "MODEL.PIXEL_STD", [57.0, 57.0, 57.0]),
        *_ANCHORS[kind],
        *(_backbone_keys(kind, backbone) if backbone else ()),
    )
    model = build_model(cfg)
    for module in model.modules() if backbone else ():
        if isinstance(module, nn.BatchNorm2d):
            # Of 0.01, as some have, the statistics would still be the initial ones.
            module.momentum = 0.1
    path = shared_folder() / f"{kind}{backbone.replace(':', '_')}.pth"
    with locked(path):
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
        else:
            _train(kind, model.train())
            torch.save(model.state_dict(), path)
    return cfg, model.eval()


def _backbone_keys(kind: str, name: str) -> tuple:
    builder = "build_torchvision_fpn_backbone" if kind == "fpn" else "build_torchvision_backbone"
    # Others have one width.
    width = 0.25 if name == "mobilenet_v2" else 1.0
    return (
        *("MODEL.BACKBONE.NAME", builder, "MODEL.TORCHVISION.NAME", name),
        *("MODEL.TORCHVISION.WIDTH_MULTIPLIER", width),
        *("MODEL.TORCHVISION.OUT_FEATURES", ["res4"]),
        *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
        *("MODEL.TORCHVISION.OUT_NORM", kind == "fpn" and ("swin" in name or "convnext" in name)),
    )


def _train(kind: str, model: nn.Module) -> None:
    # Otherwise anchors where the RPN sees nothing have the highest scores, and all the same.
    torch.nn.init.constant_(model.proposal_generator.rpn_head.objectness_logits.bias, -3.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rng = np.random.default_rng(7)
    batch, steps = _SCHEDULE[kind]
    with EventStorage():
        for _ in range(steps):
            losses = model([_training_input(rng) for _ in range(batch)])
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()


def _training_input(rng: np.random.Generator) -> dict:
    pixels, boxes = made_scene(rng, SIZE, int(rng.integers(0, 4)))
    people = Instances(SIZE)
    people.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    people.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    people.gt_person_ids = torch.full((len(boxes),), -1)
    image = torch.from_numpy(pixels[:, :, ::-1].transpose(2, 0, 1).copy())
    return {"image": image, "instances": people}


@cache
def exported_network(kind: str = "fpn") -> Path:
    """ONNX file of :func:`trained_network`; do not change it."""
    cfg, model = trained_network(kind)
    path = shared_folder() / f"{kind}.onnx"
    with locked(path):
        if not path.exists():
            export_model(model, path, cfg=cfg)
    return path


def shared_folder() -> Path:
    """Folder of the test run, which its processes share."""
    return Path(os.environ["KD_SEARCH_TESTS_SHARED"])


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time makes a file."""
    with open(f"{path}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
