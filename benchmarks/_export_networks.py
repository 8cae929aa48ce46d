"""Networks and pictures of the benchmark ``export``."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from _distill_networks import REPO, STUDENT, build, config
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from PIL import Image
from torch import nn

from kd_search.export.gate_pictures import encoded, made_scene

#: Height and width of a picture; multiples of 32, and so without padding.
SIZES = ((256, 256), (608, 800))
_PEOPLE = 6


def scene(size, seed=0):
    """(H, W, 3) uint8 RGB pixels and boxes."""
    return made_scene(np.random.default_rng(seed), size, _PEOPLE)


def picture_bytes(size) -> bytes:
    """A JPEG file of twice the size, as a camera gives it."""
    return encoded(scene((2 * size[0], 2 * size[1]))[0], "scene.jpg")


def student_config(size):
    cfg = config(STUDENT)
    cfg.MODEL.OIM.ENABLED = False
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = min(size), max(size)
    return cfg


def teacher_config():
    cfg = config("r50_fpn", REPO / "configs" / "prw")
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.OIM.ENABLED = False
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    # Statistics of the batch, for set_statistics.
    cfg.MODEL.RESNETS.NORM = "BN"
    return cfg


def trained(cfg, weights="", steps=60) -> nn.Module:
    """A network in evaluation mode, with the weights of a file, or trained on a few scenes.

    Random weights find people everywhere or nowhere, and the time of a network with region heads
    depends on their number.
    """
    model = build(cfg)
    if weights:
        from kd_search.checkpoint import load_trained

        load_trained(model, weights)
        return model.eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with EventStorage():
        for step in range(steps):
            losses = model([_training_input(step * 2 + i) for i in range(2)])
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
    return model.eval()


def _training_input(seed):
    pixels, boxes = scene((192, 256), seed)
    people = Instances(pixels.shape[:2])
    people.gt_boxes = Boxes(torch.tensor(boxes))
    people.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    people.gt_person_ids = torch.full((len(boxes),), -1)
    return {"image": as_tensor(pixels), "instances": people}


def as_tensor(pixels) -> torch.Tensor:
    """(3, H, W) BGR of RGB pixels."""
    return torch.from_numpy(pixels[:, :, ::-1].transpose(2, 0, 1).copy())


def first_result(model: Path, picture: bytes, folder: Path, threads: int) -> dict:
    """Seconds and peak memory (MiB) of a new process from its start to the first result."""
    file = folder / "scene.jpg"
    file.write_bytes(picture)
    program = f"""
import json, time
start = time.perf_counter()
from kd_search.runtime import PersonSearcher
searcher = PersonSearcher.load({str(model)!r}, threads={threads})
searcher.detect({str(file)!r})
seconds = time.perf_counter() - start
# Not getrusage(), which counts the memory of the process that started this one.
lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({{"seconds": seconds, "peak_mib": int(lines["VmHWM"].split()[0]) / 1024}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def decoded_size(picture: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(picture)) as image:
        return image.size[::-1]
