"""Command line options that several commands have; imports nothing heavy."""

from __future__ import annotations

from argparse import ArgumentParser


def add_import_argument(parser: ArgumentParser) -> None:
    """Add ``--import MODULE``, for :func:`kd_search.config.import_modules` as ``args.imports``."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="import a module that registers terms, networks, data sets or config keys; may be "
        "given several times",
    )
