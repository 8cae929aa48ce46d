#!/usr/bin/env python
"""Show the prototypes of a distilled training, and the annotated boxes of low weight.

    python projects/GlobalKnowledge/look.py \\
        --config-file output/global_knowledge/ablation_objects/+soft/seed1/config.yaml \\
        --output output/look.html

The page has the prototypes by class and feature map, and training images with every annotated box
in the colour of r, the agreement of student and teacher on it; the lowest come first. The rank
correlations of r with the size of boxes and with the visible share are printed. With an --output
that ends in .png two pictures are written, <name>_prototypes.png and <name>_agreement.png.

Exit status: 0 drawn, 2 the input cannot be used.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Optional

import numpy as np
from agreement import draw_boxes_in_order, lowest_boxes, scale_start
from contact_sheet import draw_sheet
from look_measures import (
    agreement_correlations,
    choose_positions,
    class_names,
    load_distiller,
    measure_images,
    prototype_pictures,
    read_scene,
)
from prototype_page import first_scenes, write_prototype_page

from kd_search.data.training_records import training_records
from kd_search.engine import build_config
from kd_search.visualization import write_picture

_PAGES = (".html", ".htm")
_PICTURE = ".png"


def parse_args(argv: Optional[list[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, help="of the training, such as config.yaml of its folder")
    add("--checkpoint", help="default: model_final.pth of the config's OUTPUT_DIR")
    add("--output", required=True, metavar="FILE", help=".html or .png")
    add("--measured", type=int, default=100, metavar="N", help="training images that are measured")
    add("--images", type=int, default=12, metavar="N", help="of these shown, the lowest first")
    add("--boxes", type=int, default=40, metavar="N", help="boxes cut out, the lowest first")
    add("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides of the config")
    return parser.parse_args(argv)


def main(argv: Optional[list[str]] = None) -> int:
    args = parse_args(argv)
    try:
        look(args)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def look(args: argparse.Namespace) -> None:
    """Write the page or the pictures.

    Raises:
        FileNotFoundError, ValueError: wrong input, in one line.
    """
    suffix = os.path.splitext(args.output)[1].lower()
    if suffix not in (*_PAGES, _PICTURE):
        raise ValueError(f"{args.output}: the name must end in .html or .png")
    if min(args.measured, args.images, args.boxes) < 1:
        raise ValueError("--measured, --images and --boxes must be 1 or more")
    cfg = build_config(args.config_file, args.opts)
    checkpoint = args.checkpoint or os.path.join(cfg.OUTPUT_DIR, "model_final.pth")
    model = load_distiller(cfg, checkpoint)
    records = training_records(cfg)
    bank = model.companions["PrototypeBank"]
    names = class_names(cfg, bank.num_classes)
    prototypes = prototype_pictures(bank, records, names)
    positions = choose_positions(len(records), args.measured)
    measured = measure_images(cfg, model, records, positions, names)
    scenes = list(measured.values())
    shown = first_scenes(scenes, args.images) + [s for s, _ in lowest_boxes(scenes, args.boxes)]
    for position, scene in measured.items():
        if any(scene is other for other in shown):
            scene.scene = read_scene(records[position])
    correlations = agreement_correlations(scenes)
    for line in correlations:
        print(line)
    if suffix == _PICTURE:
        stem = args.output[: -len(suffix)]
        write_picture(f"{stem}_prototypes.png", draw_sheet(prototypes, bank.names))
        start = scale_start(np.concatenate([s.agreement for s in scenes]))
        write_picture(f"{stem}_agreement.png", draw_boxes_in_order(scenes, start, args.boxes))
        print(f"wrote {stem}_prototypes.png and {stem}_agreement.png")
        return
    write_prototype_page(
        args.output,
        f"Prototypes and agreement: {Path(checkpoint).name}",
        prototypes,
        bank.names,
        scenes,
        _facts(args, cfg, checkpoint, len(scenes), len(records)),
        findings=correlations,
        shown=args.images,
        boxes=args.boxes,
    )
    print(f"wrote {args.output}")


def _facts(args, cfg, checkpoint: str, looked: int, total: int) -> list[str]:
    return [
        f"Student of {args.config_file}, weights and prototypes of {checkpoint}, teacher "
        f"{cfg.DISTILLATION.TEACHER.WEIGHTS}, data {', '.join(cfg.DATASETS.TRAIN)}.",
        f"{looked} of {total} training images were measured, at equal distances in the list of "
        "them and not chosen by hand. Images are resized as in testing, and both networks are in "
        "evaluation mode. Prototypes are those selected last before the checkpoint; the student "
        "may have been trained further since.",
    ]


if __name__ == "__main__":
    sys.exit(main())
