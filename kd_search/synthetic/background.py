"""What stands still: ground in perspective, buildings, sky. Drawn once per camera."""

import cv2
import numpy as np

from kd_search.synthetic.camera import Camera, Geometry
from kd_search.synthetic.facades import draw_facade
from kd_search.synthetic.ground import GROUND_HALF_WIDTH, GROUND_NEAR, draw_ground

_OVERSAMPLING = 3


def draw_background(
    camera: Camera, size: tuple[int, int], farthest: float, rng: np.random.Generator
) -> np.ndarray:
    """Draw the empty street, (h, w, 3) float32 RGB 0..255.

    ``size`` is (width, height) in pixels. Nobody stands farther away than ``farthest`` metres, so
    buildings do.
    """
    width, height = (side * _OVERSAMPLING for side in size)
    geometry = camera.geometry
    zoomed = Geometry(
        geometry.focal * _OVERSAMPLING,
        geometry.camera_height,
        geometry.vanishing_x * _OVERSAMPLING,
        geometry.horizon * _OVERSAMPLING,
    )
    image = _sky(camera.style, width, height, zoomed.horizon, rng)
    wall = max(_WALL_DISTANCE[camera.style], 1.1 * farthest)
    _hills(image, zoomed, camera.style, rng)
    _lay_ground(image, zoomed, camera.style, max(wall, 45.0), rng)
    _BUILDERS[camera.style](image, zoomed, wall, rng)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return small.astype(np.float32)


_WALL_DISTANCE = {"shops": 16.0, "avenue": 40.0, "park": 34.0, "plaza": 20.0}


def _sky(style: str, width: int, height: int, horizon: float, rng) -> np.ndarray:
    top, low = {
        "shops": ((120, 165, 215), (205, 222, 236)),
        "avenue": ((150, 175, 205), (246, 222, 186)),
        "park": ((186, 196, 202), (220, 226, 226)),
        "plaza": ((110, 130, 168), (176, 186, 206)),
    }[style]
    t = np.clip(np.linspace(0, height / max(horizon, 1), height), 0, 1)[:, None, None]
    image = (np.asarray(top) * (1 - t) + np.asarray(low) * t) * np.ones((1, width, 1))
    clouds = cv2.resize(
        rng.random((6, 14), dtype=np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    )
    image += 26 * np.clip(clouds - 0.5, 0, 1)[..., None]
    return np.clip(image, 0, 255).astype(np.uint8)


def _hills(image: np.ndarray, geometry: Geometry, style: str, rng) -> None:
    """A far skyline of trees (park) or roofs, so that the horizon is not a bare line."""
    width = image.shape[1]
    x = 0
    while x < width:
        step = int(rng.integers(width // 30, width // 12))
        tall = int(geometry.horizon * rng.uniform(0.25, 0.75))
        low = int(geometry.horizon) + 6
        if style == "park":
            color = tuple(int(c) for c in np.array([88, 112, 84]) + rng.integers(-12, 12))
            cv2.circle(image, (x, low - tall // 3), step, color, -1, cv2.LINE_AA)
        else:
            color = tuple(int(c) for c in np.array([150, 152, 158]) + rng.integers(-16, 16))
            cv2.rectangle(image, (x, low - tall), (x + step, low), color, -1)
        x += step


def _lay_ground(image: np.ndarray, geometry: Geometry, style: str, far: float, rng) -> None:
    """Draw the ground from above and warp it into the picture."""
    plan = draw_ground(style, far, rng)
    rows, columns = plan.shape[:2]
    half = GROUND_HALF_WIDTH
    corners = ((-half, far), (half, far), (half, GROUND_NEAR), (-half, GROUND_NEAR))
    seen = [geometry.project(x, 0, z) for x, z in corners]
    _warp_onto(image, plan, [(0, 0), (columns, 0), (columns, rows), (0, rows)], seen)


def _warp_onto(image: np.ndarray, texture: np.ndarray, source, target) -> None:
    matrix = cv2.getPerspectiveTransform(np.float32(source), np.float32(target))
    size = (image.shape[1], image.shape[0])
    warped = cv2.warpPerspective(texture, matrix, size, flags=cv2.INTER_AREA)
    whole = np.full(texture.shape[:2], 255, np.uint8)
    mask = cv2.warpPerspective(whole, matrix, size, flags=cv2.INTER_NEAREST)
    image[mask > 0] = warped[mask > 0]


# Buildings -------------------------------------------------------------------------------------


def _back_wall(image, geometry, texture, x0, x1, tall, z) -> None:
    rows, columns = texture.shape[:2]
    target = [geometry.project(x, y, z) for x, y in ((x0, tall), (x1, tall), (x1, 0), (x0, 0))]
    _warp_onto(image, texture, [(0, 0), (columns, 0), (columns, rows), (0, rows)], target)


def _side_wall(image, geometry, texture, x, tall, z_near, z_far) -> None:
    """A wall along the street; the texture's left edge is the far end for X < 0, else the near."""
    rows, columns = texture.shape[:2]
    first, last = (z_near, z_far) if x < 0 else (z_far, z_near)
    corners = ((x, tall, first), (x, tall, last), (x, 0, last), (x, 0, first))
    target = [geometry.project(*corner) for corner in corners]
    _warp_onto(image, texture, [(0, 0), (columns, 0), (columns, rows), (0, rows)], target)


def _build_shops(image, geometry, wall, rng) -> None:
    x = -15.0
    while x < 15:
        wide = float(rng.uniform(3.6, 6.0))
        texture = draw_facade("shop", wide, 6.5, rng)
        _back_wall(image, geometry, texture, x, x + wide, 6.5, wall)
        x += wide


def _build_avenue(image, geometry, wall, rng) -> None:
    _back_wall(image, geometry, draw_facade("brick", 16, 8, rng), -6, 10, 8, wall)
    for x in (-3.4, 8.6):
        z = wall
        while z > 2.5:
            wide = float(rng.uniform(5, 8))
            near = max(z - wide, 1.6)
            kind = "brick" if rng.random() < 0.6 else "plaster"
            _side_wall(image, geometry, draw_facade(kind, z - near, 8, rng), x, 8, near, z)
            z = near


def _build_park(image, geometry, wall, rng) -> None:
    for x0 in (-16.0, 4.0):
        _back_wall(image, geometry, draw_facade("plaster", 11, 6, rng), x0, x0 + 11, 6, wall)
    hedge = np.empty((40, 1200, 3), np.uint8)
    hedge[:] = (52, 82, 44)
    hedge = np.clip(hedge + rng.normal(0, 16, (40, 1200, 1)), 0, 255).astype(np.uint8)
    _back_wall(image, geometry, hedge, -16, 16, 1.1, wall - 12)


def _build_plaza(image, geometry, wall, rng) -> None:
    _back_wall(image, geometry, draw_facade("glass", 32, 8, rng), -16, 16, 8, wall)
    for x in np.arange(-12, 13, 4.0):
        column = np.full((60, 12, 3), 168, np.uint8)
        column[:, 8:] = 132
        _back_wall(image, geometry, column, x - 0.3, x + 0.3, 8, wall - 2.5)


_BUILDERS = {
    "shops": _build_shops,
    "avenue": _build_avenue,
    "park": _build_park,
    "plaza": _build_plaza,
}
