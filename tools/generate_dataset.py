#!/usr/bin/env python
"""Generate an embedded data set from a seed: people to be searched, things to be detected, or
tracklets of people.

    python tools/generate_dataset.py --output output/generated --seed 0 --preset demo
    python tools/generate_dataset.py --kind objects --output output/objects --seed 0
    python tools/generate_dataset.py --kind tracklets --output output/tracklets --seed 0

The same preset, options and seed give the same bytes. A data set that is already there is kept if
it is the one asked for, and refused otherwise unless --overwrite is given.

--layout kitti or ilsvrc also lays the things out as KITTI or ILSVRC DET, in OUTPUT/kitti or
OUTPUT/ILSVRC: kitti_train and the like then work with DETECTRON2_DATASETS set to OUTPUT.
"""

import argparse
import dataclasses
import os
import sys
from concurrent.futures import BrokenExecutor
from typing import Union

from kd_search.synthetic import (
    OBJECTS_PRESETS,
    PRESETS,
    TRACKLETS_PRESETS,
    GeneratorConfig,
    ObjectsConfig,
    TrackletsConfig,
    generate_dataset,
    generate_objects,
    generate_tracklets,
    write_ilsvrc_layout,
    write_kitti_layout,
)

_COUNTS = ("train_ids", "test_ids", "train_images", "test_images", "cameras")
#: Those that a kind does without.
_FOREIGN = {
    "people": (),
    "objects": ("train_ids", "test_ids", "cameras"),
    "tracklets": ("train_images", "test_images"),
}
_GENERATORS = {
    "people": generate_dataset,
    "objects": generate_objects,
    "tracklets": generate_tracklets,
}
_DEFAULT_ROOTS = {
    "people": ("KD_SEARCH_GENERATED", "generated"),
    "objects": ("KD_SEARCH_OBJECTS", "objects"),
    "tracklets": ("KD_SEARCH_TRACKLETS", "tracklets"),
}
_LAYOUTS = {"kitti": ("kitti", write_kitti_layout), "ilsvrc": ("ILSVRC", write_ilsvrc_layout)}


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=sorted(_DEFAULT_ROOTS), default="people")
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="where to write (default: $KD_SEARCH_GENERATED or output/generated; of --kind "
        "objects and tracklets alike, with $KD_SEARCH_OBJECTS and $KD_SEARCH_TRACKLETS)",
    )
    parser.add_argument("--seed", type=int, default=0, help="everything follows from it")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="demo")
    for name in _COUNTS:
        option = "--num-" + name.replace("_", "-")
        parser.add_argument(option, type=int, metavar="N", help="instead of the preset's")
    parser.add_argument("--width", type=int, metavar="PIXELS", help="instead of the preset's")
    parser.add_argument(
        "--height", type=int, metavar="PIXELS", help="instead of the preset's; people grow with it"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument(
        "--layout",
        choices=sorted(_LAYOUTS),
        action="append",
        default=[],
        help="of --kind objects: also write it like this set; may be given twice",
    )
    args = parser.parse_args(argv)
    if args.output is None:
        variable, folder = _DEFAULT_ROOTS[args.kind]
        args.output = os.environ.get(variable, os.path.join("output", folder))
    if args.kind != "objects" and args.layout:
        parser.error("--layout belongs to --kind objects")
    for name in _FOREIGN[args.kind]:
        if getattr(args, f"num_{name}") is not None:
            kinds = " or ".join(kind for kind in _FOREIGN if name not in _FOREIGN[kind])
            parser.error(f"--num-{name.replace('_', '-')} belongs to --kind {kinds}")
    return args


def build_config(
    args: argparse.Namespace,
) -> Union[GeneratorConfig, ObjectsConfig, TrackletsConfig]:
    if args.kind == "objects":
        return _build_objects_config(args)
    if args.kind == "tracklets":
        return _build_tracklets_config(args)
    config = PRESETS[args.preset]
    counts = {f"num_{name}": getattr(args, f"num_{name}") for name in _COUNTS}
    scene = {}
    if args.width:
        scene["width"] = args.width
    if args.height:
        grow = args.height / config.scene.height
        scene["height"] = args.height
        scene["min_person_height"] = round(config.scene.min_person_height * grow)
        scene["max_person_height"] = round(config.scene.max_person_height * grow)
    return dataclasses.replace(
        config,
        scene=dataclasses.replace(config.scene, **scene),
        **{name: count for name, count in counts.items() if count is not None},
    )


def _build_objects_config(args: argparse.Namespace) -> ObjectsConfig:
    wanted = {
        "num_train_images": args.num_train_images,
        "num_test_images": args.num_test_images,
        "width": args.width,
        "height": args.height,
    }
    config = OBJECTS_PRESETS[args.preset]
    return dataclasses.replace(config, **{k: v for k, v in wanted.items() if v is not None})


def _build_tracklets_config(args: argparse.Namespace) -> TrackletsConfig:
    wanted = {
        "num_train_ids": args.num_train_ids,
        "num_test_ids": args.num_test_ids,
        "num_cameras": args.num_cameras,
        "width": args.width,
        "height": args.height,
    }
    config = TRACKLETS_PRESETS[args.preset]
    return dataclasses.replace(config, **{k: v for k, v in wanted.items() if v is not None})


def _write_layout(layout: str, output: str, written: bool) -> None:
    folder, write = _LAYOUTS[layout]
    root = os.path.join(output, folder)
    if written or not os.path.isdir(root):
        write(output, root)
    print(f"laid out as {layout} in {root}")


def main(argv=None) -> int:
    args = parse_args(argv)
    generate = _GENERATORS[args.kind]
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
