"""Frames of a tracklet: a person who walks past a camera, as cropped by a tracker."""

from dataclasses import replace

import cv2
import numpy as np

from kd_search.synthetic.appearance import Appearance
from kd_search.synthetic.camera import expose
from kd_search.synthetic.config import SceneConfig, TrackletsConfig
from kd_search.synthetic.person import draw_person
from kd_search.synthetic.scene import Stage, build_stage, draw_heading
from kd_search.synthetic.skeleton import Pose

#: Height of a person as a share of the crop's height.
_PERSON = 0.86
#: Place of the soles as a share of the crop's height, from its top.
_SOLES = 0.955


def build_street(config: TrackletsConfig, camera_id: int, rng: np.random.Generator) -> Stage:
    """The street of a camera (from 1), wide enough for people to walk along."""
    height = max(config.height * 3 // 2, 64)
    scene = SceneConfig(
        width=max(config.width * 5, 64),
        height=height,
        min_person_height=max(round(0.3 * height), 20),
        max_person_height=round(0.7 * height),
    )
    return build_stage(camera_id, scene, rng)


def render_tracklet(
    stage: Stage,
    person: Appearance,
    count: int,
    config: TrackletsConfig,
    rng: np.random.Generator,
    passer_by: Appearance,
) -> list[np.ndarray]:
    """Frames of a person, all with the same camera, heading and light.

    Args:
        stage: of :func:`build_street`.
        person: of the tracklet.
        count: frames.
        config: of the set.
        rng: source of randomness.
        passer_by: person in front, with the probability ``config.occlusion``.

    Returns:
        ``count`` pictures (height, width, 3) uint8 RGB.
    """
    street = stage.background
    # The vignette is one of the camera's image, not of the crop.
    look = replace(stage.camera.look, vignette=0.0)
    heading = draw_heading(rng)
    other_heading = heading + np.pi * rng.uniform(0.6, 1.4)
    phase, stride = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 1.0)
    size = _PERSON * config.height * rng.uniform(0.94, 1.04)
    place = rng.uniform(0.2, 0.8) * street.shape[1]
    low, high = _SOLES * config.height, street.shape[0] - (1 - _SOLES) * config.height
    soles = rng.uniform(low, high)
    is_hidden = rng.random() < config.occlusion
    offset = rng.choice((-1, 1)) * rng.uniform(0.35, 0.8) * config.width
    frames = []
    for t in range(count):
        walked = 0.12 * t * config.width
        x = place + np.sin(heading) * walked
        pose = Pose(float(heading), float(phase + 0.7 * t), float(stride), 0.0)
        picture = _window(street, x, soles, config)
        sprite = draw_person(person, pose, size, look.light)
        sprite.paste(picture, (round(config.width / 2), round(_SOLES * config.height)))
        if is_hidden:
            pose = Pose(float(other_heading), float(phase + 0.6 * t), 0.7, 0.0)
            # Faster than the person, and in front of them in the middle frame.
            beside = offset * (1 - 2.2 * t / max(count - 1, 1)) if count > 1 else 0.5 * offset
            sprite = draw_person(passer_by, pose, 1.06 * size, look.light)
            at = round(config.width / 2 + beside), round((_SOLES + 0.05) * config.height)
            sprite.paste(picture, at)
        frames.append(expose(_jittered(picture, config, rng), look, rng))
    return frames


def _window(street: np.ndarray, x: float, soles: float, config: TrackletsConfig) -> np.ndarray:
    """The part of the street behind a person, continued by reflection."""
    left = round(x - config.width / 2)
    top = round(soles - _SOLES * config.height)
    rows = _reflected(np.arange(top, top + config.height), street.shape[0])
    columns = _reflected(np.arange(left, left + config.width), street.shape[1])
    return street[rows[:, None], columns[None, :]].copy()


def _reflected(indices: np.ndarray, length: int) -> np.ndarray:
    indices = indices % (2 * length)
    return np.where(indices < length, indices, 2 * length - 1 - indices)


def _jittered(picture: np.ndarray, config: TrackletsConfig, rng: np.random.Generator) -> np.ndarray:
    """The picture in an imprecise box."""
    height, width = picture.shape[:2]
    scale = np.exp(rng.normal(0, config.box_noise, 2))
    shift = rng.normal(0, config.box_noise, 2) * (width, height)
    matrix = np.array(
        [
            [scale[0], 0, shift[0] + (1 - scale[0]) * width / 2],
            [0, scale[1], shift[1] + (1 - scale[1]) * height / 2],
        ],
        np.float32,
    )
    return cv2.warpAffine(picture, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
