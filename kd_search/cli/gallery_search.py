"""Search for a person in a gallery of kd-search index.

    kd-search search --gallery people --model student.onnx --query street.jpg
    kd-search search --gallery people --model student.onnx --query a.jpg b.jpg \\
        --box 120 40 180 220 --box 33 50 80 190 --camera door --from 2026-11-01 --to 2026-11-03 \\
        --output found.html

Several query pictures show the same person; their mean is searched for. Without --box, the person
with the highest score of each query picture is meant. --person searches for people that an earlier
search has found, by their ids. Query pictures that are in the gallery are left out. Each result
says whether it is likely the same person, by the calibration of the model.

--right and --wrong mark results by their ids and search again, closer to the right ones and without
the wrong ones; with --marks FILE they are kept for the next search, and --undo removes the last.

--rerank names a query-guided network (kd-search export --query-guided): it compares the pictures of
the best --shortlist results with that of the one wanted person, and orders these results anew.

Exit status: 0 searched, 2 the input cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kd_search.cli._arguments import GALLERY_HELP, command_parser

if TYPE_CHECKING:
    import numpy as np

    from kd_search.gallery import Filter
    from kd_search.gallery.marks import Marks

_PAGES = (".html", ".htm")


def get_parser() -> argparse.ArgumentParser:
    parser = command_parser("search", __doc__)
    parser.add_argument("--gallery", metavar="NAME", required=True, help=GALLERY_HELP)
    parser.add_argument("--model", metavar="FILE", help="with which it was indexed")
    parser.add_argument("--query", metavar="IMAGE", nargs="+", default=[], help="the wanted person")
    parser.add_argument("--person", metavar="ID", nargs="+", default=[], help="found earlier")
    parser.add_argument(
        "--box",
        nargs=4,
        type=float,
        action="append",
        default=[],
        metavar=("X0", "Y0", "X1", "Y1"),
        help="around the wanted person, in pixels of the query picture as viewers show it; once "
        "for each query picture",
    )
    parser.add_argument("--top-k", type=int, default=20, metavar="K", help="default: 20")
    parser.add_argument(
        "--approximate",
        action="store_true",
        help="use the index of kd-search index --approximate, faster for a very large gallery",
    )
    parser.add_argument(
        "--per",
        choices=("person", "picture", "camera"),
        default="picture",
        help="at most one result for each (default: picture; person: no limit)",
    )
    add_filter_arguments(parser)
    parser.add_argument("--right", metavar="ID", nargs="+", default=[], help="results to keep near")
    parser.add_argument("--wrong", metavar="ID", nargs="+", default=[], help="results to leave out")
    parser.add_argument("--marks", metavar="FILE", help="keeps --right and --wrong (JSON)")
    parser.add_argument("--undo", action="store_true", help="remove the last of --marks first")
    parser.add_argument("--rerank", metavar="FILE", help="query-guided network, an ONNX file")
    parser.add_argument(
        "--shortlist", type=int, default=20, metavar="K", help="results for --rerank (default: 20)"
    )
    parser.add_argument(
        "--output", metavar="FILE", help=".html, with a .json beside it, or .json alone"
    )
    return parser


def add_filter_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of :func:`filter_of`."""
    parser.add_argument("--camera", metavar="NAME", nargs="+", default=[], help="only these")
    parser.add_argument("--from", dest="start", metavar="TIME", help="2026-11-03T14:05 or a day")
    parser.add_argument("--to", dest="end", metavar="TIME", help="included: the whole day, minute")
    parser.add_argument("--folder", metavar="FOLDER", nargs="+", default=[], help="only in these")
    parser.add_argument("--min-score", type=float, metavar="S", help="of the detector")


def filter_of(args: argparse.Namespace) -> Filter:
    """The filter of :func:`add_filter_arguments`."""
    from kd_search.gallery import Filter
    from kd_search.gallery.capture import parse_time

    return Filter(
        cameras=args.camera,
        start=None if args.start is None else parse_time(args.start),
        end=None if args.end is None else parse_time(args.end, end=True),
        folders=[os.path.abspath(folder) for folder in args.folder],
        min_score=args.min_score,
    )


@dataclass
class Wanted:
    """The person that is searched for, in one picture."""

    image: str
    box: tuple[float, ...]
    #: Of the detector; ``None`` for a given box.
    score: float | None


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    try:
        _search(args)
    except (OSError, ValueError, ImportError) as error:
        print(f"search: {error}", file=sys.stderr)
        return 2
    return 0


def _search(args: argparse.Namespace) -> None:
    if args.output and os.path.splitext(args.output)[1].lower() not in (*_PAGES, ".json"):
        raise ValueError(f"{args.output}: the name must end in .html or .json")
    if args.top_k < 1:
        raise ValueError(f"--top-k must be 1 or more, not {args.top_k}")
    if not args.query and not args.person:
        raise ValueError("name the wanted person: --query IMAGE or --person ID")
    if args.query and not args.model:
        raise ValueError("--query needs --model FILE, the one with which the gallery was indexed")
    if args.box and len(args.box) != len(args.query):
        raise ValueError(f"{len(args.box)} --box for {len(args.query)} query pictures")
    if args.shortlist < 1:
        raise ValueError(f"--shortlist must be 1 or more, not {args.shortlist}")
    if args.rerank and len(args.query) + len(args.person) != 1:
        raise ValueError("--rerank compares with one picture: name one --query or one --person")
    where, marks = filter_of(args), _marks(args)
    from kd_search.cli._gallery import load_guided_searcher, load_searcher
    from kd_search.gallery.opening import open_gallery
    from kd_search.gallery.ranking import ranked
    from kd_search.utils.files import file_sha256, printable

    searcher = load_searcher(args.model, gallery=args.gallery) if args.model else None
    guided = load_guided_searcher(args.rerank) if args.rerank else None
    gallery = open_gallery(args.gallery, approximate=args.approximate)
    wanted, rows = find_people(searcher, args.query, args.box)
    own = list(args.person)
    for image in args.query:
        ids = gallery.ids_of(file_sha256(image))
        if ids:
            print(printable(f"left out: {image}, which is a query picture"))
        own += ids
    for hit_id in args.person:
        hit = gallery.hit(hit_id)
        wanted.append(Wanted(hit.path, hit.box, hit.score))
        rows.append(gallery.embedding(hit_id))
    calibration = searcher.manifest["calibration"] if searcher else None
    # Before anything is written: an id may be wrong.
    count = max(args.top_k, args.shortlist) if guided else args.top_k
    results = ranked(
        gallery, rows, marks, calibration, where, top_k=count, per=args.per, without=own
    )
    if guided is not None:
        results = _reranked(args, gallery, results, guided, wanted[0])
    if args.marks:
        marks.write(args.marks)
    _report(args, len(gallery), wanted, results, searcher)


def _reranked(
    args: argparse.Namespace, gallery: Any, results: list[dict[str, Any]], guided: Any, wanted: Any
) -> list[dict[str, Any]]:
    from kd_search.gallery.scenes import read_picture, read_scene
    from kd_search.gallery.shortlist import rerank
    from kd_search.utils.files import printable

    most = guided.manifest["max_pixels"]
    if args.person:
        picture = read_scene(gallery.hit(args.person[0]), most)
    else:
        picture = read_picture(wanted.image, most)
    results, errors = rerank(results, guided, guided.query(picture, wanted.box), args.shortlist)
    for error in errors:
        print(printable(f"not compared again: {error}"))
    return results[: args.top_k]


def _marks(args: argparse.Namespace) -> Marks:
    from kd_search.gallery.marks import Marks

    if args.undo and not args.marks:
        raise ValueError("--undo needs --marks FILE")
    marks = Marks.read(args.marks) if args.marks else Marks()
    if args.undo and marks.undo() is None:
        raise ValueError(f"{args.marks}: has no mark to undo")
    marks.add(args.right, True)
    marks.add(args.wrong, False)
    return marks


def find_people(
    searcher: Any, images: Sequence[str], boxes: Sequence[Sequence[float]]
) -> tuple[list[Wanted], list[np.ndarray]]:
    """Find and embed the wanted person of each picture.

    Args:
        searcher: :class:`kd_search.runtime.PersonSearcher`.
        images: files.
        boxes: one for each, or none: then the people with the highest scores are meant.

    Returns:
        The people and their embeddings (D,).

    Raises:
        ValueError: a picture cannot be read, nobody is in it, or a box is outside; names the file.
    """
    from kd_search.gallery.scenes import read_picture

    wanted, rows = [], []
    for index, image in enumerate(images):
        pixels = read_picture(image, searcher.manifest["max_pixels"])
        if boxes:
            box = tuple(boxes[index])
            try:
                rows.append(searcher.embed(pixels, [box])[0])
            except ValueError as error:
                raise ValueError(f"{image}: --box {_text(box)}: {error}") from None
            wanted.append(Wanted(image, box, None))
            continue
        found, scores, embeddings = searcher.detect(pixels)
        if not len(scores):
            raise ValueError(f"{image}: nobody was found: mark the person with --box")
        best = int(scores.argmax())
        rows.append(embeddings[best])
        wanted.append(Wanted(image, tuple(map(float, found[best])), float(scores[best])))
    return wanted, rows


def _report(
    args: argparse.Namespace,
    people: int,
    wanted: list[Wanted],
    results: list[dict[str, Any]],
    searcher: Any,
) -> None:
    from kd_search.utils.files import printable, write_json
    from kd_search.visualization.own_search_page import span_of

    calibration = searcher.manifest["calibration"] if searcher else None
    for person in wanted:
        how = "the given box" if person.score is None else f"score {person.score:.2f}"
        print(
            printable(f"searching for the person at {_text(person.box)} of {person.image} ({how})")
        )
    for rank, r in enumerate(results, 1):
        place = " ".join(filter(None, (r["camera"], r["time_text"])))
        second = "" if r["second"] is None else f" {span_of(r)}"
        line = (
            f"{rank:4d}  {r['similarity']:6.3f}  {r['verdict']:8}  {r['id']:>8}  {place}  "
            f"{r['path']}{second}  box {_text(r['box'])}{'  (right)' if r['mark'] else ''}"
        )
        if (guided := r.get("query_guided_similarity")) is not None:
            line += f"  query-guided {guided:.3f}"
        print(printable(line))
    facts = [f"{people:,} people in the gallery, {len(results)} results."]
    if not calibration:
        facts.append(
            "Which similarity means the same person is not known: the model is not calibrated."
            if searcher
            else "Without --model, what a similarity means is not known."
        )
    for fact in facts:
        print(fact)
    if args.output:
        written = [os.path.splitext(args.output)[0] + ".json"]
        query = [asdict(person) for person in wanted]
        document = {"query": query, "results": results, "calibration": calibration}
        write_json(written[0], document)
        if args.output.lower().endswith(_PAGES):
            _write_page(args.output, wanted, results, facts)
            written.insert(0, args.output)
        print(f"wrote {' and '.join(written)}")


def _write_page(
    path: str, wanted: list[Wanted], results: list[dict[str, Any]], facts: list[str]
) -> None:
    from kd_search.gallery.scenes import read_picture
    from kd_search.utils.pictures import ImageError
    from kd_search.visualization.own_search_page import (
        result_tiles,
        wanted_tile,
        write_own_search_page,
    )

    queries = []
    for person in wanted:
        try:
            scene = read_picture(person.image)
        except ImageError:
            scene = None
        queries.append(wanted_tile(os.path.basename(person.image), scene, person.box))
    write_own_search_page(path, "Search for a person", queries, result_tiles(results), facts)


def _text(box: Sequence[float]) -> str:
    return " ".join(f"{value:.0f}" for value in box)
