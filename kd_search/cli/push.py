"""Copy a gallery into a PostgreSQL database with pgvector.

    kd-search push --gallery people --to postgresql://USER@HOST/DATABASE

The tables are made if they do not exist. Run it again whenever the gallery has changed: only what
the database does not have, or has in another state, is copied, and what the gallery has forgotten
is removed from it for good. It may be interrupted at any moment, also by kill -9 or the end of the
server, and goes on when it runs again. Several galleries of the same network may be copied into one
database. kd-search search, index and forget take the database as --gallery.

Give the password by ~/.pgpass or PGPASSWORD: others can read the arguments of a command. Needs
psycopg (pip install 'psycopg[binary]').

Exit status: 0 copied, 2 the input cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from kd_search.cli._arguments import add_approximate_argument, command_parser


def get_parser() -> argparse.ArgumentParser:
    parser = command_parser("push", __doc__)
    parser.add_argument("--gallery", metavar="FOLDER", required=True, help="of kd-search index")
    parser.add_argument(
        "--to", metavar="URL", required=True, help="postgresql://USER@HOST/DATABASE"
    )
    add_approximate_argument(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    try:
        _push(args)
    except (OSError, ValueError, ImportError) as error:
        print(f"push: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\npush: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


def _push(args: argparse.Namespace) -> None:
    from kd_search.cli._gallery import Progress, build_index
    from kd_search.gallery import Gallery
    from kd_search.gallery.opening import is_database

    if not is_database(args.to):
        raise ValueError("--to: write postgresql://USER@HOST/DATABASE")
    gallery = Gallery(args.gallery)
    from kd_search.gallery.postgres import PostgresWriter, push

    with PostgresWriter(args.to, replace(gallery.manifest, generation=1)) as writer:
        progress = Progress()
        report = push(gallery, writer, progress)
        progress.end()
        writer.compact(if_worth_it=True)
        rows = writer.rows
    print(
        f"{report.files} files: {report.copied} copied with {report.people} people, "
        f"{report.unchanged} there already"
    )
    for number, text in (
        (report.do_not_index, "files left out: the database has forgotten them"),
        (report.do_not_index_people, "people left out: the database has forgotten them"),
        (report.forgotten, "files removed: the gallery has forgotten them"),
    ):
        if number:
            print(f"{number} {text}")
    print(f"{writer.folder}: {rows} people to search")
    if rows and args.approximate:
        build_index(args.to)
