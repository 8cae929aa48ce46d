"""Train or evaluate a person search model, or a plain detector.

    kd-search train --config-file configs/prw/r50_c4.yaml --num-gpus 2
    kd-search train --config-file ... --resume
    kd-search train --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
    torchrun --nproc_per_node 2 -m kd_search train --config-file ...

``--import MODULE`` imports a package that registers methods, networks or data sets of its own.
Without a GPU, ``--num-gpus`` is the number of CPU processes. Ctrl-C stops after the running
iteration, with a checkpoint; ``--resume`` continues exactly from there.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Optional

from kd_search.cli._arguments import command_parser
from kd_search.utils.arguments import add_import_argument


def get_parser() -> argparse.ArgumentParser:
    """The options of Detectron2's ``default_argument_parser``, whose module imports torch."""
    parser = command_parser("train", __doc__)
    add = parser.add_argument
    add("--config-file", default="", metavar="FILE", help="of the training")
    add("--resume", action="store_true", help="continue from the last checkpoint of OUTPUT_DIR")
    add("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS")
    add("--num-gpus", type=int, default=1, metavar="N", help="of each machine (default: 1)")
    add("--num-machines", type=int, default=1, metavar="N", help="default: 1")
    add("--machine-rank", type=int, default=0, metavar="I", help="of this machine (default: 0)")
    # One port for each user, as in Detectron2: a process that was left behind is noticed.
    port = 2**15 + 2**14 + hash(os.getuid() if sys.platform != "win32" else 1) % 2**14
    add(
        "--dist-url",
        default=f"tcp://127.0.0.1:{port}",
        metavar="URL",
        help="where the processes meet: tcp://HOST:PORT, or auto on one machine "
        "(default: %(default)s)",
    )
    add_import_argument(parser)
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = get_parser().parse_args(argv)
    from kd_search.engine import train_main

    train_main(args=args)
    return 0
