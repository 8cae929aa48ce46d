"""Scenes of objects on a cluttered ground, with the visible part of each."""

from dataclasses import dataclass
from typing import Optional

import cv2
import numpy as np

from kd_search.data.detection.objects import OBJECT_CLASSES
from kd_search.synthetic.camera import Look, expose
from kd_search.synthetic.canvas import Sprite, extent
from kd_search.synthetic.config import ObjectsConfig
from kd_search.synthetic.objects_shapes import draw_clutter, draw_colors, draw_object

_TRIES = 24
#: Objects with a shorter side of the box, in pixels, are unrecognizable.
_MIN_BOX = 8
#: Share of the image at each border without centers of objects.
_MARGIN = 0.12


@dataclass(frozen=True)
class SeenObject:
    """An object in the final image.

    ``box`` is the extent of the visible part, (x0, y0, x1, y1) in pixels with exclusive right and
    lower border, ``visible`` its fraction of the whole object.
    """

    category: int
    box: tuple[int, int, int, int]
    visible: float


@dataclass(frozen=True)
class ObjectScene:
    """``image`` (h, w, 3) uint8 RGB and its objects, nearest first."""

    image: np.ndarray
    objects: tuple[SeenObject, ...]


@dataclass
class _Placed:
    sprite: Sprite
    at: tuple[int, int]
    seen: SeenObject


def render_objects(config: ObjectsConfig, rng: np.random.Generator) -> ObjectScene:
    """Render one image.

    Objects with a smaller visible fraction than ``config.min_visible`` are left out, so there may
    be fewer than ``config.min_objects``, but there is always one.
    """
    canvas = _background(config, rng)
    for _ in range(int(rng.poisson(config.clutter))):
        sprite = draw_clutter(_draw_size(config, rng), rng)
        sprite.paste(canvas, (int(rng.integers(config.width)), int(rng.integers(config.height))))
    placed = _place_all(config, rng)
    for item in reversed(placed):
        item.sprite.paste(canvas, item.at)
    image = expose(canvas, _draw_look(rng), rng)
    return ObjectScene(image, tuple(item.seen for item in placed))


# Placing ----------------------------------------------------------------------------------------


def _place_all(config: ObjectsConfig, rng: np.random.Generator) -> list[_Placed]:
    """Place objects from near to far, so that no placement changes the visibility of others."""
    placed: list[_Placed] = []
    hidden = np.zeros((config.height, config.width), bool)
    for _ in range(int(rng.integers(config.min_objects, config.max_objects + 1))):
        category = int(rng.integers(len(OBJECT_CLASSES)))
        size = _draw_size(config, rng)
        sprite = draw_object(OBJECT_CLASSES[category], size, config.max_turn, rng)
        tries = [_somewhere(placed, config, rng) for _ in range(_TRIES)]
        if not placed:
            tries.append((config.width // 2, config.height // 2))
        item = _first_fit(sprite, category, tries, hidden, config.min_visible)
        if item is not None:
            placed.append(item)
            item.sprite.mark(hidden, item.at)
    return placed


def _somewhere(
    placed: list[_Placed], config: ObjectsConfig, rng: np.random.Generator
) -> tuple[int, int]:
    """A center anywhere but at the border, or partly behind another object."""
    if placed and rng.random() < config.overlap:
        x0, y0, x1, y1 = placed[int(rng.integers(len(placed)))].seen.box
        return int(rng.integers(x0, x1)), int(rng.integers(y0, y1))
    x, y = rng.uniform(_MARGIN, 1 - _MARGIN, 2)
    return int(x * config.width), int(y * config.height)


def _first_fit(
    sprite: Sprite,
    category: int,
    tries: list[tuple[int, int]],
    hidden: np.ndarray,
    min_visible: float,
) -> Optional[_Placed]:
    """The object at the first place with a sufficient visible part, or ``None``."""
    for at in tries:
        mask, visible = sprite.visible(hidden, at)
        if visible < min_visible:
            continue
        box = extent(mask)
        if min(box[2] - box[0], box[3] - box[1]) >= _MIN_BOX:
            return _Placed(sprite, at, SeenObject(category, box, float(visible)))
    return None


def _draw_size(config: ObjectsConfig, rng: np.random.Generator) -> float:
    """Size with a uniform distribution on a logarithmic scale."""
    return float(config.min_size * (config.max_size / config.min_size) ** rng.random())


# Drawing ----------------------------------------------------------------------------------------


def _background(config: ObjectsConfig, rng: np.random.Generator) -> np.ndarray:
    """A ground of two colors in soft patches with grain, (h, w, 3) float32 RGB."""
    first, second = (color.astype(np.float32) for color in draw_colors(rng, 2, apart=40.0))
    size = (config.width, config.height)
    coarse = rng.random((int(rng.integers(2, 7)), int(rng.integers(2, 8))), dtype=np.float32)
    weight = np.clip(cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC), 0, 1)[..., None]
    grain: np.ndarray = rng.standard_normal(
        (config.height // 2, config.width // 2), dtype=np.float32
    )
    grain = cv2.resize(grain, size, interpolation=cv2.INTER_LINEAR)[..., None]
    strength = np.float32(rng.uniform(2, 10))
    return np.clip(first + (second - first) * weight + strength * grain, 0, 255).astype(np.float32)


def _draw_look(rng: np.random.Generator) -> Look:
    red, green, blue = map(float, rng.uniform(0.85, 1.12, 3))
    return Look(
        gain=(red, green, blue),
        gamma=float(rng.uniform(0.9, 1.15)),
        saturation=float(rng.uniform(0.7, 1.05)),
        blur=float(rng.uniform(0.4, 0.9)),
        noise=float(rng.uniform(2, 6)),
        vignette=float(rng.uniform(0, 0.3)),
        shadow=0.0,
        shadow_slope=0.0,
        light=(0.0, 1.0),
    )
