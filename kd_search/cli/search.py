"""Search for a person in a folder of your own pictures.

    kd-search search output/student --query street.jpg --box 120 40 180 220 \\
        --gallery photos/ --output found.html

Every picture of the gallery folder and of its subfolders is searched, but not the query picture
itself; the most similar person of each counts. The result is a self-contained .html file, or a .png
or .jpg, with a .json of the same name beside it. Without --box, the detection with the highest
score is searched for. A distilled training stands for its student.

Where the gallery is one of kd-search index, the options are others:
kd-search search --gallery people --help

Exit status: 0 searched, 2 the input cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kd_search.cli._arguments import add_network_arguments, command_parser, parse

if TYPE_CHECKING:
    import numpy as np

    from kd_search.engine.searcher import Hit, Outcome, Query
    from kd_search.visualization.tiles import Tile

_PAGES = (".html", ".htm")
_PICTURES = (".png", ".jpg", ".jpeg")
# Number of unreadable files that are printed; the JSON file names all.
_NAMED = 20


def get_parser() -> argparse.ArgumentParser:
    parser = command_parser("search", __doc__)
    add_network_arguments(parser)
    parser.add_argument("--query", metavar="IMAGE", required=True, help="shows the wanted person")
    parser.add_argument(
        "--box",
        nargs=4,
        type=float,
        metavar=("X0", "Y0", "X1", "Y1"),
        help="around the wanted person, in pixels of the query picture as viewers show it",
    )
    parser.add_argument("--gallery", metavar="FOLDER", required=True, help="pictures to search")
    parser.add_argument("--output", metavar="FILE", required=True, help=".html, .png or .jpg")
    parser.add_argument("--top-k", type=int, default=20, metavar="K", help="default: 20")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    # A gallery of kd-search index has other options, and needs no training.
    first = argparse.ArgumentParser("kd-search search", add_help=False)
    first.add_argument("--gallery")
    folder = first.parse_known_args(argv)[0].gallery
    if folder and (
        folder.startswith("postgresql://") or os.path.isfile(os.path.join(folder, "gallery.json"))
    ):
        from kd_search.cli import gallery_search

        return gallery_search.main(argv)
    args = parse(get_parser(), argv)
    try:
        _search(args)
    except (OSError, ValueError) as error:
        print(f"search: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("search: interrupted, nothing was written", file=sys.stderr)
        return 130
    return 0


def _search(args: argparse.Namespace) -> None:
    # Cheap checks first, before the model is loaded.
    if os.path.splitext(args.output)[1].lower() not in _PAGES + _PICTURES:
        raise ValueError(f"{args.output}: the name must end in {', '.join(_PAGES + _PICTURES)}")
    if args.top_k < 1:
        raise ValueError(f"--top-k must be 1 or more, not {args.top_k}")
    if not os.path.isfile(args.query):
        raise FileNotFoundError(f"{args.query}: no such query image")
    from kd_search.cli._runs import network_config
    from kd_search.engine.searcher import (
        WITHOUT_TABLE,
        CheckpointSearcher,
        box_text,
        gallery_images,
    )

    gallery_images(args.gallery, args.query)
    searcher = CheckpointSearcher(*network_config(args, WITHOUT_TABLE))
    query = searcher.find_query(args.query, args.box)
    source = "the given box" if query.score is None else f"detected, score {query.score:.2f}"
    print(f"searching for the person at {box_text(query.box)} of {query.image} ({source})")
    _report(args, query, searcher.search(query, args.gallery, args.top_k))


def _report(args: argparse.Namespace, query: Query, outcome: Outcome) -> None:
    from kd_search.engine.searcher import box_text
    from kd_search.visualization import write_picture
    from kd_search.visualization.drawing import FAINT_INK, INK, PANEL, write_file
    from kd_search.visualization.own_search_page import draw_own_search, write_own_search_page
    from kd_search.visualization.tiles import Tile

    for rank, hit in enumerate(outcome.hits, 1):
        print(f"{rank:4d}  similarity {hit.similarity:6.3f}  score {hit.score:.2f}  ", end="")
        print(f"{hit.image}  box {box_text(hit.box)}")
    facts = [
        f"{outcome.searched} images searched, {outcome.empty} of them without people, "
        f"{len(outcome.unreadable)} unreadable."
    ]
    for image in outcome.left_out:
        facts.append(f"Left out: {image}, which is the query picture.")
    for fact in facts:
        print(fact)
    for message in outcome.unreadable[:_NAMED]:
        print(f"skipped: {message}", file=sys.stderr)
    if len(outcome.unreadable) > _NAMED:
        print(f"skipped: {len(outcome.unreadable) - _NAMED} more", file=sys.stderr)
    if query.score is None:
        origin = [("as marked", INK)]
        facts.append("The wanted person was marked with a box.")
    else:
        origin = [("detected", INK), (f"score {query.score:.2f}", FAINT_INK)]
        facts.append("No box was given: the wanted person is the detection with the highest score.")
    name = (os.path.basename(query.image), FAINT_INK)
    tile = Tile("wanted", _read(query.image), query.box, lines=[*origin, name], ground=PANEL)
    hits = [_tile(rank, hit, args.gallery) for rank, hit in enumerate(outcome.hits, 1)]
    json_file = os.path.splitext(args.output)[0] + ".json"
    write_file(json_file, _json(query, outcome).encode("utf-8"))
    if args.output.lower().endswith(_PAGES):
        write_own_search_page(args.output, "Search for a person", tile, hits, facts)
    else:
        write_picture(args.output, draw_own_search(tile, hits))
    print(f"wrote {args.output} and {json_file}")


def _tile(rank: int, hit: Hit, gallery: str) -> Tile:
    from kd_search.visualization.drawing import FAINT_INK, INK
    from kd_search.visualization.tiles import Tile

    lines = [
        (f"similarity {hit.similarity:.3f}", INK),
        (f"score {hit.score:.2f}", FAINT_INK),
        (os.path.relpath(hit.image, gallery), FAINT_INK),
    ]
    return Tile(f"rank {rank}", _read(hit.image), hit.box, lines=lines)


def _read(image: str) -> np.ndarray | None:
    from kd_search.data import ImageError, read_image

    try:
        # It was read before, with the limit of the config.
        return read_image(image, "RGB", max_pixels=sys.maxsize)
    except ImageError:
        return None


def _json(query: Query, outcome: Outcome) -> str:
    document = {
        "query": {"image": query.image, "box": query.box, "score": query.score},
        "results": [
            {"image": h.image, "box": h.box, "score": h.score, "similarity": h.similarity}
            for h in outcome.hits
        ],
        "images_searched": outcome.searched,
        "images_without_people": outcome.empty,
        "unreadable": outcome.unreadable,
        "left_out": outcome.left_out,
    }
    return json.dumps(document, indent=1, allow_nan=False)
