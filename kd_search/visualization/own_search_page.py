"""Pages and pictures of a search in the user's own pictures, which have no ground truth."""

from collections.abc import Sequence
from html import escape
from typing import Union

import numpy as np
from PIL import Image

from . import page
from .cards import card_list
from .drawing import PAPER, write_file
from .tiles import Tile, render_tile, tile_size


def write_own_search_page(
    path: str,
    title: str,
    query: Union[Tile, Sequence[Tile]],
    hits: Sequence[Tile],
    facts: Sequence[str],
) -> None:
    """Write one self-contained HTML file with the wanted person and the people found.

    Args:
        path: HTML file; readers see the old one or the whole new one.
        title: plain text, as all text here.
        query: the wanted person, in one or several pictures.
        hits: the people found, best first.
        facts: about the search, a paragraph each.
    """
    queries = [query] if isinstance(query, Tile) else query
    found = card_list(hits) if hits else page.paragraph("No person was found.")
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
    write_file(path, page.page(title, sections).encode("utf-8"))


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
