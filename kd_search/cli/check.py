"""Print the counts of a data set and every defect found in it.

    kd-search check --dataset prw_train
    kd-search check --dataset kitti_train
    kd-search check --json train.json --images photos/ --test-json test.json
    kd-search check --json test.json --images photos/ --query-info query_info.txt

Exit status: 0 no defect, 1 defects found, 2 the input cannot be used.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kd_search.cli._arguments import add_set_arguments, check_set_arguments, command_parser

if TYPE_CHECKING:
    from kd_search.data.check import DatasetReport
    from kd_search.data.detection.check import DetectionSplit
    from kd_search.data.person_search.split import LoadedSplit

#: Suffixes of the names of two sets that share no image.
_PARTNERS = (("_train", "_test"), ("_train", "_val"), ("_test", "_train"), ("_val", "_train"))


def get_parser() -> argparse.ArgumentParser:
    parser = command_parser("check", __doc__)
    add_set_arguments(parser)
    partner = parser.add_mutually_exclusive_group()
    partner.add_argument(
        "--test-dataset",
        metavar="NAME",
        help="registered data set to look for the same ids and images in; with --dataset X_train "
        "the default is X_test or X_val, and the other way round",
    )
    partner.add_argument("--test-json", metavar="FILE", help="the same, as COCO-JSON")
    parser.add_argument("--test-images", metavar="DIR", help="image folder of --test-json")
    parser.add_argument("--max-pixels", type=int, default=50_000_000, help="refuse larger images")
    parser.add_argument("--no-decode", action="store_true", help="do not decode the images")
    parser.add_argument("--output", metavar="FILE", help="write counts and defects there as JSON")
    parser.add_argument("--json-report", dest="output", help=argparse.SUPPRESS)  # its old name
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    check_set_arguments(parser, args)
    if args.test_images and not args.test_json:
        parser.error("--test-images belongs to --test-json")
    from kd_search.utils.files import write_json

    try:
        report = _check(args)
        print(report)
        if args.output:
            write_json(args.output, report.to_dict())
    except (OSError, ValueError) as error:
        print(f"check: {error}", file=sys.stderr)
        return 2
    return 0 if report.ok else 1


def _check(args: argparse.Namespace) -> DatasetReport:
    from kd_search.data.detection.check import DetectionSplit, check_detection_split
    from kd_search.data.person_search.check import check_split

    if args.dataset:
        split = _from_name(args.dataset)
    else:
        split = _from_json(args.json, args.images, args.query_info)
    if not split.dicts:
        raise ValueError(f"{split.name}: holds no image")
    partner, note = None, None
    if args.test_dataset:
        partner = _from_name(args.test_dataset)
    elif args.test_json:
        partner = _from_json(args.test_json, args.test_images or args.images)
    elif args.dataset:
        partner, note = _usual_partner(args.dataset)
    if partner is not None and type(partner) is not type(split):
        raise ValueError(f"only one of {split.name} and {partner.name} has identities")
    # Each takes its own kind of split, and a partner of the same kind.
    check: Any = check_detection_split if isinstance(split, DetectionSplit) else check_split
    report = check(split, partner=partner, decode=not args.no_decode, max_pixels=args.max_pixels)
    if partner is None:
        report.notes.append(note or "overlap of train and test not checked: see --test-dataset")
    return report


def _from_name(name: str) -> LoadedSplit | DetectionSplit:
    from detectron2.data import DatasetCatalog

    from kd_search.data.catalog import is_person_search
    from kd_search.data.detection.check import DetectionSplit
    from kd_search.data.person_search.register import load_split

    if name in DatasetCatalog.list() and not is_person_search(name):
        return DetectionSplit.from_name(name)
    return load_split(name, clip=False)


def _from_json(json_file: str, images: str, query_info: str | None = None) -> LoadedSplit:
    from kd_search.data.person_search.register import SplitFiles

    if not images:
        raise ValueError(f"{json_file}: name its image folder with --test-images")
    if not os.path.isdir(images):
        raise FileNotFoundError(f"{images}: no such image folder")
    split = SplitFiles(json_file, images, query_info).load(clip=False)
    split.name = json_file
    return split


def _usual_partner(name: str) -> tuple[LoadedSplit | DetectionSplit | None, str | None]:
    """The other split of a set by its name, or why it cannot be loaded."""
    from detectron2.data import DatasetCatalog

    for end, other in _PARTNERS:
        partner = name[: -len(end)] + other
        if name.endswith(end) and partner in DatasetCatalog.list():
            try:
                return _from_name(partner), None
            except (OSError, ValueError) as error:
                return None, f"overlap with {partner} not checked: {error}"
    return None, None
