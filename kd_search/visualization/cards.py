"""People as cards of a page: the scene, the cropped person and lines of text."""

from collections.abc import Iterable
from html import escape

import numpy as np

from . import page
from .tiles import Tile, framed_person, scene_with_boxes


def card_list(
    tiles: Iterable[Tile],
    style: str = "hits",
    *,
    ranked: bool = True,
    captions: bool = True,
    width: int = 560,
) -> str:
    """Tiles as a list of HTML, with real images that have alternative texts.

    Args:
        tiles: in the order of the list.
        style: "hits" for cards with a large scene, beside each other; "ranks" for rows; "wanted"
            for a query.
        ranked: whether the order means something: a numbered list for screen readers.
        captions: whether titles and lines stand beside the pictures.
        width: of the scenes, in pixels; twice their size on the screen is sharp on all.
    """
    items = "".join(_card(tile, captions, width) for tile in tiles)
    kind = "ol" if ranked else "ul"
    # Browsers drop the semantics of lists that are drawn without markers, unless told otherwise.
    return f'<{kind} class="{style}" role="list">\n{items}</{kind}>\n'


def _card(tile: Tile, captions: bool, width: int) -> str:
    what = f"{tile.title}{'' if tile.correct is None else ', right' if tile.correct else ', wrong'}"
    parts = []
    if tile.scene is None:
        parts.append(f'<p class="missing">{escape(tile.missing)}</p>')
    else:
        scene = np.asarray(scene_with_boxes(tile, width, width * 3 // 4))
        where = "the person is framed" if tile.box is not None else "no person is framed"
        dashed = ", and the true place is dashed" if tile.truth is not None else ""
        alt = f"{what}: the whole picture, {where}{dashed}"
        # Scenes are most of the size of a page.
        parts.append(page.photo(scene, alt, quality=72))
    person = framed_person(tile, 120, 200)
    if person is not None:
        parts.append(page.photo(np.asarray(person), f"{what}: the person"))
    if captions:
        mark = ""
        if tile.correct is not None:
            mark = '<i class="good">✓</i> ' if tile.correct else '<i class="bad">✗</i> '
        lines = "".join(f"<span>{escape(text)}</span>" for text, _ in tile.lines)
        parts.append(f"<div><b>{mark}{escape(tile.title)}</b>{lines}</div>")
    return f"<li>{''.join(parts)}</li>\n"
