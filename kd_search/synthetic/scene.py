"""Street scenes: people in front of a camera, with the visible part of each."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Optional

import cv2
import numpy as np

from kd_search.synthetic.appearance import Appearance
from kd_search.synthetic.background import draw_background
from kd_search.synthetic.camera import MEAN_HEIGHT_M, Camera, expose, make_camera
from kd_search.synthetic.canvas import Sprite, extent
from kd_search.synthetic.config import SceneConfig
from kd_search.synthetic.furniture import Item, furnish
from kd_search.synthetic.person import draw_person
from kd_search.synthetic.skeleton import Pose

_TRIES = 24


@dataclass(frozen=True)
class Stage:
    """A camera with its empty street and furniture, the same in all of its images."""

    camera: Camera
    background: np.ndarray
    furniture: tuple[Item, ...]


@dataclass(frozen=True)
class SeenPerson:
    """A person in the final image.

    ``mask`` (h, w) bool is the visible part, ``box`` its extent (x0, y0, x1, y1) in pixels with
    exclusive right and lower border, ``visible`` its fraction of the whole person.
    """

    person_id: int
    box: tuple[int, int, int, int]
    visible: float
    mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    """``image`` (h, w, 3) uint8 RGB and its people, nearest first."""

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
    """A sprite in the scene, its distance, place in the image and visible part."""

    sprite: Sprite
    z: float
    foot: tuple[int, int]
    person_id: Optional[int] = None  # None for furniture
    seen: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), bool))
    visible: float = 1.0


def render_scene(
    stage: Stage,
    people: Sequence[tuple[int, Appearance]],
    config: SceneConfig,
    rng: np.random.Generator,
) -> Scene:
    """Render one image with ``people``, pairs of person id (-1 unlabelled) and appearance.

    People with a smaller visible fraction than ``config.min_visible`` are left out.
    """
    actors = _cast(stage, people, config, rng)
    canvas = stage.background.copy()
    _cast_shadows(canvas, actors, stage.camera)
    for actor in sorted(actors, key=lambda a: -a.z):
        actor.sprite.paste(canvas, actor.foot)
    image = expose(canvas, stage.camera.look, rng)
    seen = []
    for actor in sorted(actors, key=lambda a: a.z):
        if actor.person_id is not None:
            box = extent(actor.seen)
            seen.append(SeenPerson(actor.person_id, box, actor.visible, actor.seen))
    return Scene(image, tuple(seen))


# Placing ---------------------------------------------------------------------------------------


def _cast(
    stage: Stage,
    people: Sequence[tuple[int, Appearance]],
    config: SceneConfig,
    rng: np.random.Generator,
) -> list[_Actor]:
    """Place people from near to far, so that no placement changes the visibility of others."""
    geometry = stage.camera.geometry
    fixtures = []
    for item in stage.furniture:
        x, y = geometry.project(item.x, 0, item.z)
        fixtures.append(_Actor(item.sprite, item.z, (round(x), round(y))))
    drafts = [_draft(stage, person_id, look, config, rng) for person_id, look in people]
    drafts.sort(key=lambda actor: actor.z)
    placed: list[_Actor] = []
    for actor in drafts:
        hidden = np.zeros((config.height, config.width), bool)
        for other in (*fixtures, *placed):
            if other.z < actor.z:
                other.sprite.mark(hidden, other.foot)
        if _find_place(actor, hidden, placed, config, rng):
            placed.append(actor)
    return fixtures + placed


def _draft(
    stage: Stage, person_id: int, look: Appearance, config: SceneConfig, rng: np.random.Generator
) -> _Actor:
    """Choose distance and pose and draw the person; :func:`_find_place` sets the column."""
    geometry = stage.camera.geometry
    low, high = config.min_person_height, config.max_person_height
    # More people are far than near, as in a street.
    size = low + (high - low) * rng.beta(1.1, 1.5)
    z = geometry.depth_at(MEAN_HEIGHT_M, size)
    height = float(np.clip(geometry.pixels_per_metre(z) * look.height_m, low, high))
    walking = rng.random() < 0.8
    pose = Pose(
        yaw=draw_heading(rng),
        phase=float(rng.uniform(0, 2 * np.pi)),
        stride=float(rng.uniform(0.45, 1.0) if walking else rng.uniform(0.0, 0.12)),
        lean=float(rng.normal(0, 0.02)),
    )
    sprite = draw_person(look, pose, height, stage.camera.look.light)
    return _Actor(sprite, float(z), (0, round(geometry.project(0, 0, z)[1])), person_id)


def draw_heading(rng: np.random.Generator) -> float:
    """Yaw around one of four directions: towards the camera, away from it, or across."""
    base = (0.0, np.pi, np.pi / 2, -np.pi / 2)[int(rng.integers(4))]
    return float(base + rng.normal(0, 0.45))


def _find_place(
    actor: _Actor,
    hidden: np.ndarray,
    placed: Sequence[_Actor],
    config: SceneConfig,
    rng: np.random.Generator,
) -> bool:
    """Choose the column; False if the visible fraction is too small in all of them."""
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
    # Otherwise take the column with the largest visible fraction.
    places = range(int(half), max(int(width - half), int(half) + 1), 4)
    best = max(places, key=lambda x: _try_place(actor, hidden, x))
    return _try_place(actor, hidden, best) >= config.min_visible


def _try_place(actor: _Actor, hidden: np.ndarray, x: int) -> float:
    actor.foot = (x, actor.foot[1])
    actor.seen, actor.visible = actor.sprite.visible(hidden, actor.foot)
    return actor.visible


# Drawing ---------------------------------------------------------------------------------------


def _cast_shadows(canvas: np.ndarray, actors: Sequence[_Actor], camera: Camera) -> None:
    """Darken the ground with the silhouettes of all sprites, projected onto it."""
    height, width = canvas.shape[:2]
    look = camera.look
    shade = np.zeros((height, width), np.float32)
    for actor in actors:
        ax, ay = actor.sprite.anchor
        x, y = actor.foot
        # Sprite (u, v) -> ground: sheared by the slope and flattened.
        press = -0.16 if look.shadow_slope < 0 else 0.22
        matrix = np.array(
            [
                [1, -look.shadow_slope, x - ax + look.shadow_slope * ay],
                [0, press, y - press * ay],
            ],
            np.float32,
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
