"""Make the tables, figures and numbers of documents from the results files of studies.

    kd-search results                write what has changed
    kd-search results --check        write nothing; fail where a document and its files disagree
    kd-search results --from-project my_project --output results/my_project.json

A results file is the .json of a study (ablate.py --results FILE), or of a project of kd-search
distill or demo, which the last form writes. The markers in documents are described in
docs/results.md.

Exit status: 0 written, or all documents agree; 1 with --check: some do not; 2 a file or a marker is
wrong.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Optional

from kd_search.cli._arguments import exit_status
from kd_search.utils.arguments import add_import_argument


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kd-search results",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("documents", nargs="*", type=Path, metavar="DOCUMENT", help="default: all of the checkout")
    add("--root", type=Path, default=Path(), help="folder of the checkout (default: this one)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true", help="the default")
    what.add_argument("--check", action="store_true", help="write nothing; exit 1 on a difference")
    project = parser.add_argument_group("a results file of a project")
    project.add_argument("--from-project", type=Path, metavar="DIR", help="of kd-search distill")
    project.add_argument("--output", type=Path, metavar="FILE", help="file to write")
    add_import_argument(parser)
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    if bool(args.from_project) != bool(args.output):
        parser.error("--from-project and --output belong together")
    if args.from_project:
        if args.documents or args.write or args.check:
            parser.error("--from-project writes no documents: call kd-search results after it")
        return exit_status("results", partial(_write_project, args))
    from kd_search.experiments.documents import DocumentMaker, write_filled

    maker = DocumentMaker(args.root.resolve())
    wrong = broken = 0
    for document in args.documents or maker.documents():
        name = os.path.relpath(document)
        try:
            filled = maker.fill(document.resolve())
        except (OSError, ValueError) as error:
            print(f"results: {error}", file=sys.stderr)
            broken += 1
            continue
        if args.check:
            for line in filled.differences:
                print(f"results: {line}: run kd-search results --write", file=sys.stderr)
        else:
            write_filled(document, filled)
            for line in filled.differences:
                print(f"{line.partition(': ')[0]}: written")
        for number in filled.typed:
            print(
                f"results: {name}:{number}: the table is not made from a results file",
                file=sys.stderr,
            )
        wrong += len(filled.differences) * args.check + len(filled.typed)
    return 2 if broken else int(wrong > 0)


def _write_project(args: argparse.Namespace) -> None:
    from kd_search.config import import_modules
    from kd_search.experiments import write_study
    from kd_search.pipeline.results import project_study

    import_modules(args.imports)
    write_study(args.output, project_study(args.from_project, args.imports))
    print(f"wrote {args.output}")
