"""A tiny network with several detections in some images and none in others."""

from functools import cache
from typing import NamedTuple

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from tiny import picture, tiny_cfg
from torch import nn

import kd_search.modeling  # noqa: F401  registers
from kd_search.export import trace_person_search

#: Odd sizes, smaller and larger than that of the traced image.
SIZES = ((96, 128), (97, 65), (33, 150), (160, 131), (64, 80))


class Network(NamedTuple):
    cfg: CfgNode
    model: nn.Module
    #: Network inputs of several sizes, one of them without a detection.
    images: list


@cache
def searching_network(kind: str) -> Network:
    """Random weights, with the score threshold set so that one of the images has no detection."""
    torch.manual_seed(1)
    cfg = tiny_cfg(kind, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    model = build_model(cfg).eval()
    images = [picture(seed, size) for seed, size in enumerate(SIZES)]
    predictor = model.roi_heads.box_predictor
    with torch.no_grad():
        boxes = torch.tensor([[0.0, 0, 60, 90], [20, 10, 50, 80], [70, 30, 120, 90]])
        features = model.backbone(model.preprocess_image([{"image": images[0]}]).tensor)
        logits, deltas = model.roi_heads.predict_boxes(features, [Boxes(boxes)])
        # Random layers amplify: brought back to the size that trained layers give.
        predictor.cls_score.weight.div_(logits.abs().max())
        predictor.bbox_pred.weight.div_(deltas.abs().max())
        best = [model([{"image": image}])[0]["instances"].scores.max() for image in images]
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = float(min(best)) + 1e-6
    predictor.test_score_thresh = cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST
    return Network(cfg, model, images)


@cache
def traced_network(kind: str):
    return trace_person_search(searching_network(kind).model)


@pytest.fixture(params=("fpn", "c4"))
def kind(request) -> str:
    return request.param


@pytest.fixture
def network(kind) -> Network:
    return searching_network(kind)


@pytest.fixture
def traced(kind):
    return traced_network(kind)


@pytest.fixture(scope="session")
def fpn() -> Network:
    return searching_network("fpn")


@pytest.fixture(scope="session")
def traced_fpn():
    return traced_network("fpn")
