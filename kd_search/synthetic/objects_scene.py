"""Puts things onto a cluttered ground and tells what can be seen of each."""

from dataclasses import dataclass
from typing import Optional

import cv2
import numpy as np

from kd_search.data.detection.objects import OBJECT_CLASSES
from kd_search.synthetic.camera import Look, expose
from kd_search.synthetic.canvas import Sprite
from kd_search.synthetic.objects_config import ObjectsConfig
from kd_search.synthetic.objects_shapes import draw_clutter, draw_colors, draw_object

_TRIES = 24
#: Things whose box is smaller than this in pixels cannot be told by anybody.
_MIN_BOX = 8
#: Share of the image at each border where the middle of no thing is put.
_MARGIN = 0.12


@dataclass(frozen=True)
class SeenObject:
    """A thing in the finished image.

    ``box`` is the extent of what can be seen, (x0, y0, x1, y1) in pixels with exclusive right and
    lower border, ``visible`` the fraction of the whole thing that can be seen.
    """

    category: int
    box: tuple[int, int, int, int]
    visible: float


@dataclass(frozen=True)
class ObjectScene:
    """``image`` (h, w, 3) uint8 RGB and the things in it, nearest first."""

    image: np.ndarray
    objects: tuple[SeenObject, ...]


@dataclass
class _Placed:
    sprite: Sprite
    at: tuple[int, int]
    category: int
    box: tuple[int, int, int, int]
    visible: float


def render_objects(config: ObjectsConfig, rng: np.random.Generator) -> ObjectScene:
    """Render one image.

    Things of which less than ``config.min_visible`` could be shown are left out, so there may be
    fewer than ``config.min_objects``, but there is always one.
    """
    canvas = _background(config, rng)
    for _ in range(int(rng.poisson(config.clutter))):
        sprite = draw_clutter(_draw_size(config, rng), rng)
        _paste(canvas, sprite, (int(rng.integers(config.width)), int(rng.integers(config.height))))
    placed = _place_all(config, rng)
    for item in reversed(placed):
        _paste(canvas, item.sprite, item.at)
    image = expose(canvas, _draw_look(rng), rng)
    return ObjectScene(image, tuple(SeenObject(p.category, p.box, p.visible) for p in placed))


# Placing ----------------------------------------------------------------------------------------


def _place_all(config: ObjectsConfig, rng: np.random.Generator) -> list[_Placed]:
    """Place things from near to far, so that placing one never changes what was placed."""
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
            _mark(hidden, item.sprite, item.at)
    return placed


def _somewhere(placed: list[_Placed], config, rng: np.random.Generator) -> tuple[int, int]:
    """A place anywhere, or partly behind something."""
    if placed and rng.random() < config.overlap:
        x0, y0, x1, y1 = placed[int(rng.integers(len(placed)))].box
        return int(rng.integers(x0, x1)), int(rng.integers(y0, y1))
    return _anywhere(config, rng)


def _first_fit(
    sprite: Sprite, category: int, tries, hidden: np.ndarray, min_visible: float
) -> Optional[_Placed]:
    """The thing at the first place where enough of it can be seen, or ``None``."""
    whole = np.count_nonzero(sprite.alpha > 0.5)
    for at in tries:
        seen = np.zeros_like(hidden)
        _mark(seen, sprite, at)
        seen &= ~hidden
        visible = np.count_nonzero(seen) / whole
        if visible < min_visible:
            continue
        ys, xs = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        box = int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1
        if min(box[2] - box[0], box[3] - box[1]) >= _MIN_BOX:
            return _Placed(sprite, at, category, box, float(visible))
    return None


def _draw_size(config: ObjectsConfig, rng: np.random.Generator) -> float:
    """Small and large ones are equally likely on a logarithmic scale."""
    return float(config.min_size * (config.max_size / config.min_size) ** rng.random())


def _anywhere(config: ObjectsConfig, rng: np.random.Generator) -> tuple[int, int]:
    """A middle inside of the image, but some of them so near to its border that it cuts."""
    x, y = rng.uniform(_MARGIN, 1 - _MARGIN, 2)
    return int(x * config.width), int(y * config.height)


def _meeting(sprite: Sprite, at: tuple[int, int], shape: tuple[int, ...]):
    """Slices of the picture and of the sprite where the two meet, or ``None``."""
    height, width = sprite.alpha.shape
    left, top = at[0] - sprite.anchor[0], at[1] - sprite.anchor[1]
    x0, x1 = max(left, 0), min(left + width, shape[1])
    y0, y1 = max(top, 0), min(top + height, shape[0])
    if x1 <= x0 or y1 <= y0:
        return None
    inside = (slice(y0, y1), slice(x0, x1))
    return inside, (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def _mark(mask: np.ndarray, sprite: Sprite, at: tuple[int, int]) -> None:
    meeting = _meeting(sprite, at, mask.shape)
    if meeting:
        mask[meeting[0]] |= sprite.alpha[meeting[1]] > 0.5


# Drawing ----------------------------------------------------------------------------------------


def _paste(canvas: np.ndarray, sprite: Sprite, at: tuple[int, int]) -> None:
    meeting = _meeting(sprite, at, canvas.shape)
    if meeting:
        inside, part = meeting
        canvas[inside] *= 1 - sprite.alpha[part][..., None]
        canvas[inside] += sprite.color[part]


def _background(config: ObjectsConfig, rng: np.random.Generator) -> np.ndarray:
    """A ground of two colours in soft patches with a grain, (h, w, 3) float32 RGB."""
    first, second = (color.astype(np.float32) for color in draw_colors(rng, 2, apart=40.0))
    size = (config.width, config.height)
    coarse = rng.random((int(rng.integers(2, 7)), int(rng.integers(2, 8))), dtype=np.float32)
    weight = np.clip(cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC), 0, 1)[..., None]
    grain = rng.standard_normal((config.height // 2, config.width // 2), dtype=np.float32)
    grain = cv2.resize(grain, size, interpolation=cv2.INTER_LINEAR)[..., None]
    strength = np.float32(rng.uniform(2, 10))
    return np.clip(first + (second - first) * weight + strength * grain, 0, 255).astype(np.float32)


def _draw_look(rng: np.random.Generator) -> Look:
    return Look(
        gain=tuple(float(g) for g in rng.uniform(0.85, 1.12, 3)),
        gamma=float(rng.uniform(0.9, 1.15)),
        saturation=float(rng.uniform(0.7, 1.05)),
        blur=float(rng.uniform(0.4, 0.9)),
        noise=float(rng.uniform(2, 6)),
        vignette=float(rng.uniform(0, 0.3)),
        shadow=0.0,
        shadow_slope=0.0,
        light=(0.0, 1.0),
    )
