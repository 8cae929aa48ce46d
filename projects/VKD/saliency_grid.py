"""Grid of heat maps over crops: a row for each person, a column for each network."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

from kd_search.visualization.drawing import FAINT_INK, INK, PAPER, fit, font

#: Even steps of heat look even, in grey and to colour-blind readers too.
_COLOURS = colormaps["inferno"]
#: Share of the colour where it is hottest; cold places show the crop.
_STRENGTH = 0.7


@dataclass(frozen=True)
class HeatTile:
    """Heat of one network for a crop."""

    heat: np.ndarray  # (H, W) in 0..1
    #: Below the tile, such as "cosine 0.71".
    caption: str


@dataclass(frozen=True)
class SaliencyRow:
    """A person, and the heat of every network."""

    crop: np.ndarray  # (H, W, 3) uint8 RGB
    #: Below the crop.
    caption: str
    tiles: Sequence[HeatTile]


def overlay(crop: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB crop in grey, coloured by (H, W) heat in 0..1; unchanged grey where
    the heat is 0.

    Raises:
        ValueError: shapes that do not match.
    """
    if crop.ndim != 3 or crop.shape[:2] != heat.shape:
        raise ValueError(f"heat of shape {heat.shape} does not match a crop of {crop.shape}")
    grey = np.asarray(Image.fromarray(crop).convert("L"), dtype=np.float64)[:, :, None]
    share = _STRENGTH * np.clip(heat, 0, 1)[:, :, None]
    coloured = 255 * _COLOURS(heat)[:, :, :3]
    return ((1 - share) * grey + share * coloured).round().astype(np.uint8)


def draw_saliency(
    rows: Sequence[SaliencyRow],
    columns: Sequence[str],
    title: str,
    *,
    note: str = "",
    tile_height: int = 224,
) -> np.ndarray:
    """Draw crops and heat side by side.

    Args:
        rows: each with a tile for every column.
        columns: names of the networks.
        title: above.
        note: below, wrapped.
        tile_height: pixels of a crop.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: no rows, or not one tile for each column.
    """
    if not rows or any(len(row.tiles) != len(columns) for row in rows):
        raise ValueError("there is nothing to draw, or a row lacks the tile of a network")
    size = max(10, tile_height // 16)
    gap, line = max(4, tile_height // 24), round(1.5 * size)
    pictures = [
        [row.crop, *(overlay(_resized(row.crop, t.heat), t.heat) for t in row.tiles)]
        for row in rows
    ]
    tiles = [[fit(picture, 10**6, tile_height) for picture in row] for row in pictures]
    captions = [[row.caption, *(tile.caption for tile in row.tiles)] for row in rows]
    heads = ["picture", *columns]
    widest = max(_width(text, size) for text in [*heads, *sum(captions, [])])
    column = max(widest, max(tile.width for row in tiles for tile in row)) + 2 * gap
    width = max(column * len(heads), round(_width(title, size, bold=True)) + 2 * gap)
    lines = _wrapped(note, width - 2 * gap, size) if note else []
    row_height = tile_height + line + gap
    height = 2 * line + gap + row_height * len(rows) + (len(lines) * line + gap if lines else 0)
    canvas = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((gap, gap // 2), title, fill=INK, font=font(size, True))
    for place, head in enumerate(heads):
        draw.text((place * column + gap, line + gap // 2), head, fill=INK, font=font(size))
    for number, (row, texts) in enumerate(zip(tiles, captions)):
        top = 2 * line + gap + number * row_height
        for place, (tile, text) in enumerate(zip(row, texts)):
            left = place * column + gap
            canvas.paste(tile, (left, top))
            draw.text((left, top + tile_height), text, fill=FAINT_INK, font=font(size))
    for number, text in enumerate(lines):
        top = 2 * line + gap + row_height * len(rows) + number * line
        draw.text((gap, top), text, fill=FAINT_INK, font=font(size))
    return np.asarray(canvas)


def _resized(crop: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The crop in the size of the heat: networks may take crops of several sizes."""
    if crop.shape[:2] == heat.shape:
        return crop
    size = (heat.shape[1], heat.shape[0])
    return np.asarray(Image.fromarray(crop).resize(size, Image.Resampling.BICUBIC))


def _width(text: str, size: int, bold: bool = False) -> int:
    return int(np.ceil(font(size, bold).getlength(text)))


def _wrapped(text: str, width: int, size: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _width(longer, size) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
