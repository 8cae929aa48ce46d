#!/usr/bin/env python
"""Generate the embedded person-search data set from a seed.

    python tools/generate_dataset.py --output output/generated --seed 0 --preset demo

The same preset, options and seed give the same bytes. A data set that is already there is kept if
it is the one asked for, and refused otherwise unless --overwrite is given.
"""

import argparse
import dataclasses
import os
import sys
from concurrent.futures import BrokenExecutor

from kd_search.data.synthesis import PRESETS, GeneratorConfig, generate_dataset

_COUNTS = ("train_ids", "test_ids", "train_images", "test_images", "cameras")


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default_root = os.environ.get("KD_SEARCH_GENERATED", os.path.join("output", "generated"))
    parser.add_argument(
        "--output",
        default=default_root,
        metavar="FOLDER",
        help="where to write (default: $KD_SEARCH_GENERATED or output/generated)",
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
    return parser.parse_args(argv)


def build_config(args: argparse.Namespace) -> GeneratorConfig:
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


def main(argv=None) -> int:
    args = parse_args(argv)
    try:
        config = build_config(args)
        written = generate_dataset(
            args.output, config, args.seed, workers=args.workers, overwrite=args.overwrite
        )
    except KeyboardInterrupt:
        print("generate_dataset: interrupted, nothing was written", file=sys.stderr)
        return 130
    except (ValueError, OSError, BrokenExecutor) as error:
        print(f"generate_dataset: {error}", file=sys.stderr)
        return 2
    images = config.num_train_images + config.num_test_images
    state = "wrote" if written else "kept"
    print(f"{state} {args.output}: {images} images, seed {args.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
