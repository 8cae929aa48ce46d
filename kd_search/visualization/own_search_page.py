"""Pages and pictures of a search in the user's own pictures, which have no ground truth."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from html import escape
from itertools import chain
from typing import Any, Callable, Optional, Union

import numpy as np
from PIL import Image

from kd_search.gallery.results import Hit
from kd_search.gallery.scenes import read_scene
from kd_search.utils.files import printable
from kd_search.utils.pictures import ImageError

from . import page
from .cards import card_list
from .drawing import FAINT_INK, INK, PANEL, PAPER, Box, write_file
from .tiles import Tile, render_tile, tile_size


def write_own_search_page(
    path: str,
    title: str,
    query: Union[Tile, Sequence[Tile]],
    hits: Iterable[Tile],
    facts: Sequence[str],
) -> None:
    """Write :func:`own_search_page` to a file; readers see the old one or the whole new one."""
    write_file(path, own_search_page(title, query, hits, facts).encode("utf-8"))


def own_search_page(
    title: str,
    query: Union[Tile, Sequence[Tile]],
    hits: Iterable[Tile],
    facts: Sequence[str],
) -> str:
    """One self-contained HTML document with the wanted person and the people found.

    Args:
        title: plain text, as all text here.
        query: the wanted person, in one or several pictures.
        hits: the people found, best first; they are taken one at a time.
        facts: about the search, a paragraph each.
    """
    queries = [query] if isinstance(query, Tile) else query
    hits = iter(hits)
    first = next(hits, None)
    nobody = page.paragraph("No person was found.")
    found = nobody if first is None else card_list(chain([first], hits))
    sections = [
        f"<header><h1>{escape(title)}</h1>"
        f"{''.join(page.paragraph(fact, 'faint') for fact in facts)}</header>\n",
        page.section("Wanted", card_list(queries, ranked=False)),
        page.section(
            "Found, most similar first",
            page.paragraph(
                "Similarity is the cosine between the embeddings of the wanted and the found "
                "person, at most 1. The score is the detector's confidence that this is a person. "
                "Check by eye whether it is the wanted one.",
                "faint",
            ),
            found,
        ),
    ]
    return page.page(title, sections)


def wanted_tile(name: str, scene: Optional[np.ndarray], box: Optional[Box]) -> Tile:
    """Tile of a wanted person.

    Args:
        name: of the picture.
        scene: (H, W, 3) uint8 RGB, ``None`` if it cannot be read.
        box: XYXY of the person.
    """
    return Tile("wanted", scene, box, lines=[(printable(name), FAINT_INK)], ground=PANEL)


def result_tiles(
    results: Iterable[dict[str, Any]], read: Callable[[Hit], np.ndarray] = read_scene
) -> Iterable[Tile]:
    """Tiles of a gallery's results, whose pictures are read one at a time.

    Args:
        results: of :func:`kd_search.gallery.ranking.ranked`.
        read: as :func:`read_scene`.
    """
    for rank, r in enumerate(results, 1):
        lines = [
            (f"{r['verdict']}, similarity {r['similarity']:.3f}", INK),
            (place_of(r) or "time unknown", FAINT_INK),
            *([] if r["second"] is None else [(span_of(r), FAINT_INK)]),
            (f"score {r['score']:.2f}, id {r['id']}", FAINT_INK),
            (printable(r["path"]), FAINT_INK),
        ]
        tile = Tile(f"rank {rank}", correct=True if r["mark"] else None, lines=lines)
        try:
            tile.scene = read(Hit(**{field.name: r[field.name] for field in fields(Hit)}))
            tile.box = r["box"]
        except ImageError as error:
            tile.missing = printable(f"no picture: {error}")
        yield tile


def place_of(result: dict[str, Any]) -> str:
    """Camera and time of a result, as far as they are known."""
    return printable(" ".join(filter(None, (result["camera"], result["time_text"]))))


def span_of(result: dict[str, Any]) -> str:
    """When somebody is seen in a video."""
    return f"at {result['second']:.1f} s, seen {result['first']:.1f} to {result['last']:.1f} s"


def draw_own_search(query: Tile, hits: Sequence[Tile], columns: int = 5) -> np.ndarray:
    """The same as one picture: the wanted person, then the people found.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    width, height = tile_size(300)
    tiles = [query, *hits]
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    canvas = Image.new("RGB", (columns * (width + 10) + 10, rows * (height + 10) + 10), PAPER)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        place = (10 + column * (width + 10), 10 + row * (height + 10))
        canvas.paste(render_tile(tile, width), place)
    return np.asarray(canvas)
