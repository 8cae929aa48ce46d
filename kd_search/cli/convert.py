"""Write a person search data set in another format.

    kd-search convert --dataset kd_generated --format prw --output data/prw
    kd-search convert --dataset prw_train --format coco --output data/prw_coco
    kd-search convert --json tracks.json --images photos/ --id-key track_id --format coco \\
        --output data/people

NAME is a registered set, or the common part of NAME_train and NAME_test to write both splits.
Images become hard links where possible, which take no space; --copy makes copies. The new folder is
complete or absent.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kd_search.cli._arguments import add_set_arguments, check_set_arguments, command_parser

if TYPE_CHECKING:
    from kd_search.data.person_search.split import LoadedSplit

#: Names of the functions of kd_search.data.writers.
WRITERS = {
    "coco": "write_coco_json",
    "cuhk_sysu": "write_cuhk_sysu",
    "mot": "write_mot",
    "prw": "write_prw",
}


def get_parser() -> argparse.ArgumentParser:
    parser = command_parser("convert", __doc__)
    add_set_arguments(parser)
    parser.add_argument(
        "--id-key",
        metavar="KEY",
        default="person_id",
        help="of --json: key of the identities, such as track_id (default: person_id)",
    )
    parser.add_argument("--format", choices=sorted(WRITERS), required=True)
    parser.add_argument("--output", metavar="DIR", required=True, help="new or empty folder")
    parser.add_argument("--copy", action="store_true", help="copy the images")
    parser.add_argument(
        "--gallery-sizes",
        metavar="N",
        type=int,
        nargs="+",
        default=[],
        help="galleries to make, cuhk_sysu only (default: those of the set, or else the sizes of "
        "the release that it has enough images for)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the galleries (default: 0)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    check_set_arguments(parser, args)
    if args.id_key != "person_id" and not args.json:
        parser.error("--id-key belongs to --json")
    if args.gallery_sizes and args.format != "cuhk_sysu":
        parser.error("--gallery-sizes is for --format cuhk_sysu")
    if any(size < 1 for size in args.gallery_sizes) or args.seed < 0:
        parser.error("gallery sizes must be positive, and the seed not negative")
    from kd_search.data import writers

    images = writers.ImageFolder(args.copy)
    write = getattr(writers, WRITERS[args.format])
    options = {}
    if args.format == "cuhk_sysu":
        options = {"gallery_sizes": args.gallery_sizes, "seed": args.seed}
    try:
        train, test = _from_json(args) if args.json else _splits(args.dataset)
        with writers.new_folder(args.output) as folder:
            notes = write(folder, train, test, images=images, **options)
    except KeyboardInterrupt:
        print("convert: interrupted, nothing was written", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(f"convert: {error}", file=sys.stderr)
        return 2
    for split in (train, test):
        if split is not None:
            boxes = sum(len(record["annotations"]) for record in split.dicts)
            print(
                f"{split.name}: {len(split.dicts)} images, {boxes} boxes, {len(split.id_map)} ids, "
                f"{len(split.queries)} queries"
            )
    for note in notes:
        print(f"note: {note}")
    print(f"wrote {args.output}: {images.linked} images hard-linked, {images.copied} copied")
    return 0


def _from_json(args: argparse.Namespace) -> tuple[LoadedSplit | None, LoadedSplit | None]:
    """As :func:`_splits`: a file with queries is a test split."""
    from kd_search.data.person_search.register import SplitFiles

    split = SplitFiles(args.json, args.images, args.query_info, id_key=args.id_key).load()
    split.name = args.json
    return (None, split) if split.queries else (split, None)


def _splits(name: str) -> tuple[LoadedSplit | None, LoadedSplit | None]:
    """Training and test split; ``None`` for one that is not wanted."""
    from detectron2.data import DatasetCatalog

    from kd_search.data.person_search.register import load_split

    if name in DatasetCatalog.list():
        split = load_split(name)
        is_test = bool(split.queries) or name.endswith("_test")
        return (None, split) if is_test else (split, None)
    names = [f"{name}_{part}" for part in ("train", "test")]
    found = [part if part in DatasetCatalog.list() else None for part in names]
    if not any(found):
        known = sorted(n for n in DatasetCatalog.list() if n.endswith("_test"))
        raise ValueError(
            f"data set {name!r} is not registered, nor is {names[0]} or {names[1]} (known test "
            f"sets: {', '.join(known)})"
        )
    train, test = (load_split(part) if part else None for part in found)
    return train, test
