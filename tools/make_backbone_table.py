#!/usr/bin/env python
"""Write the table of docs/backbones.md by building and running every network that it names.

python tools/make_backbone_table.py [NETWORK ...]   # print rows
python tools/make_backbone_table.py --write         # all rows, into the page; requires timm

Each network is built by its config with random weights. "FPN": the pyramid ran forward and backward
on an image of 96 x 160 pixels, and its levels had the sizes of their strides. "C4": so did stem to
res4 and, for two regions of 14 x 14 cells, the rest.
"""

import argparse
import logging
import re
import sys
from pathlib import Path

import torch
from detectron2.modeling import build_backbone

import kd_search.modeling  # noqa: F401  registers the backbones
from kd_search.config import get_cfg
from kd_search.modeling.backbones.layer_chain import LAST, find_layers, split_at
from kd_search.modeling.backbones.torchvision_backbones import build_last_stage, create_network

TARGET = Path(__file__).resolve().parent.parent / "docs" / "backbones.md"
TORCHVISION = (
    *("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet1_0"),
    *("shufflenet_v2_x1_0", "efficientnet_b0", "efficientnet_b3", "efficientnet_v2_s"),
    *("convnext_tiny", "swin_t", "swin_v2_t", "resnet18", "resnet50", "resnext50_32x4d"),
    *("regnet_y_400mf", "densenet121", "googlenet", "vgg11_bn"),
    *("alexnet", "inception_v3", "maxvit_t", "squeezenet1_1", "vit_b_16"),
)
TIMM = (
    *("timm:mobilenetv2_050", "timm:mobilenetv3_small_050", "timm:mobilenetv4_conv_small"),
    *("timm:efficientnet_b0", "timm:ghostnet_100", "timm:convnext_atto"),
    *("timm:edgenext_xx_small", "timm:swin_tiny_patch4_window7_224", "timm:resnet18"),
    *("timm:regnety_002", "timm:hrnet_w18_small", "timm:vit_tiny_patch16_224"),
)
STAGES = ("res2", "res3", "res4", "res5")
HEAD = (
    "| network | parameters | strides | channels of res2 to res5 | of last | FPN | C4 |",
    "|---|---|---|---|---|---|---|",
)
_SIZE = (96, 160)
_TABLE = re.compile(r"(<!-- table: tools/make_backbone_table.py -->\n).*?(\n<!-- end -->)", re.S)


def row(name: str) -> str:
    """The row of a network; that of a refused one has the reason."""
    try:
        network = create_network(name)
        layers = find_layers(network)
        at = [layers[split_at(layers, stage) - 1] for stage in (*STAGES, LAST)]
    except ValueError as error:
        reason = re.sub(r"\s*\(.*", "", str(error))
        return f"| `{name}` | {' | '.join('-' * 4)} | refused: {reason} | - |"
    count = sum(p.numel() for x in layers for p in network.get_submodule(x.name).parameters())
    *stages, last = at
    cells = (
        f"`{name}`",
        f"{count / 1e6:.2f} M",
        ", ".join(str(x.stride) for x in stages),
        ", ".join(str(x.channels) for x in stages),
        str(last.channels),
        tried(run_fpn, name),
        tried(run_c4, name),
    )
    return f"| {' | '.join(cells)} |"


def tried(run, name: str) -> str:
    """ "yes", or why it failed."""
    try:
        run(name)
    except ValueError as error:
        return f"no: {error}"
    return "yes"


def run_fpn(name: str) -> None:
    fpn = build_backbone(_config(name, "build_torchvision_fpn_backbone"))
    levels = fpn(torch.zeros(2, 3, *_SIZE))
    for level, shape in fpn.output_shape().items():
        if shape.stride <= 32 and levels[level].shape[2:] != _size(shape.stride):
            raise ValueError(f"{level} is of {tuple(levels[level].shape)}")
    sum(x.square().mean() for x in levels.values()).backward()


def run_c4(name: str) -> None:
    cfg = _config(name, "build_torchvision_backbone")
    backbone = build_backbone(cfg)
    stage, channels = build_last_stage(cfg)
    res4 = backbone(torch.zeros(2, 3, *_SIZE))["res4"]
    if res4.shape[2:] != _size(16):
        raise ValueError(f"res4 is of {tuple(res4.shape)}")
    regions = torch.nn.functional.interpolate(res4, (14, 14))
    found = stage(regions)
    if found.shape != (2, channels, 7, 7):
        raise ValueError(f"regions become {tuple(found.shape)}")
    found.square().mean().backward()


def _size(stride: int) -> tuple[int, ...]:
    return tuple(side // stride for side in _SIZE)


def _config(name: str, builder: str):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = builder
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.TORCHVISION.NAME = name
    cfg.MODEL.FPN.IN_FEATURES = list(STAGES)
    cfg.MODEL.FPN.OUT_CHANNELS = 64
    return cfg


def filled(text: str, rows: list[str]) -> str:
    """The text of the page with its table replaced."""
    table = "\n".join((*HEAD, *rows))
    return _TABLE.sub(lambda found: found[1] + table + found[2], text)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help="as MODEL.TORCHVISION.NAME")
    parser.add_argument("--write", action="store_true", help="write all rows into the page")
    args = parser.parse_args()
    # Random weights are meant.
    logging.getLogger("kd_search").setLevel(logging.ERROR)
    torch.manual_seed(0)
    rows = []
    for name in (*TORCHVISION, *TIMM) if args.write else args.networks or TORCHVISION:
        rows.append(row(name))
        print(rows[-1], flush=True)
    if args.write:
        TARGET.write_text(filled(TARGET.read_text(), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
