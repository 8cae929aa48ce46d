"""A found (or wanted) person as a tile: the scene, the cropped person and lines of text."""

from dataclasses import dataclass, field
from typing import Optional

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from .drawing import (
    FAINT_INK,
    INK,
    PANEL,
    PAPER,
    QUERY,
    RIGHT,
    TRUTH,
    WRONG,
    Box,
    Colour,
    crop,
    draw_box,
    draw_mark,
    fit,
    font,
)


@dataclass
class Tile:
    """Content of one tile."""

    #: First line, strong: "query 12", "rank 1".
    title: str
    #: (H, W, 3) uint8 RGB scene; ``None`` shows ``missing`` in its place.
    scene: Optional[np.ndarray] = None
    #: XYXY in pixels of ``scene``.
    box: Optional[Box] = None
    #: Right or wrong; ``None`` without ground truth, and for queries.
    correct: Optional[bool] = None
    #: XYXY of the person's true place, drawn dashed.
    truth: Optional[Box] = None
    #: Lines under the title, each (text, colour).
    lines: list[tuple[str, Colour]] = field(default_factory=list)
    #: Text in place of a missing scene.
    missing: str = "no picture"
    #: Ground of the tile; queries stand out.
    ground: Colour = PAPER

    @property
    def colour(self) -> Colour:
        """Of the found box: right, wrong or neither."""
        return QUERY if self.correct is None else (RIGHT if self.correct else WRONG)


def tile_size(width: int) -> tuple[int, int]:
    """Width and height of a rendered tile: the 4:3 scene above the person and the text."""
    return width, round(0.75 * width) + round(0.52 * width)


def render_tile(tile: Tile, width: int) -> Image.Image:
    """Draw a tile of ``width`` pixels, see :func:`tile_size`."""
    picture = Image.new("RGB", tile_size(width), tile.ground)
    draw = ImageDraw.Draw(picture)
    pad, scene_height = max(2, width // 50), round(0.75 * width)
    if tile.scene is None:
        draw.rectangle((pad, pad, width - pad, scene_height - pad), fill=PANEL)
        place = (2 * pad, scene_height // 2)
        _draw_fitted(draw, place, tile.missing, width - 4 * pad, max(9, width // 16))
    else:
        scene = scene_with_boxes(tile, width - 2 * pad, scene_height - 2 * pad)
        # Scenes of any shape stand on one line, flush with the person below.
        picture.paste(scene, (pad, scene_height - pad - scene.height))
    person_width = round(0.26 * width)
    person = framed_person(tile, person_width, round(0.5 * width))
    if person is not None:
        picture.paste(person, (pad, scene_height))
    _draw_text(draw, tile, person_width + 4 * pad, scene_height, width)
    return picture


def scene_with_boxes(tile: Tile, width: int, height: int) -> Image.Image:
    """The scene of a tile, fitted into that size, with the found box and the true one."""
    if tile.scene is None:
        raise ValueError(f"{tile.title}: there is no scene to draw")
    scaled = fit(tile.scene, width, height)
    draw = ImageDraw.Draw(scaled)
    line = max(2, width // 90)
    zoom = (scaled.width / tile.scene.shape[1], scaled.height / tile.scene.shape[0]) * 2
    if tile.truth is not None:
        draw_box(draw, [v * z for v, z in zip(tile.truth, zoom)], TRUTH, line, dashed=True)
    if tile.box is not None:
        draw_box(draw, [v * z for v, z in zip(tile.box, zoom)], tile.colour, line)
    return scaled


def framed_person(tile: Tile, width: int, height: int) -> Optional[Image.Image]:
    """The content of a tile's box, fitted into that size, in a frame of the box's colour."""
    person = None
    if tile.scene is not None and tile.box is not None:
        person = crop(tile.scene, tile.box)
    if person is None:
        return None
    line = max(2, width // 24)
    return ImageOps.expand(fit(person, width - 2 * line, height - 2 * line), line, tile.colour)


def _draw_text(draw, tile: Tile, x: int, y: int, width: int) -> None:
    size = max(9, width // 14)
    available = width - x - 2
    title_width = available
    if tile.correct is not None:
        mark = round(1.25 * size)
        draw_mark(draw, width - mark - size // 3, y, mark, tile.correct)
        title_width -= mark + size // 2
    _draw_fitted(draw, (x, y), tile.title, title_width, round(1.1 * size), INK, bold=True)
    y += round(1.75 * size)
    for text, colour in tile.lines:
        _draw_fitted(draw, (x, y), text, available, size, colour)
        y += round(1.35 * size)


def _draw_fitted(
    draw,
    place: tuple[int, int],
    text: str,
    width: int,
    size: int,
    colour: Colour = FAINT_INK,
    bold: bool = False,
) -> None:
    """Write one line: smaller, then shortened, until it is at most ``width`` pixels wide."""
    smallest = max(7, round(0.72 * size))
    while size > smallest and draw.textlength(text, font(size, bold)) > width:
        size -= 1
    shown, kept = text, len(text)
    while kept > 1 and draw.textlength(shown, font(size, bold)) > width:
        # From the middle: both ends of a path matter most.
        kept -= 1
        shown = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
    draw.text(place, shown, fill=colour, font=font(size, bold))
