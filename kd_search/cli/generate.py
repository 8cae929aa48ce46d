"""Generate a data set from a seed: people to search, objects to detect, or tracklets of people.

    kd-search generate --output output/generated --seed 0
    kd-search generate --kind objects --output output/objects --seed 0
    kd-search generate --kind tracklets --output output/tracklets --seed 0

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
from collections.abc import Sequence
from typing import Any, Optional

from kd_search.cli._arguments import command_parser

#: Names, in kd_search.synthetic, of the presets and of the generator of each kind.
_KINDS = {
    "people": ("PRESETS", "generate_dataset"),
    "objects": ("OBJECTS_PRESETS", "generate_objects"),
    "tracklets": ("TRACKLETS_PRESETS", "generate_tracklets"),
}
#: Of every kind.
PRESETS = ("demo", "tiny")
_COUNTS = ("train_ids", "test_ids", "train_images", "test_images", "cameras")
#: Folder, and the name of the function of kd_search.synthetic.
_LAYOUTS = {
    "kitti": ("kitti", "write_kitti_layout"),
    "ilsvrc": ("ILSVRC", "write_ilsvrc_layout"),
}


def _presets(kind: str) -> dict[str, Any]:
    from kd_search import synthetic

    return getattr(synthetic, _KINDS[kind][0])


def _has_count(kind: str, name: str) -> bool:
    return hasattr(_presets(kind)["demo"], f"num_{name}")


def get_parser() -> argparse.ArgumentParser:
    parser = command_parser("generate", __doc__)
    parser.add_argument("--kind", choices=sorted(_KINDS), default="people")
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="where to write (default: $KD_SEARCH_GENERATED or output/generated, "
        "$KD_SEARCH_OBJECTS or output/objects, $KD_SEARCH_TRACKLETS or output/tracklets of --kind "
        "people, objects, tracklets)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all randomness")
    parser.add_argument("--preset", choices=PRESETS, default="demo")
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
    return parser


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = get_parser()
    args = parser.parse_args(argv)
    from kd_search.data.generated import generated_root

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
    config = _presets(args.kind)[args.preset]
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
    from kd_search import synthetic

    if written or not os.path.isdir(root):
        getattr(synthetic, write)(output, root)
    print(f"laid out as {layout} in {root}")


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse_args(argv)
    from concurrent.futures import BrokenExecutor

    from kd_search import synthetic

    generate = getattr(synthetic, _KINDS[args.kind][1])
    try:
        config = build_config(args)
        written = generate(
            args.output, config, args.seed, workers=args.workers, overwrite=args.overwrite
        )
        for layout in args.layout:
            _write_layout(layout, args.output, written)
    except KeyboardInterrupt:
        print("generate: interrupted, nothing was written", file=sys.stderr)
        return 130
    except (ValueError, OSError, BrokenExecutor) as error:
        print(f"generate: {error}", file=sys.stderr)
        return 2
    if args.kind == "tracklets":
        size = f"{config.num_train_ids + config.num_test_ids} identities"
    else:
        size = f"{config.num_train_images + config.num_test_images} images"
    state = "wrote" if written else "kept"
    print(f"{state} {args.output}: {size}, seed {args.seed}")
    return 0
