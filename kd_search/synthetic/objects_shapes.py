"""Drawing of objects: the class determines the structure, all else is random."""

from dataclasses import dataclass
from typing import Any, Callable

import numpy as np

from kd_search.synthetic.appearance import Cloth
from kd_search.synthetic.canvas import (
    Canvas,
    Paint,
    Sprite,
    capsule_points,
    ellipse_points,
    rounded_box,
)
from kd_search.synthetic.cloth import fabric

_PATTERNS = ("plain", "plain", "stripes_wide", "stripes_thin", "checks", "dots")


@dataclass(frozen=True)
class Paints:
    """Colors of an object: ``body`` textured, ``accent`` plain, ``dark`` for holes and lines."""

    body: Cloth
    accent: np.ndarray
    dark: np.ndarray


class Pen:
    """Draws in object coordinates, -1 to 1, x to the right and y up, onto a rotated canvas.

    ``stretch`` scales x and y before the rotation by ``angle`` radians; a negative one mirrors.
    ``light`` is the direction of the light in the picture.
    """

    def __init__(
        self,
        canvas: Canvas,
        paints: Paints,
        angle: float,
        stretch: tuple[float, float],
        light: float,
    ) -> None:
        self._canvas = canvas
        self.paints = paints
        self._turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        self._stretch = np.array(stretch, np.float32)
        self._light = np.array([np.cos(light), np.sin(light)], np.float32)

    def polygon(self, points: Any, paint: Any) -> None:
        """Fill ``points`` (n, 2) with a color (3,) or a :class:`Cloth`; both are shaded."""
        self._canvas.polygon((np.asarray(points) * self._stretch) @ self._turn.T, self._lit(paint))

    def ellipse(self, center: Any, radii: Any, paint: Any) -> None:
        self.polygon(ellipse_points(center, radii, count=36), paint)

    def ring(self, center: Any, radius: float, inner: float, paint: Any) -> None:
        """A disc with a hole: one polygon along the outer and back along the inner circle."""
        turn = np.linspace(0, 2 * np.pi, 41)
        circle = np.stack([np.cos(turn), np.sin(turn)], 1)
        self.polygon(np.concatenate([radius * circle, inner * circle[::-1]]) + center, paint)

    def rod(self, a: Any, b: Any, radius: float, paint: Any) -> None:
        self.polygon(capsule_points(a, b, radius, radius), paint)

    def _lit(self, paint: Any) -> Paint:
        inverse, stretch, light = self._turn.T.astype(np.float32), self._stretch, self._light

        def lit(x, y):
            x, y = np.broadcast_arrays(x, y)
            own_x = (inverse[0, 0] * x + inverse[0, 1] * y) / stretch[0]
            own_y = (inverse[1, 0] * x + inverse[1, 1] * y) / stretch[1]
            if isinstance(paint, Cloth):
                color = fabric(paint, own_x, own_y)
            else:
                color = np.asarray(paint, np.float32)
            shade = 1.0 + 0.28 * np.clip(light[0] * x + light[1] * y, -1, 1)
            return np.clip(color * shade[..., None], 0, 255).astype(np.float32)

        return lit


def draw_object(name: str, size: float, max_turn: float, rng: np.random.Generator) -> Sprite:
    """Draw an object.

    Args:
        name: one of :data:`~kd_search.data.detection.objects.OBJECT_CLASSES`.
        size: length in pixels of the longer side before rotation.
        max_turn: largest rotation in degrees, to either side.
        rng: source of colors, texture, direction and proportions.

    Returns:
        The sprite, whose anchor is the center of the object.
    """
    paints = _draw_paints(rng)
    angle = float(np.deg2rad(max_turn) * rng.uniform(-1, 1))
    stretch = (float(rng.choice((-1.0, 1.0))), float(rng.uniform(0.8, 1.0)))
    # Unit 1 is half of the object, which extends to 1.45 at most in any direction.
    canvas = Canvas(size / 2, 1.45, 1.45, 1.45, 1.45)
    DRAW[name](Pen(canvas, paints, angle, stretch, float(rng.uniform(0, 2 * np.pi))), rng)
    return canvas.to_sprite()


def draw_clutter(size: float, rng: np.random.Generator) -> Sprite:
    """Draw a shape of no class (rod, disc, triangle, box, splinter) in colors like the objects."""
    pen_angle, light = rng.uniform(0, 2 * np.pi, 2)
    paints = _draw_paints(rng)
    canvas = Canvas(size / 2, 1.45, 1.45, 1.45, 1.45)
    stretch = (1.0, float(rng.uniform(0.5, 1.0)))
    pen = Pen(canvas, paints, float(pen_angle), stretch, float(light))
    kind = int(rng.integers(5))
    if kind == 0:
        pen.rod((-0.9, 0), (0.9, 0), float(rng.uniform(0.08, 0.2)), paints.body)
    elif kind == 1:
        pen.ellipse((0, 0), (0.8, 0.8), paints.body)
    elif kind == 2:
        pen.polygon(rng.uniform(-1, 1, (3, 2)), paints.body)
    elif kind == 3:
        pen.polygon(rounded_box((0, 0), 0.9, float(rng.uniform(0.3, 0.9)), 0.1), paints.body)
    else:
        turn = np.sort(rng.uniform(0, 2 * np.pi, 6))
        reach = rng.uniform(0.3, 1.0, 6)[:, None]
        pen.polygon(reach * np.stack([np.cos(turn), np.sin(turn)], 1), paints.body)
    return canvas.to_sprite()


def draw_colors(rng: np.random.Generator, count: int, apart: float = 90.0) -> list[np.ndarray]:
    """``count`` random RGB colors, if possible at distances of at least ``apart``."""
    colors: list[np.ndarray] = []
    for _ in range(count):
        for _ in range(20):
            color = rng.uniform(15, 240, 3)
            if all(np.linalg.norm(color - other) >= apart for other in colors):
                break
        colors.append(color)
    return colors


def _draw_paints(rng: np.random.Generator) -> Paints:
    body, pattern_color, accent = draw_colors(rng, 3)
    pattern = _PATTERNS[int(rng.integers(len(_PATTERNS)))]
    cloth = Cloth(pattern, tuple(body), tuple(pattern_color), float(rng.uniform(0.2, 0.4)))
    return Paints(cloth, accent, 0.3 * body)


# Classes, two by two -----------------------------------------------------------------------------


def _wheel(pen: Pen, rng: np.random.Generator) -> None:
    """A rim with spokes and open space between."""
    spokes = int(rng.integers(4, 8))
    for turn in np.arange(spokes) * 2 * np.pi / spokes:
        pen.rod((0, 0), (0.85 * np.cos(turn), 0.85 * np.sin(turn)), 0.075, pen.paints.accent)
    pen.ring((0, 0), 1.0, float(rng.uniform(0.70, 0.78)), pen.paints.body)
    pen.ellipse((0, 0), (0.22, 0.22), pen.paints.accent)


def _button(pen: Pen, rng: np.random.Generator) -> None:
    """A disc with a rim, and two or four holes."""
    pen.ellipse((0, 0), (1.0, 1.0), pen.paints.body)
    pen.ring((0, 0), 1.0, float(rng.uniform(0.74, 0.82)), pen.paints.accent)
    reach = float(rng.uniform(0.25, 0.33))
    holes = ((-1, -1), (-1, 1), (1, -1), (1, 1)) if rng.random() < 0.7 else ((-1, 0), (1, 0))
    for x, y in holes:
        pen.ellipse((reach * x, reach * y), (0.14, 0.14), pen.paints.dark)


def _star(pen: Pen, rng: np.random.Generator) -> None:
    """Points around a center."""
    points = int(rng.integers(5, 7))
    turn = np.arange(2 * points) * np.pi / points
    reach = np.where(np.arange(2 * points) % 2, float(rng.uniform(0.42, 0.52)), 1.0)[:, None]
    pen.polygon(reach * np.stack([np.cos(turn), np.sin(turn)], 1), pen.paints.body)
    pen.ellipse((0, 0), (0.2, 0.2), pen.paints.accent)


def _flower(pen: Pen, rng: np.random.Generator) -> None:
    """Round petals around a center."""
    petals = int(rng.integers(5, 7))
    for turn in np.arange(petals) * 2 * np.pi / petals:
        center = (0.62 * np.cos(turn), 0.62 * np.sin(turn))
        pen.polygon(ellipse_points(center, (0.38, 0.27), turn), pen.paints.body)
    pen.ellipse((0, 0), (0.3, 0.3), pen.paints.accent)


def _fish(pen: Pen, rng: np.random.Generator) -> None:
    """A long body with a tail fin and an eye."""
    high = float(rng.uniform(0.46, 0.58))
    pen.polygon([(0.2, high - 0.05), (-0.3, high + 0.3), (-0.4, 0.2)], pen.paints.accent)
    pen.polygon([(-0.5, 0), (-1.0, 0.45), (-0.88, 0), (-1.0, -0.45)], pen.paints.accent)
    pen.ellipse((0.15, 0), (0.82, high), pen.paints.body)
    pen.ellipse((0.62, 0.1), (0.11, 0.11), (240, 240, 240))
    pen.ellipse((0.64, 0.1), (0.06, 0.06), (20, 20, 20))


def _leaf(pen: Pen, rng: np.random.Generator) -> None:
    """A long blade with two pointed ends, ribs and a stalk."""
    high = float(rng.uniform(0.46, 0.58))
    x = np.linspace(-0.7, 1.0, 16)
    arc = high * np.sin(np.pi * (x + 0.7) / 1.7) ** 0.9
    pen.rod((-1.0, 0), (-0.6, 0), 0.05, pen.paints.accent)
    outline = np.concatenate([np.stack([x, arc], 1), np.stack([x, -arc], 1)[::-1]])
    pen.polygon(outline, pen.paints.body)
    pen.rod((-0.7, 0), (0.9, 0), 0.035, pen.paints.accent)
    for at in (-0.4, -0.05, 0.3):
        for side in (1, -1):
            pen.rod((at, 0), (at + 0.22, side * 0.62 * high), 0.025, pen.paints.accent)


def _mug(pen: Pen, rng: np.random.Generator) -> None:
    """A tall body with one handle and an open top."""
    wide = float(rng.uniform(0.48, 0.58))
    pen.ring((wide - 0.15, -0.05), 0.48, 0.3, pen.paints.accent)
    pen.polygon(rounded_box((-0.15, -0.1), wide, 0.85, 0.2), pen.paints.body)
    pen.ellipse((-0.15, 0.72), (wide, 0.2), pen.paints.accent)
    pen.ellipse((-0.15, 0.72), (0.8 * wide, 0.13), pen.paints.dark)


def _pot(pen: Pen, rng: np.random.Generator) -> None:
    """A body with two handles and a lid with a knob."""
    wide = float(rng.uniform(0.62, 0.72))
    for side in (-1, 1):
        pen.ring((side * (wide + 0.05), 0.1), 0.24, 0.13, pen.paints.accent)
    pen.polygon(rounded_box((0, -0.2), wide, 0.6, 0.25), pen.paints.body)
    turn = np.linspace(0, np.pi, 14)
    lid = np.stack([(wide + 0.05) * np.cos(turn), 0.38 + 0.3 * np.sin(turn)], 1)
    pen.polygon(lid, pen.paints.accent)
    pen.ellipse((0, 0.76), (0.13, 0.13), pen.paints.dark)


DRAW: dict[str, Callable[[Pen, np.random.Generator], None]] = {
    "wheel": _wheel,
    "button": _button,
    "star": _star,
    "flower": _flower,
    "fish": _fish,
    "leaf": _leaf,
    "mug": _mug,
    "pot": _pot,
}
