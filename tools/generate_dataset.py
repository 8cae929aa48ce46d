#!/usr/bin/env python
"""Generate a data set from a seed: people to search, objects to detect, or tracklets of people.

    python tools/generate_dataset.py --output output/generated --seed 0
    python tools/generate_dataset.py --kind objects --output output/objects --seed 0
    python tools/generate_dataset.py --kind tracklets --output output/tracklets --seed 0

The same preset, options and seed give the same bytes. An existing data set is kept if it is the
requested one, and refused otherwise unless --overwrite is given.

--layout kitti or ilsvrc also writes the objects in the layout of KITTI or ILSVRC DET, in
OUTPUT/kitti or OUTPUT/ILSVRC: kitti_train and the like then work with DETECTRON2_DATASETS set to
OUTPUT.
"""

import argparse
import dataclasses
import os
import sys
from concurrent.futures import BrokenExecutor
from typing import Any, Optional

from kd_search.data.generated import GENERATED_ROOTS, generated_root
from kd_search.synthetic import (
    OBJECTS_PRESETS,
    PRESETS,
    TRACKLETS_PRESETS,
    generate_dataset,
    generate_objects,
    generate_tracklets,
    write_ilsvrc_layout,
    write_kitti_layout,
)

#: Presets and generator of each kind.
_KINDS: dict[str, tuple[dict, Any]] = {
    "people": (PRESETS, generate_dataset),
    "objects": (OBJECTS_PRESETS, generate_objects),
    "tracklets": (TRACKLETS_PRESETS, generate_tracklets),
}
_COUNTS = ("train_ids", "test_ids", "train_images", "test_images", "cameras")
_LAYOUTS = {"kitti": ("kitti", write_kitti_layout), "ilsvrc": ("ILSVRC", write_ilsvrc_layout)}


def _has_count(kind: str, name: str) -> bool:
    return hasattr(_KINDS[kind][0]["demo"], f"num_{name}")


def parse_args(argv: Optional[list[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=sorted(_KINDS), default="people")
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="where to write (default: "
        + ", ".join(f"${name} or {folder}" for name, folder in GENERATED_ROOTS.values())
        + " of --kind people, objects, tracklets)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all randomness")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="demo")
    for name in _COUNTS:
        option = "--num-" + name.replace("_", "-")
        parser.add_argument(option, type=int, metavar="N", help="instead of the preset's")
    parser.add_argument("--width", type=int, metavar="PIXELS", help="instead of the preset's")
    parser.add_argument(
        "--height", type=int, metavar="PIXELS", help="instead of the preset's; people grow with it"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing set")
    parser.add_argument(
        "--layout",
        choices=sorted(_LAYOUTS),
        action="append",
        default=[],
        help="of --kind objects: also write it in the layout of this set; may be given twice",
    )
    args = parser.parse_args(argv)
    args.output = args.output or generated_root(args.kind)
    if args.kind != "objects" and args.layout:
        parser.error("--layout belongs to --kind objects")
    for name in _COUNTS:
        if getattr(args, f"num_{name}") is not None and not _has_count(args.kind, name):
            kinds = " or ".join(kind for kind in _KINDS if _has_count(kind, name))
            parser.error(f"--num-{name.replace('_', '-')} belongs to --kind {kinds}")
    return args


def build_config(args: argparse.Namespace) -> Any:
    """The preset with the options in place of its values."""
    config = _KINDS[args.kind][0][args.preset]
    wanted = {f"num_{name}": getattr(args, f"num_{name}") for name in _COUNTS}
    size = {"width": args.width, "height": args.height}
    if args.kind != "people":
        wanted.update(size)
    else:
        scene = {name: value for name, value in size.items() if value}
        if args.height:
            grow = args.height / config.scene.height
            for name in ("min_person_height", "max_person_height"):
                scene[name] = round(getattr(config.scene, name) * grow)
        wanted["scene"] = dataclasses.replace(config.scene, **scene)
    return dataclasses.replace(config, **{k: v for k, v in wanted.items() if v is not None})


def _write_layout(layout: str, output: str, written: bool) -> None:
    folder, write = _LAYOUTS[layout]
    root = os.path.join(output, folder)
    if written or not os.path.isdir(root):
        write(output, root)
    print(f"laid out as {layout} in {root}")


def main(argv: Optional[list[str]] = None) -> int:
    args = parse_args(argv)
    generate = _KINDS[args.kind][1]
    try:
        config = build_config(args)
        written = generate(
            args.output, config, args.seed, workers=args.workers, overwrite=args.overwrite
        )
        for layout in args.layout:
            _write_layout(layout, args.output, written)
    except KeyboardInterrupt:
        print("generate_dataset: interrupted, nothing was written", file=sys.stderr)
        return 130
    except (ValueError, OSError, BrokenExecutor) as error:
        print(f"generate_dataset: {error}", file=sys.stderr)
        return 2
    if args.kind == "tracklets":
        size = f"{config.num_train_ids + config.num_test_ids} identities"
    else:
        size = f"{config.num_train_images + config.num_test_images} images"
    state = "wrote" if written else "kept"
    print(f"{state} {args.output}: {size}, seed {args.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
