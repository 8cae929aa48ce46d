"""Find and embed everybody in folders of pictures and videos, for searches.

    kd-search index /footage --model student.onnx --gallery people
    kd-search index /footage --model student.onnx --gallery people \\
        --path-pattern '/(?P<camera>cam[0-9]+)/(?P<time>[0-9]{8}_[0-9]{6})'

The gallery is made if it does not exist: a folder, or the tables of a PostgreSQL database with
pgvector (postgresql://USER@HOST/DATABASE). Run it again to add what is new: a file is
read again only where its size, its time or the rules for camera and time have changed. It may be
interrupted at any moment, also by kill -9 or a power failure, and goes on when it runs again.

Of a video one frame in --frame-step seconds is looked at, and a person who is seen in several is
one result. Videos need PyAV (pip install av).

A gallery holds personal data: the file docs/gallery.md says what to consider.

Exit status: 0 indexed (files that cannot be read are named), 2 the input cannot be used, 130
interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from kd_search.cli._arguments import GALLERY_HELP, add_approximate_argument, command_parser


def get_parser() -> argparse.ArgumentParser:
    parser = command_parser("index", __doc__)
    parser.add_argument("sources", nargs="+", metavar="PATH", help="folders, files")
    parser.add_argument("--model", metavar="FILE", required=True, help="from kd-search export")
    parser.add_argument("--gallery", metavar="NAME", required=True, help=GALLERY_HELP)
    rules = parser.add_argument_group(
        "camera and time",
        "Kept in the gallery: give them once. A change applies to files that are indexed already.",
    )
    rules.add_argument(
        "--path-pattern",
        metavar="REGEX",
        help="looked for in the absolute path, with the named groups camera, and time, unix or "
        "year, month, day, hour, minute, second; '' for none",
    )
    rules.add_argument("--time-format", metavar="FORMAT", help="of the group time, as strptime's")
    rules.add_argument(
        "--table", metavar="FILE", help="CSV with the columns path, camera, time; '' for none"
    )
    parser.add_argument(
        "--retention",
        type=float,
        metavar="DAYS",
        help="remove what is older, now and in later runs; 0 keeps all (default: as before)",
    )
    parser.add_argument(
        "--remove-missing", action="store_true", help="remove files that are gone from the folders"
    )
    parser.add_argument("--retry", action="store_true", help="also files that could not be read")
    parser.add_argument(
        "--max-bytes", type=int, default=200_000_000, help="of a picture (default: 200,000,000)"
    )
    parser.add_argument(
        "--max-pixels", type=int, help="of a picture or frame (default: as the model's)"
    )
    parser.add_argument(
        "--frame-step",
        type=float,
        default=0.5,
        metavar="SECONDS",
        help="between the frames of a video that are looked at (default: 0.5)",
    )
    add_approximate_argument(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="default: all cores")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    try:
        return _index(args)
    except (OSError, ValueError, ImportError) as error:
        print(f"index: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\nindex: interrupted; what was found is kept, the same command goes on",
            file=sys.stderr,
        )
        return 130


def _index(args: argparse.Namespace) -> int:
    from kd_search.cli._gallery import Progress, build_index, load_searcher, restore_index
    from kd_search.gallery import Manifest
    from kd_search.gallery.approximate import has_index
    from kd_search.gallery.capture import Capture, CaptureRules
    from kd_search.gallery.footage import check_sources
    from kd_search.gallery.indexing import Indexer, Settings
    from kd_search.gallery.opening import find_manifest, gallery_name, open_writer

    for name in ("max_bytes", "max_pixels", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be 1 or more, not {value}")
    if not args.frame_step > 0:
        raise ValueError(f"--frame-step must be more than 0, not {args.frame_step}")
    if args.retention is not None and not args.retention >= 0:
        raise ValueError(f"--retention must be 0 or more, not {args.retention}")
    check_sources(args.sources)
    had_index = has_index(args.gallery)
    old, name = find_manifest(args.gallery), gallery_name(args.gallery)
    given = {
        "path_pattern": args.path_pattern,
        "time_format": args.time_format,
        "table": os.path.abspath(args.table) if args.table else args.table,
    }
    kept = old.rules if old else {}
    rules = CaptureRules(
        **{
            name: kept.get(name) if value is None else value or None
            for name, value in given.items()
        }
    )
    capture = Capture(rules)
    retention = old.retention_days if old and args.retention is None else args.retention or None
    searcher = load_searcher(args.model, args.threads, args.gallery)
    model = searcher.manifest
    new = Manifest(model["file_sha256"], model["file"], model["embedding_dim"])
    with open_writer(args.gallery, new) as writer:
        if old is None:
            print(
                f"{name}: a new gallery. It will hold embeddings and places of people, "
                "which are personal data: see docs/gallery.md",
                file=sys.stderr,
            )
        writer.set_options(asdict(rules), retention)
        settings = Settings(
            max_bytes=args.max_bytes,
            max_pixels=args.max_pixels or model["max_pixels"],
            frame_step=args.frame_step,
            retry=args.retry,
            remove_missing=args.remove_missing,
            retention_days=retention,
        )
        progress = Progress()
        report = Indexer(writer, searcher, capture, settings).run(args.sources, progress)
        progress.end()
        rows = writer.rows
    _print(report, name, rows)
    if rows and args.approximate:
        build_index(args.gallery)
    restore_index(args.gallery, had_index, rows)
    return 0


#: Unreadable files that are printed.
_NAMED = 20


def _print(report: Any, name: str, rows: int) -> None:
    from kd_search.utils.files import printable

    for line in report.problems[:_NAMED]:
        print(f"skipped: {printable(line)}", file=sys.stderr)
    if len(report.problems) > _NAMED:
        print(f"skipped: {len(report.problems) - _NAMED} more", file=sys.stderr)
    print(
        f"{report.files} files: {report.unchanged} unchanged, {report.with_people} new with "
        f"{report.people} people, {report.nobody} new without, {report.copies} known by their "
        f"content, {len(report.problems)} skipped ({report.seconds:.1f} s)"
    )
    for number, text in (
        (report.do_not_index, "files left out: they must not be indexed"),
        (report.do_not_index_people, "people left out: they must not be indexed"),
        (report.expired, f"files removed and {report.too_old} left out by the retention"),
        (0 if report.expired else report.too_old, "files left out by the retention"),
        (report.removed, "files removed: they are gone"),
        (
            0 if report.removed else report.missing,
            "files are gone from the folders (--remove-missing removes them)",
        ),
    ):
        if number:
            print(f"{number} {text}")
    print(f"{name}: {rows} people to search")
