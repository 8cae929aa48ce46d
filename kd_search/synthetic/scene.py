"""Puts people into a camera's street and tells what can be seen of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import cv2
import numpy as np

from kd_search.synthetic.appearance import Appearance
from kd_search.synthetic.background import draw_background
from kd_search.synthetic.camera import MEAN_HEIGHT_M, Camera, expose, make_camera
from kd_search.synthetic.canvas import Sprite
from kd_search.synthetic.config import SceneConfig
from kd_search.synthetic.furniture import Item, furnish
from kd_search.synthetic.person import draw_person
from kd_search.synthetic.skeleton import Pose

_TRIES = 24


@dataclass(frozen=True)
class Stage:
    """A camera with its empty street and furniture; the same for all of its images."""

    camera: Camera
    background: np.ndarray
    furniture: tuple[Item, ...]


@dataclass(frozen=True)
class SeenPerson:
    """A person in the finished image.

    ``mask`` (h, w) bool is what can be seen of them, ``box`` its extent (x0, y0, x1, y1) in pixels
    with exclusive right and lower border, ``visible`` the fraction of the whole person seen.
    """

    person_id: int
    box: tuple[int, int, int, int]
    visible: float
    mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    """``image`` (h, w, 3) uint8 RGB and the people in it, nearest first."""

    image: np.ndarray
    people: tuple[SeenPerson, ...]


def build_stage(camera_id: int, config: SceneConfig, rng: np.random.Generator) -> Stage:
    """Set up camera ``camera_id`` (from 1)."""
    camera = make_camera(camera_id, config, rng)
    farthest = camera.geometry.depth_at(MEAN_HEIGHT_M, config.min_person_height)
    background = draw_background(camera, (config.width, config.height), farthest, rng)
    return Stage(camera, background, furnish(camera, rng))


@dataclass
class _Actor:
    """A sprite on stage: where it stands, and what is left of it once all is placed."""

    sprite: Sprite
    z: float
    foot: tuple[int, int]
    person_id: Optional[int] = None  # None for furniture
    seen: Optional[np.ndarray] = None
    visible: float = 1.0


def render_scene(
    stage: Stage,
    people: Sequence[tuple[int, Appearance]],
    config: SceneConfig,
    rng: np.random.Generator,
) -> Scene:
    """Render one image with ``people``, pairs of person id (-1 unlabelled) and appearance.

    People of whom less than ``config.min_visible`` could be shown are left out.
    """
    actors = _cast(stage, people, config, rng)
    canvas = stage.background.copy()
    _cast_shadows(canvas, actors, stage.camera)
    for actor in sorted(actors, key=lambda a: -a.z):
        _paste(canvas, actor)
    image = expose(canvas, stage.camera.look, rng)
    seen = []
    for actor in sorted(actors, key=lambda a: a.z):
        if actor.person_id is not None:
            box = _extent(actor.seen)
            seen.append(SeenPerson(actor.person_id, box, actor.visible, actor.seen))
    return Scene(image, tuple(seen))


# Placing ---------------------------------------------------------------------------------------


def _cast(stage: Stage, people, config: SceneConfig, rng) -> list[_Actor]:
    """Place everybody from near to far, so that placing one never changes what was placed."""
    geometry = stage.camera.geometry
    fixtures = []
    for item in stage.furniture:
        x, y = geometry.project(item.x, 0, item.z)
        fixtures.append(_Actor(item.sprite, item.z, (round(x), round(y))))
    drafts = [_draft(stage, person_id, look, config, rng) for person_id, look in people]
    drafts.sort(key=lambda actor: actor.z)
    placed: list[_Actor] = []
    shape = (config.height, config.width)
    for actor in drafts:
        nearer = [a for a in (*fixtures, *placed) if a.z < actor.z]
        hidden = np.zeros(shape, bool)
        for other in nearer:
            _mark(hidden, other)
        if _find_place(actor, hidden, placed, config, rng):
            placed.append(actor)
    return fixtures + placed


def _draft(stage: Stage, person_id: int, look: Appearance, config: SceneConfig, rng) -> _Actor:
    """Choose distance and pose and draw the person; the place across is found later."""
    geometry = stage.camera.geometry
    low, high = config.min_person_height, config.max_person_height
    # More people far away than near, as in a street.
    size = low + (high - low) * rng.beta(1.1, 1.5)
    z = geometry.depth_at(MEAN_HEIGHT_M, size)
    height = float(np.clip(geometry.pixels_per_metre(z) * look.height_m, low, high))
    walking = rng.random() < 0.8
    pose = Pose(
        yaw=_heading(rng),
        phase=float(rng.uniform(0, 2 * np.pi)),
        stride=float(rng.uniform(0.45, 1.0) if walking else rng.uniform(0.0, 0.12)),
        lean=float(rng.normal(0, 0.02)),
    )
    sprite = draw_person(look, pose, height, stage.camera.look.light)
    return _Actor(sprite, float(z), (0, round(geometry.project(0, 0, z)[1])), person_id)


def _heading(rng) -> float:
    """Yaw: mostly towards, away or across, with everything between."""
    base = (0.0, np.pi, np.pi / 2, -np.pi / 2)[int(rng.integers(4))]
    return float(base + rng.normal(0, 0.45))


def _find_place(actor: _Actor, hidden: np.ndarray, placed, config: SceneConfig, rng) -> bool:
    """Choose the place across; False if nowhere is enough to be seen."""
    width = config.width
    half = 0.22 * actor.sprite.alpha.shape[0]
    margin = -0.55 * half if rng.random() < config.truncation else half
    crowd = [a.foot[0] for a in placed] if rng.random() < config.overlap else []
    for attempt in range(_TRIES):
        if crowd and attempt < _TRIES // 3:
            x = crowd[int(rng.integers(len(crowd)))] + rng.normal(0, 0.8 * half)
        else:
            x = rng.uniform(margin, width - margin)
        if _try_place(actor, hidden, int(x)) >= config.min_visible:
            return True
    # No luck: look everywhere and take the place with the best view.
    places = range(int(half), max(int(width - half), int(half) + 1), 4)
    best = max(places, key=lambda x: _try_place(actor, hidden, x))
    return _try_place(actor, hidden, best) >= config.min_visible


def _try_place(actor: _Actor, hidden: np.ndarray, x: int) -> float:
    actor.foot = (x, actor.foot[1])
    seen = np.zeros_like(hidden)
    _mark(seen, actor)
    seen &= ~hidden
    whole = np.count_nonzero(actor.sprite.alpha > 0.5)
    actor.seen, actor.visible = seen, np.count_nonzero(seen) / max(whole, 1)
    return actor.visible


def _overlap(actor: _Actor, shape: tuple[int, int]):
    """Slices of the picture and of the sprite where the two meet."""
    height, width = actor.sprite.alpha.shape
    left = actor.foot[0] - actor.sprite.anchor[0]
    top = actor.foot[1] - actor.sprite.anchor[1]
    x0, x1 = max(left, 0), min(left + width, shape[1])
    y0, y1 = max(top, 0), min(top + height, shape[0])
    if x1 <= x0 or y1 <= y0:
        return None
    inside = (slice(y0, y1), slice(x0, x1))
    return inside, (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def _mark(mask: np.ndarray, actor: _Actor) -> None:
    meeting = _overlap(actor, mask.shape)
    if meeting:
        mask[meeting[0]] |= actor.sprite.alpha[meeting[1]] > 0.5


def _extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


# Drawing ---------------------------------------------------------------------------------------


def _paste(canvas: np.ndarray, actor: _Actor) -> None:
    meeting = _overlap(actor, canvas.shape[:2])
    if meeting:
        inside, part = meeting
        canvas[inside] *= 1 - actor.sprite.alpha[part][..., None]
        canvas[inside] += actor.sprite.color[part]


def _cast_shadows(canvas: np.ndarray, actors, camera: Camera) -> None:
    """Darken the ground where the sun is blocked: each silhouette laid down on the ground."""
    height, width = canvas.shape[:2]
    look = camera.look
    shade = np.zeros((height, width), np.float32)
    for actor in actors:
        ax, ay = actor.sprite.anchor
        x, y = actor.foot
        # Sprite (u, v) -> ground: up becomes sideways by the slope and is pressed flat.
        press = -0.16 if look.shadow_slope < 0 else 0.22
        matrix = np.float32(
            [
                [1, -look.shadow_slope, x - ax + look.shadow_slope * ay],
                [0, press, y - press * ay],
            ]
        )
        laid = cv2.warpAffine(actor.sprite.alpha, matrix, (width, height))
        np.maximum(shade, laid, out=shade)
        contact = np.zeros_like(shade)
        left, right = _footprint(actor.sprite)
        middle, reach = x + (left + right) // 2 - ax, max(2, int(0.62 * (right - left)))
        cv2.ellipse(contact, (middle, y), (reach, max(1, reach // 4)), 0, 0, 360, 0.8, -1)
        np.maximum(shade, contact, out=shade)
    ground = np.arange(height)[:, None] > camera.geometry.horizon + 3
    soft = cv2.GaussianBlur(shade, (0, 0), 1.6 * height / 192) * ground
    canvas *= (1 - look.shadow * soft)[..., None]


def _footprint(sprite: Sprite) -> tuple[int, int]:
    """First and last column in which the sprite touches the ground."""
    ay = sprite.anchor[1]
    reach = max(2, sprite.alpha.shape[0] // 20)
    columns = np.flatnonzero((sprite.alpha[ay - reach : ay + reach] > 0.5).any(0))
    return (int(columns[0]), int(columns[-1])) if len(columns) else (sprite.anchor[0],) * 2
