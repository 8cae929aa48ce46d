"""Pre-train the backbone of a person search config as a re-ID classifier on person crops.

For use without ImageNet weights. The crops lie in one folder with
Market-1501's naming (``0002_c1s1_000451_03.jpg``: identity 2, camera 1). ``--exclude-camera 6``
leaves out every identity with a crop of camera 6: PRW and Market-1501 show the same people, and
test people must not be used for training.
"""

import argparse
import math
import re
import sys
from pathlib import Path

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm, trange

from kd_search import add_kd_search_config
from kd_search.data.io.image import read_image
from kd_search.modeling import build_width_resnet_backbone
from kd_search.utils.files import atomic_write

CROP_NAME = re.compile(r"^(-?\d+)_c(\d)")
HEIGHT, WIDTH = 128, 64
PAD = 8


def load_crops(folder: Path, exclude_camera: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 3, 128, 64) uint8 BGR crops and their (N,) contiguous identities."""
    found = {p: CROP_NAME.match(p.name) for p in sorted(folder.glob("*.jpg"))}
    keys = {p: (int(match[1]), int(match[2])) for p, match in found.items() if match}
    if not keys:
        raise ValueError(f"{folder} holds no crops named as in Market-1501 (0002_c1s1_...jpg)")
    excluded = {person for person, camera in keys.values() if camera == exclude_camera}
    kept = [(p, person) for p, (person, _) in keys.items() if person not in excluded]
    rows = {person: row for row, person in enumerate(sorted({person for _, person in kept}))}
    crops = np.stack([read_image(str(p)) for p, _ in tqdm(kept, desc="crops")])
    print(f"{len(kept)} crops of {len(rows)} identities; {len(excluded)} identities left out")
    labels = torch.tensor([rows[person] for _, person in kept])
    return torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous(), labels


def augment(crops: torch.Tensor) -> torch.Tensor:
    """Flip half of the batch, and shift each crop by up to ``PAD`` pixels."""
    flip = torch.rand(len(crops)) < 0.5
    crops = torch.where(flip[:, None, None, None], crops.flip(3), crops)
    padded = F.pad(crops, (PAD,) * 4)
    top, left = torch.randint(0, 2 * PAD + 1, (2, len(crops)))
    return torch.stack([p[:, y : y + HEIGHT, x : x + WIDTH] for p, y, x in zip(padded, top, left)])


def train(cfg, crops: torch.Tensor, labels: torch.Tensor, args) -> dict[str, torch.Tensor]:
    """Train, and return the backbone's weights under their names in the person search network."""
    torch.manual_seed(args.seed)
    backbone = build_width_resnet_backbone(cfg, ShapeSpec(channels=3))
    channels = backbone.output_shape()["res5"].channels
    neck = nn.BatchNorm1d(channels)
    classifier = nn.Linear(channels, int(labels.max()) + 1, bias=False)
    modules = nn.ModuleList([backbone, neck, classifier])
    optimizer = torch.optim.SGD(
        modules.parameters(), args.lr, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    batches = len(crops) // args.batch_size
    total = args.epochs * batches
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda i: min(1.0, (i + 1) / batches) * 0.5 * (1 + math.cos(math.pi * i / total)),
    )
    mean = torch.tensor(cfg.MODEL.PIXEL_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(cfg.MODEL.PIXEL_STD).view(1, 3, 1, 1)
    with trange(total, desc="pre-training") as progress:
        for iteration in progress:
            if iteration % batches == 0:
                order = torch.randperm(len(crops))
            start = iteration % batches * args.batch_size
            index = order[start : start + args.batch_size]
            x = (augment(crops[index].float()) - mean) / std
            logits = classifier(neck(backbone(x)["res5"].mean(dim=(2, 3))))
            loss = F.cross_entropy(logits, labels[index], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            right = (logits.argmax(1) == labels[index]).float().mean()
            progress.set_postfix(loss=f"{loss.item():.2f}", right=f"{right.item():.2f}")
    prefix = "backbone.bottom_up." if "fpn" in cfg.MODEL.BACKBONE.NAME else "backbone."
    return {prefix + name: value for name, value in backbone.state_dict().items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="the person search network's config")
    parser.add_argument("--crops", required=True, type=Path, help="folder of crops")
    parser.add_argument("--exclude-camera", type=int, default=0, help="0 for none")
    parser.add_argument("--output", required=True, help="weights file to write (.pth)")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    cfg = get_cfg()
    add_kd_search_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    try:
        crops, labels = load_crops(args.crops, args.exclude_camera)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    weights = train(cfg, crops, labels, args)
    with atomic_write(args.output) as f:
        torch.save({"model": weights}, f)


if __name__ == "__main__":
    main()
