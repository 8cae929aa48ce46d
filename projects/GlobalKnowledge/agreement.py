"""Draws annotated boxes in the colour of the agreement of student and teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
from contact_sheet import Cell, draw_cells
from PIL import Image, ImageDraw

from kd_search.visualization.drawing import INK, PAPER, Colour, crop, draw_box, fit, font

#: From the lowest to the highest agreement; distinct for colour-blind readers (Okabe and Ito's),
#: and never the only cue: the number is printed.
_COLOURS = ((213, 94, 0), (240, 228, 66), (0, 158, 215))
_LABEL_GROUND: Colour = (17, 24, 39)


@dataclass
class MeasuredScene:
    """An image with R annotated boxes and the agreement of two networks on them."""

    #: Name of the image.
    name: str
    #: (R, 4) XYXY, pixels of the image.
    boxes: np.ndarray
    #: (R,) names of the classes.
    classes: list[str]
    #: (R,) names of the levels that the boxes belong to.
    levels: list[str]
    #: (R,) from 0 to 1, at these levels.
    agreement: np.ndarray
    #: (H, W, 3) uint8 RGB; ``None`` where it is not loaded or cannot be read.
    scene: Optional[np.ndarray] = None
    #: (R,) visible share of each, 0 to 1; ``None`` where it is not annotated.
    visible: Optional[np.ndarray] = None

    @property
    def lowest(self) -> float:
        """The lowest agreement on any box; 1 where there is none."""
        return float(self.agreement.min()) if len(self.agreement) else 1.0

    def order(self) -> list[int]:
        """Numbers of the boxes, the lowest agreement first."""
        return [int(i) for i in np.argsort(self.agreement, kind="stable")]

    def label(self, box: int) -> str:
        """Number, level and class of a box in one short line."""
        return f"{self.agreement[box]:.2f} {self.levels[box]} {self.classes[box]}"


def scale_start(values: np.ndarray) -> float:
    """Where a colour scale that ends at 1 begins, for (R,) agreements: their lowest, on the tenth
    below, and at most 0.9."""
    return min(0.9, float(np.floor(10 * values.min() + 1e-6)) / 10) if len(values) else 0.0


def agreement_colour(value: float, start: float) -> Colour:
    """Colour of an agreement on the scale from ``start`` to 1; beyond it, that of its end."""
    place = min(1.0, max(0.0, (value - start) / (1 - start))) * (len(_COLOURS) - 1)
    low = min(int(place), len(_COLOURS) - 2)
    share = place - low
    red, green, blue = (
        round((1 - share) * a + share * b) for a, b in zip(_COLOURS[low], _COLOURS[low + 1])
    )
    return red, green, blue


def draw_scale(start: float, width: int = 420) -> np.ndarray:
    """The colour scale as a bar with numbers, (H, W, 3) uint8 RGB."""
    bar, text, margin = 16, 13, 16
    canvas = Image.new("RGB", (width, bar + 2 * text), PAPER)
    draw = ImageDraw.Draw(canvas)
    length = width - 2 * margin
    for x in range(length):
        colour = agreement_colour(start + (1 - start) * x / (length - 1), start)
        draw.line((margin + x, 0, margin + x, bar), fill=colour)
    for share in (0.0, 0.5, 1.0):
        number = f"{start + (1 - start) * share:.2f}"
        left = margin + share * length - draw.textlength(number, font(text)) / 2
        draw.text((left, bar + 4), number, fill=INK, font=font(text))
    return np.asarray(canvas)


def draw_scene(measured: MeasuredScene, start: float, width: int = 560) -> np.ndarray:
    """A scene with its boxes and a label on each; where boxes overlap, the lower agreement is on
    top.

    Args:
        measured: with its ``scene``.
        start: of the colour scale.
        width: pixels of the picture, which is not higher than wide; small scenes are scaled up.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    if measured.scene is None:
        raise ValueError(f"{measured.name}: there is no scene to draw")
    picture = fit(measured.scene, width, width)
    draw = ImageDraw.Draw(picture)
    zoom = (picture.width / measured.scene.shape[1], picture.height / measured.scene.shape[0]) * 2
    for box in reversed(measured.order()):
        colour = agreement_colour(float(measured.agreement[box]), start)
        place = [v * z for v, z in zip(measured.boxes[box], zoom)]
        draw_box(draw, place, colour, max(2, width // 200))
    for box in reversed(measured.order()):
        colour = agreement_colour(float(measured.agreement[box]), start)
        x, y = (v * z for v, z in zip(measured.boxes[box][:2], zoom))
        _draw_label(draw, measured.label(box), (x, y), colour, picture.size, max(10, width // 42))
    return np.asarray(picture)


def draw_boxes_in_order(
    scenes: Sequence[MeasuredScene],
    start: float,
    count: int = 40,
    columns: int = 10,
    size: int = 104,
) -> np.ndarray:
    """The boxes of the lowest agreement, cut out, as a contact sheet.

    Args:
        scenes: with their ``scene``.
        start: of the colour scale.
        count: so many boxes, fewer where there are fewer.
        columns, size: see :func:`draw_cells`.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: there is no box.
    """
    cells = []
    for scene, box in lowest_boxes(scenes, count):
        part = None if scene.scene is None else crop(scene.scene, tuple(scene.boxes[box]))
        colour = agreement_colour(float(scene.agreement[box]), start)
        cells.append(Cell(part, scene.label(box), colour))
    return draw_cells(cells, columns, size)


def lowest_boxes(scenes: Sequence[MeasuredScene], count: int) -> list[tuple[MeasuredScene, int]]:
    """The boxes of the lowest agreement in any scene, lowest first; equal ones in the order of the
    scenes."""
    every = [(scene, box) for scene in scenes for box in scene.order()]
    return sorted(every, key=lambda pair: pair[0].agreement[pair[1]])[:count]


def _draw_label(draw, text: str, place: tuple[float, float], colour: Colour, size, height) -> None:
    length = draw.textlength(text, font(height, bold=True))
    x = min(max(0.0, place[0]), max(0.0, size[0] - length - 6))
    y = place[1] - 1.5 * height
    # Above the box, or in it at the top of the picture.
    y = y if y >= 0 else max(0.0, place[1])
    draw.rectangle((x, y, x + length + 6, y + 1.4 * height), fill=_LABEL_GROUND)
    draw.text((x + 3, y + 0.1 * height), text, fill=colour, font=font(height, bold=True))
