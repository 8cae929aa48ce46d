"""Contact sheets: small pictures side by side, in named rows and columns."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
from PIL import Image, ImageDraw

from kd_search.visualization.drawing import FAINT_INK, INK, PANEL, PAPER, Colour, fit, font

_GAP = 3


@dataclass
class Cell:
    """One small picture of a sheet."""

    #: (H, W, 3) uint8 RGB; ``None`` shows a grey field in its place.
    picture: Optional[np.ndarray]
    #: One line below it.
    caption: str = ""
    #: Of a frame around it; ``None`` for none.
    frame: Optional[Colour] = None


def draw_cells(cells: Sequence[Cell], columns: int, size: int = 72) -> np.ndarray:
    """Cells from left to right and from top to bottom.

    Args:
        cells: at least one.
        columns: cells of a row.
        size: pixels of the square that each picture is fitted into.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: no cells.
    """
    if not cells:
        raise ValueError("a contact sheet needs at least one picture")
    columns = min(columns, len(cells))
    text = max(9, size // 8) if any(cell.caption for cell in cells) else 0
    step = (size + _GAP, size + _GAP + round(1.5 * text))
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * step[0] + _GAP, rows * step[1] + _GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        x, y = _GAP + column * step[0], _GAP + row * step[1]
        draw.rectangle((x, y, x + size - 1, y + size - 1), fill=PANEL)
        line = 0 if cell.frame is None else max(2, size // 24)
        if cell.picture is not None:
            picture = fit(cell.picture, size - 2 * line, size - 2 * line)
            left, top = x + (size - picture.width) // 2, y + (size - picture.height) // 2
            if line:
                frame = (left - line, top - line, left + picture.width, top + picture.height)
                draw.rectangle((*frame[:2], frame[2] + line - 1, frame[3] + line - 1), cell.frame)
            sheet.paste(picture, (left, top))
        if cell.caption:
            shown = _shortened(draw, cell.caption, size, text)
            draw.text((x, y + size), shown, fill=INK, font=font(text))
    return np.asarray(sheet)


def draw_sheet(
    rows: Mapping[str, Mapping[str, Sequence[Optional[np.ndarray]]]],
    columns: Sequence[str],
    *,
    size: int = 56,
) -> np.ndarray:
    """Pictures by row and column; each place of this table holds several.

    Args:
        rows: name of a row to name of a column to its pictures, (H, W, 3) uint8 RGB or ``None``.
            "none" is written where there are none.
        columns: their names, in order.
        size: pixels of the square that each picture is fitted into.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: no rows or no columns.
    """
    if not rows or not columns:
        raise ValueError("a contact sheet needs at least one row and one column")
    most = max(len(row.get(column, ())) for row in rows.values() for column in columns)
    across = _pictures_across(most)
    text = max(10, size // 4)
    names = _name_width(rows, text)
    width = max(across * (size + _GAP) + _GAP, round(4 * text))
    blocks = {
        name: [_block(row.get(column, ()), across, size, text) for column in columns]
        for name, row in rows.items()
    }
    heights = {name: max(b.height for b in row) + 3 * _GAP for name, row in blocks.items()}
    head = 2 * text
    canvas = Image.new(
        "RGB", (names + len(columns) * (width + 3 * _GAP), head + sum(heights.values())), PAPER
    )
    draw = ImageDraw.Draw(canvas)
    starts = [names + i * (width + 3 * _GAP) for i in range(len(columns))]
    for x, column in zip(starts, columns):
        draw.text((x + _GAP, text // 3), column, fill=INK, font=font(text, bold=True))
    y = head
    for name, row in blocks.items():
        draw.line((0, y - _GAP, canvas.width, y - _GAP), fill=PANEL)
        shown = _shortened(draw, name, names - 3 * _GAP, text)
        draw.text((_GAP, y + _GAP), shown, fill=INK, font=font(text))
        for x, block in zip(starts, row):
            canvas.paste(block, (x, y))
        y += heights[name]
    return np.asarray(canvas)


def _pictures_across(most: int) -> int:
    """Twice as wide as high: ten pictures become two lines of five."""
    return max(1, int(np.ceil(np.sqrt(2 * most))))


def _name_width(rows: Iterable[str], text: int) -> int:
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    longest = max(draw.textlength(name, font(text)) for name in rows)
    return round(min(longest, 10 * text)) + 4 * _GAP


def _block(pictures: Sequence[Optional[np.ndarray]], across: int, size: int, text: int):
    if pictures:
        return Image.fromarray(draw_cells([Cell(picture) for picture in pictures], across, size))
    block = Image.new("RGB", (4 * text, size), PAPER)
    ImageDraw.Draw(block).text((_GAP, _GAP), "none", fill=FAINT_INK, font=font(text))
    return block


def _shortened(draw: ImageDraw.ImageDraw, text: str, width: int, size: int) -> str:
    """The text, cut off at its end where it is longer than ``width`` pixels."""
    if draw.textlength(text, font(size)) <= width:
        return text
    while text and draw.textlength(f"{text}…", font(size)) > width:
        text = text[:-1]
    return f"{text}…"
