"""Arguments that several commands have, with one name for one thing."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from kd_search.utils.arguments import add_import_argument

#: Metavar and help of the output folder of a training, in any of its forms.
RUN_HELP = "output folder of a training, RUN, RUN/inference or RUN/inference/SET"

#: Help of ``--gallery``.
GALLERY_HELP = "folder, or postgresql://USER@HOST/DATABASE"


def add_approximate_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--approximate`` to a command that writes to a gallery."""
    parser.add_argument(
        "--approximate",
        action="store_true",
        help="build an index for kd-search search --approximate, and print its recall",
    )


def command_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser of ``kd-search NAME`` whose description is the docstring of its module."""
    return argparse.ArgumentParser(
        prog=f"kd-search {name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def exit_status(name: str, work: Callable[[], object]) -> int:
    """Run a command's work: 0, or 2 for bad input, which is printed as one line."""
    try:
        work()
    except (OSError, ValueError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    return 0


def add_network_arguments(
    parser: argparse.ArgumentParser, *, weights: str = "RUN/model_final.pth or MODEL.WEIGHTS"
) -> None:
    """Add RUN, ``--config-file``, ``--weights``, ``--import`` and overrides KEY VALUE.

    Use :func:`parse` instead of ``parser.parse_args``.

    Args:
        parser: of a command that takes one network.
        weights: their default, for the help.
    """
    parser.add_argument(
        "words",
        nargs="*",
        metavar="RUN | KEY VALUE",
        help=f"{RUN_HELP} (default: --config-file), then overrides of its config",
    )
    parser.add_argument("--config-file", metavar="FILE", help="of the network, without RUN")
    parser.add_argument("--weights", metavar="FILE", help=f"checkpoint (default: {weights})")
    add_import_argument(parser)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments of :func:`add_network_arguments`.

    Returns:
        the arguments, with ``run``, the path or ``None``, and ``opts``, the overrides.
    """
    args = parser.parse_intermixed_args(argv)
    args.run, args.opts = split_run(args.words)
    if args.run is None and not args.config_file:
        parser.error("name RUN, the output folder of a training, or --config-file FILE")
    if args.run is not None and args.config_file:
        if not os.path.exists(args.run):
            parser.error(f"overrides must be pairs KEY VALUE, got {' '.join(args.words)}")
        parser.error(f"{args.run} has a config of its own: leave out RUN or --config-file")
    return args


def add_verbose_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--verbose``, of commands that otherwise print a line for each step."""
    parser.add_argument(
        "--verbose", action="store_true", help="print all that is logged; otherwise warnings alone"
    )


def split_run(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Split [RUN] KEY VALUE KEY VALUE ...: overrides are pairs, so an odd number has a RUN."""
    words = list(words)
    return (words[0], words[1:]) if len(words) % 2 else (None, words)


def split_labels(entries: Sequence[str]) -> dict[str, str]:
    """Paths of ``[LABEL=]RUN`` by label; a path without one is its own label.

    Raises:
        ValueError: a label is given twice.
    """
    paths: dict[str, str] = {}
    for entry in entries:
        label, separator, path = entry.partition("=")
        if not separator or os.path.exists(entry):
            label, path = entry, entry
        if label in paths:
            raise ValueError(f"the label {label!r} is given twice")
        paths[label] = path
    return paths


def add_set_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--dataset`` or ``--json`` with ``--images`` and ``--query-info``: a set to read."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", metavar="NAME", help="a registered data set")
    source.add_argument("--json", metavar="FILE", help="COCO-JSON with person_id")
    parser.add_argument("--images", metavar="DIR", help="image folder of --json")
    parser.add_argument("--query-info", metavar="FILE", help="queries of --json, as PRW has them")


def check_set_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the command where the options of :func:`add_set_arguments` do not belong together."""
    if args.json and not args.images:
        parser.error("--json needs --images DIR")
    if not args.json and (args.images or args.query_info):
        parser.error("--images and --query-info belong to --json")
