"""Street furniture, which may occlude people."""

from dataclasses import dataclass

import numpy as np

from kd_search.synthetic.camera import Camera
from kd_search.synthetic.canvas import Canvas, Sprite, capsule_points, rounded_box


@dataclass(frozen=True)
class Item:
    """A piece of furniture at ``x``, ``z`` metres, drawn in its size at that distance."""

    sprite: Sprite
    x: float
    z: float


def furnish(camera: Camera, rng: np.random.Generator) -> tuple[Item, ...]:
    """The furniture of a camera, far to near."""
    items = []
    for kind, x, z in _PLANS[camera.style]:
        x, z = x + rng.uniform(-0.4, 0.4), z + rng.uniform(-0.3, 0.3)
        ppm = camera.geometry.pixels_per_metre(z)
        items.append(Item(_DRAW[kind](ppm, rng), float(x), float(z)))
    return tuple(sorted(items, key=lambda item: -item.z))


# Kind, X and Z in metres. Few and slim in front, so that people are occluded only in part.
_PLANS = {
    "shops": (
        ("car", -4.2, 12.9),
        ("car", 4.8, 12.9),
        ("lamp", 2.2, 10.0),
        ("bin", -3.0, 9.2),
        ("bollard", -1.5, 7.4),
        ("bollard", 0.2, 7.4),
        ("planter", 2.6, 6.2),
    ),
    "avenue": (
        ("tree", 0.7, 22.0),
        ("tree", 0.7, 14.0),
        ("car", 5.2, 15.0),
        ("sign", 0.8, 9.5),
        ("bench", -2.4, 9.0),
        ("tree", 0.9, 7.2),
        ("bin", -1.9, 5.6),
    ),
    "park": (
        ("tree", -5.5, 17.0),
        ("tree", 5.0, 14.0),
        ("tree", -4.2, 10.5),
        ("bench", 3.2, 9.0),
        ("lamp", -1.8, 8.0),
        ("bush", -3.0, 6.5),
        ("bush", 2.9, 5.6),
    ),
    "plaza": (
        ("planter", -4.0, 13.0),
        ("planter", 3.6, 13.0),
        ("bench", -1.2, 11.0),
        ("lamp", 3.4, 9.0),
        ("sign", -2.6, 7.5),
        ("bollard", 1.0, 6.6),
        ("bin", 2.4, 5.8),
    ),
}


def _round(color, center: float, half: float):
    color = np.asarray(color, np.float32)

    def paint(x, y):
        u = np.clip((np.broadcast_arrays(x, y)[0] - center) / half, -1, 1)
        return color * (1.08 - 0.42 * (u + 0.25) ** 2)[..., None].astype(np.float32)

    return paint


def _lamp(ppm: float, rng) -> Sprite:
    canvas = Canvas(ppm, 0.6, 0.6, 0.1, 4.6)
    paint = _round((70, 74, 76), 0, 0.09)
    canvas.polygon(capsule_points((0, 0.05), (0, 4.2), 0.075, 0.05), paint)
    canvas.polygon(rounded_box((0, 0.3), 0.13, 0.3, 0.3), _round((60, 64, 66), 0, 0.13))
    canvas.ellipse((0, 4.3), (0.24, 0.2), (238, 232, 206))
    return canvas.to_sprite()


def _bollard(ppm: float, rng) -> Sprite:
    canvas = Canvas(ppm, 0.3, 0.3, 0.1, 1.1)
    canvas.polygon(capsule_points((0, 0.02), (0, 0.85), 0.10, 0.09), _round((64, 62, 60), 0, 0.1))
    canvas.polygon(rounded_box((0, 0.72), 0.10, 0.05), (214, 208, 196))
    return canvas.to_sprite()


def _bin(ppm: float, rng) -> Sprite:
    canvas = Canvas(ppm, 0.5, 0.5, 0.1, 1.2)
    canvas.polygon(rounded_box((0, 0.45), 0.28, 0.45, 0.2), _round((54, 84, 66), 0, 0.28))
    canvas.polygon(rounded_box((0, 0.92), 0.31, 0.07, 0.6), (42, 62, 50))
    canvas.polygon(rounded_box((0, 0.76), 0.17, 0.05), (26, 30, 28))
    return canvas.to_sprite()


def _planter(ppm: float, rng) -> Sprite:
    canvas = Canvas(ppm, 0.9, 0.9, 0.1, 1.5)
    _foliage(canvas, (0, 0.78), (0.55, 0.38), rng, 55)
    box = [(-0.55, 0.6), (0.55, 0.6), (0.46, 0.0), (-0.46, 0.0)]
    canvas.polygon(np.array(box), _round((150, 128, 108), 0, 0.55))
    canvas.polygon(rounded_box((0, 0.58), 0.58, 0.05), (172, 150, 128))
    return canvas.to_sprite()


def _bush(ppm: float, rng) -> Sprite:
    canvas = Canvas(ppm, 1.1, 1.1, 0.1, 1.3)
    _foliage(canvas, (0, 0.42), (0.75, 0.40), rng, 90)
    return canvas.to_sprite()


def _tree(ppm: float, rng) -> Sprite:
    canvas = Canvas(ppm, 2.2, 2.2, 0.2, 6.2)
    canvas.polygon(
        np.array([(-0.20, 0), (-0.12, 0.4), (-0.10, 3.2), (0.10, 3.2), (0.12, 0.4), (0.20, 0)]),
        _round((98, 76, 58), 0, 0.16),
    )
    canvas.polygon(capsule_points((0, 2.4), (0.8, 3.4), 0.07, 0.05), (88, 68, 52))
    _foliage(canvas, (0, 4.3), (1.6, 1.3), rng, 150)
    return canvas.to_sprite()


def _foliage(canvas: Canvas, center, radii, rng, count: int) -> None:
    """A heap of leaf clusters, darker inside and below."""
    green = np.array([66, 104, 54]) + rng.integers(-14, 14, 3)
    canvas.ellipse(center, (0.85 * radii[0], 0.85 * radii[1]), green * 0.62)
    for k in range(count):
        turn, reach = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random())
        dx, dy = reach * radii[0] * np.cos(turn), reach * radii[1] * np.sin(turn)
        tone = 0.62 + 0.42 * (k / count) + 0.18 * dy / radii[1] + rng.uniform(-0.08, 0.08)
        size = 0.2 * min(radii) * rng.uniform(0.7, 1.4)
        at = (center[0] + dx, center[1] + dy)
        canvas.ellipse(at, (size * 1.2, size), np.clip(green * tone, 0, 255), rng.uniform(0, 3))


def _bench(ppm: float, rng) -> Sprite:
    canvas = Canvas(ppm, 1.1, 1.1, 0.1, 1.0)
    for x in (-0.75, 0.75):
        canvas.polygon(capsule_points((x, 0.02), (x, 0.80), 0.035, 0.03), (52, 52, 54))
    for y in (0.78, 0.66, 0.54):
        canvas.polygon(rounded_box((0, y), 0.9, 0.042), (146, 100, 62))
    canvas.polygon(rounded_box((0, 0.42), 0.92, 0.05), (168, 118, 74))
    for x in (-0.8, 0.8):
        canvas.polygon(capsule_points((x, -0.05), (x, 0.40), 0.03, 0.03), (44, 44, 46))
    return canvas.to_sprite()


def _sign(ppm: float, rng) -> Sprite:
    canvas = Canvas(ppm, 0.5, 0.5, 0.1, 3.0)
    canvas.polygon(capsule_points((0, 0.03), (0, 2.7), 0.035, 0.035), (150, 152, 154))
    color = ((36, 78, 160), (182, 36, 36))[int(rng.integers(2))]
    canvas.ellipse((0, 2.45), (0.3, 0.3), (238, 238, 234))
    canvas.ellipse((0, 2.45), (0.26, 0.26), color)
    canvas.polygon(rounded_box((0, 2.45), 0.17, 0.04), (240, 240, 236))
    return canvas.to_sprite()


def _car(ppm: float, rng) -> Sprite:
    """A parked car from the side."""
    canvas = Canvas(ppm, 2.3, 2.3, 0.15, 1.7)
    paints = ((150, 36, 40), (52, 70, 110), (196, 198, 200), (52, 54, 58), (92, 118, 104))
    color = np.asarray(paints[int(rng.integers(len(paints)))], np.float32)
    body = [(-2.1, 0.32), (-2.1, 0.72), (-1.5, 0.88), (-0.95, 1.38), (0.75, 1.40), (1.35, 0.95)]
    body += [(2.05, 0.82), (2.12, 0.32)]
    canvas.polygon(np.array(body), lambda x, y: color * (0.7 + 0.28 * y + 0 * x)[..., None])
    glass = [(-1.30, 0.92), (-0.88, 1.30), (-0.15, 1.32), (-0.15, 0.92)]
    canvas.polygon(np.array(glass), (70, 84, 94))
    glass = [(-0.05, 0.92), (-0.05, 1.32), (0.68, 1.32), (1.12, 0.94)]
    canvas.polygon(np.array(glass), (78, 92, 102))
    canvas.polygon(rounded_box((0, 0.36), 2.1, 0.05), color * 0.5)
    canvas.polygon(rounded_box((-2.0, 0.72), 0.1, 0.07), (222, 70, 60))
    canvas.polygon(rounded_box((2.02, 0.70), 0.1, 0.07), (240, 236, 210))
    for x in (-1.3, 1.3):
        canvas.ellipse((x, 0.33), (0.34, 0.34), (34, 34, 36))
        canvas.ellipse((x, 0.33), (0.19, 0.19), (168, 170, 172))
    return canvas.to_sprite()


_DRAW = {
    "lamp": _lamp,
    "bollard": _bollard,
    "bin": _bin,
    "planter": _planter,
    "bush": _bush,
    "tree": _tree,
    "bench": _bench,
    "sign": _sign,
    "car": _car,
}
