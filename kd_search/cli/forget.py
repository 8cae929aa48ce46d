"""Remove pictures or people from a gallery for good.

    kd-search forget --gallery people --picture /footage/cam1/0001.jpg
    kd-search forget --gallery people --person 17.0 18.2
    kd-search forget --gallery people --from 2026-11-01 --to 2026-11-03 --camera door

Pictures are named by their path, also where the file is gone, by a file with the same content, or
by the SHA-256 of their content. People are named by the ids that kd-search search prints. A time
range, cameras or folders remove all pictures that fit all of these; a video of which a part is in
the time is removed as a whole.

The rows, paths and cameras are gone from every file of the gallery afterwards; copies of the
gallery, and the pictures themselves, are yours to remove. So are the archives and backups of a
database (docs/gallery.md). What stays is a list of hashes, and for
people of boxes, so that kd-search index does not bring them back.

Exit status: 0 removed, 2 the input cannot be used or fits nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kd_search.cli._arguments import GALLERY_HELP, command_parser

if TYPE_CHECKING:
    from kd_search.gallery import GalleryWriter
    from kd_search.gallery.database import FileRow


def get_parser() -> argparse.ArgumentParser:
    parser = command_parser("forget", __doc__)
    parser.add_argument("--gallery", metavar="NAME", required=True, help=GALLERY_HELP)
    parser.add_argument("--picture", metavar="FILE", nargs="+", default=[], help="or its SHA-256")
    parser.add_argument("--person", metavar="ID", nargs="+", default=[], help="of a search")
    parser.add_argument("--from", dest="start", metavar="TIME", help="2026-11-03T14:05 or a day")
    parser.add_argument("--to", dest="end", metavar="TIME", help="included: the whole day, minute")
    parser.add_argument("--camera", metavar="NAME", nargs="+", default=[], help="all of these")
    parser.add_argument("--folder", metavar="FOLDER", nargs="+", default=[], help="all in these")
    parser.add_argument("--dry-run", action="store_true", help="say what would be removed")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    try:
        _forget(args)
    except (OSError, ValueError) as error:
        print(f"forget: {error}", file=sys.stderr)
        return 2
    return 0


def _forget(args: argparse.Namespace) -> None:
    from kd_search.cli._gallery import restore_index
    from kd_search.gallery.approximate import has_index
    from kd_search.gallery.opening import gallery_name, open_writer
    from kd_search.gallery.removal import chosen_files, find_person
    from kd_search.utils.files import printable

    ranges = bool(args.start or args.end or args.camera or args.folder)
    if not (ranges or args.picture or args.person):
        raise ValueError(
            "name what to forget: --picture, --person, --from, --to, --camera, --folder"
        )
    had_index = has_index(args.gallery)
    with open_writer(args.gallery) as writer:
        writer.compact(if_worth_it=True)  # what an earlier call that was interrupted has removed
        contents = {_content(writer, name) for name in args.picture}
        if ranges:
            from kd_search.gallery.capture import parse_time

            fitting = chosen_files(
                writer,
                start=None if args.start is None else parse_time(args.start),
                end=None if args.end is None else parse_time(args.end, end=True),
                cameras=args.camera,
                folders=[os.path.abspath(folder) for folder in args.folder],
            )
            if not fitting:
                raise ValueError(
                    f"{gallery_name(args.gallery)}: no picture fits; nothing was removed"
                )
            contents |= {row.sha256 for row in fitting}
        people = [find_person(writer, hit_id) for hit_id in args.person]
        gone = [row for row in writer.files() if row.sha256 in contents]
        for row in gone:
            print(printable(row.path))
        if args.dry_run:
            print(f"{len(gone)} files and {len(people)} other people would be removed")
            return
        files, rows = writer.forget(contents, people)
        writer.compact()
        left = writer.rows
    print(f"removed {files} files and {rows} people, for good; they are not indexed again")
    restore_index(args.gallery, had_index, left)


def _content(writer: GalleryWriter, name: str) -> str:
    """SHA-256 of a picture that is named by its hash, its path in the gallery or a file."""
    if re.fullmatch(r"[0-9a-fA-F]{64}", name):
        return name.lower()
    row: FileRow | None = writer.file(os.path.abspath(name))
    if row is not None:
        return row.sha256
    if os.path.isfile(name):
        from kd_search.utils.files import file_sha256

        return file_sha256(name)
    raise ValueError(f"{name}: is not in the gallery, and no such file; nothing was removed")
