"""Make a project for data of your own, with networks, sizes and schedule that fit them.

    kd-search init DIR --train train.json --test test.json --images photos --queries q.txt
    kd-search init DIR --train train.json --images photos    # holds people out for the test
    kd-search init DIR --mot MOT17/train
    kd-search init DIR --prw prw

Checks the data, and refuses them with the lines of the check where training could not use them or
the test would mean nothing. Writes DIR/project.yaml and DIR/configs/{data,teacher,student,
student_distilled}.yaml, and says what it chose and why; edit them as you like. Nothing is
downloaded. The format of the JSON and the query file is in docs/own_data.md. The next command is
kd-search distill DIR.

Exit status: 0 made, or there already with the same options; 2 bad input.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from kd_search.cli._arguments import add_verbose_argument, command_parser
from kd_search.pipeline.networks import NETWORKS


def get_parser() -> argparse.ArgumentParser:
    networks = "\n".join(
        f"  {name:18} {network.what}{', from ImageNet weights' if network.pretrained else ''}"
        for name, network in NETWORKS.items()
    )
    parser = command_parser("init", __doc__)
    parser.epilog = f"networks:\n{networks}"
    parser.add_argument("folder", metavar="DIR", type=Path, help="of the project")
    own = parser.add_argument_group("COCO-JSON with person_id")
    own.add_argument("--train", metavar="FILE", help="training set")
    own.add_argument("--test", metavar="FILE", help="test set; default: people of --train")
    own.add_argument("--images", metavar="FOLDER", help="image folder of both")
    own.add_argument("--test-images", metavar="FOLDER", help="that of --test, if it is another")
    own.add_argument(
        "--queries", metavar="FILE", help="of --test; default: two pictures of every person"
    )
    released = parser.add_argument_group("folders of data sets")
    released.add_argument("--prw", metavar="FOLDER", help="PRW")
    released.add_argument("--cuhk-sysu", metavar="FOLDER", help="CUHK-SYSU")
    released.add_argument("--mot", metavar="FOLDER", help="MOTChallenge, two sequences or more")
    released.add_argument(
        "--mot-options",
        nargs="+",
        metavar="OPTION=VALUE",
        default=[],
        help="such as gallery_gap=5 (docs/datasets.md)",
    )
    networks_group = parser.add_argument_group("networks; default: by the size of the data")
    networks_group.add_argument("--teacher", metavar="NAME")
    networks_group.add_argument("--student", metavar="NAME")
    networks_group.add_argument("--teacher-weights", metavar="FILE", help="to start from")
    networks_group.add_argument("--student-weights", metavar="FILE", help="to start from")
    parser.add_argument(
        "--seed", type=int, default=1, help="of the networks and of people held out (default: 1)"
    )
    parser.add_argument(
        "--no-decode", action="store_true", help="do not decode the images for the check"
    )
    add_verbose_argument(parser)
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = get_parser()
    options = vars(parser.parse_args(argv))
    folder, decode = options.pop("folder"), not options.pop("no_decode")
    verbose = options.pop("verbose")
    sources = [name for name in ("train", "prw", "cuhk_sysu", "mot") if options[name]]
    if len(sources) != 1:
        parser.error("name one data set: --train, --prw, --cuhk-sysu or --mot")
    if options["train"] and not options["images"]:
        parser.error("--train needs --images FOLDER")
    others = [name for name in ("test", "images", "test_images", "queries") if options[name]]
    if others and not options["train"]:
        parser.error(f"--{others[0].replace('_', '-')} belongs to --train")
    if options["mot_options"] and not options["mot"]:
        parser.error("--mot-options belongs to --mot")
    from kd_search.pipeline.console import Console
    from kd_search.pipeline.init import init_project

    try:
        with Console(verbose).showing_logs():
            init_project(folder, options, decode=decode)
    except (OSError, ValueError) as error:
        print(f"init: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninit: interrupted, nothing was written", file=sys.stderr)
        return 130
    print(f"next: kd-search distill {folder}")
    return 0
