"""Static background of a camera: ground in perspective, buildings, sky."""

import cv2
import numpy as np

from kd_search.synthetic.camera import Camera, Geometry
from kd_search.synthetic.ground import GROUND_HALF_WIDTH, GROUND_NEAR, draw_ground

_OVERSAMPLING = 3
_PX_PER_M = 40
_WALLS = ((168, 92, 72), (190, 168, 136), (146, 142, 138), (206, 190, 160), (150, 112, 92))
_AWNINGS = ((170, 44, 44), (38, 92, 70), (40, 66, 120), (206, 164, 60), (120, 60, 96))


def draw_background(
    camera: Camera, size: tuple[int, int], farthest: float, rng: np.random.Generator
) -> np.ndarray:
    """Draw the empty street, (h, w, 3) float32 RGB 0..255.

    ``size`` is (width, height) in pixels. ``farthest`` is the largest distance of people in metres;
    buildings are behind it.
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
    """A far skyline of trees (park) or roofs."""
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
    """Warp a drawing of the ground from above into the picture."""
    plan = draw_ground(style, far, rng)
    rows, columns = plan.shape[:2]
    half = GROUND_HALF_WIDTH
    corners = ((-half, far), (half, far), (half, GROUND_NEAR), (-half, GROUND_NEAR))
    seen = [geometry.project(x, 0, z) for x, z in corners]
    _warp_onto(image, plan, [(0, 0), (columns, 0), (columns, rows), (0, rows)], seen)


def _warp_onto(image: np.ndarray, texture: np.ndarray, source, target) -> None:
    matrix = cv2.getPerspectiveTransform(np.array(source, np.float32), np.array(target, np.float32))
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
    """A wall along the street; the left edge of the texture is near for X < 0, else far."""
    rows, columns = texture.shape[:2]
    first, last = (z_near, z_far) if x < 0 else (z_far, z_near)
    corners = ((x, tall, first), (x, tall, last), (x, 0, last), (x, 0, first))
    target = [geometry.project(*corner) for corner in corners]
    _warp_onto(image, texture, [(0, 0), (columns, 0), (columns, rows), (0, rows)], target)


def _build_shops(image, geometry, wall, rng) -> None:
    x = -15.0
    while x < 15:
        wide = float(rng.uniform(3.6, 6.0))
        texture = _draw_facade("shop", wide, 6.5, rng)
        _back_wall(image, geometry, texture, x, x + wide, 6.5, wall)
        x += wide


def _build_avenue(image, geometry, wall, rng) -> None:
    _back_wall(image, geometry, _draw_facade("brick", 16, 8, rng), -6, 10, 8, wall)
    for x in (-3.4, 8.6):
        z = wall
        while z > 2.5:
            wide = float(rng.uniform(5, 8))
            near = max(z - wide, 1.6)
            kind = "brick" if rng.random() < 0.6 else "plaster"
            _side_wall(image, geometry, _draw_facade(kind, z - near, 8, rng), x, 8, near, z)
            z = near


def _build_park(image, geometry, wall, rng) -> None:
    for x0 in (-16.0, 4.0):
        _back_wall(image, geometry, _draw_facade("plaster", 11, 6, rng), x0, x0 + 11, 6, wall)
    hedge = np.empty((40, 1200, 3), np.uint8)
    hedge[:] = (52, 82, 44)
    hedge = np.clip(hedge + rng.normal(0, 16, (40, 1200, 1)), 0, 255).astype(np.uint8)
    _back_wall(image, geometry, hedge, -16, 16, 1.1, wall - 12)


def _build_plaza(image, geometry, wall, rng) -> None:
    _back_wall(image, geometry, _draw_facade("glass", 32, 8, rng), -16, 16, 8, wall)
    for x in np.arange(-12, 13, 4.0):
        column = np.full((60, 12, 3), 168, np.uint8)
        column[:, 8:] = 132
        _back_wall(image, geometry, column, x - 0.3, x + 0.3, 8, wall - 2.5)


# Facades, to be warped into the street -------------------------------------------------------


def _draw_facade(kind: str, wide: float, tall: float, rng: np.random.Generator) -> np.ndarray:
    """A front of ``wide`` x ``tall`` metres as uint8 RGB; kinds: shop, brick, plaster, glass."""
    rows, columns = int(tall * _PX_PER_M), max(8, int(wide * _PX_PER_M))
    wall = np.asarray(_WALLS[int(rng.integers(len(_WALLS)))], np.float32)
    image = np.ones((rows, columns, 3), np.float32) * wall
    if kind in ("brick", "shop"):
        _bricks(image, rng)
    image += rng.normal(0, 4, (rows, columns, 1)).astype(np.float32)
    image = np.clip(image, 0, 255).astype(np.uint8)
    if kind == "glass":
        return _glass_front(image, rng)
    first_floor = int(3.0 * _PX_PER_M)
    if kind == "shop":
        _shop_front(image, rows - first_floor, rng)
        _windows(image, 0, rows - first_floor - 10, 1.7, rng)
    else:
        _windows(image, 0, rows - int(0.6 * _PX_PER_M), 2.1, rng)
        door = int(rng.integers(10, max(11, columns - 60)))
        color = tuple(int(c) for c in rng.integers(30, 110, 3))
        cv2.rectangle(image, (door, rows - 88), (door + 44, rows), color, -1)
        cv2.rectangle(image, (door, rows - 88), (door + 44, rows), (210, 204, 194), 3)
    cv2.rectangle(image, (0, rows - 14), (columns, rows), (104, 100, 96), -1)
    return image


def _bricks(image: np.ndarray, rng: np.random.Generator) -> None:
    rows, columns = image.shape[:2]
    tone = rng.normal(0, 9, (rows // 4 + 1, columns // 10 + 1)).astype(np.float32)
    image += cv2.resize(tone, (columns, rows), interpolation=cv2.INTER_NEAREST)[..., None]
    image[::4] *= 0.86


def _windows(image: np.ndarray, top: int, bottom: int, pitch: float, rng) -> None:
    columns = image.shape[1]
    step = int(pitch * _PX_PER_M)
    wide, tall = int(0.5 * step), int(1.5 * _PX_PER_M)
    for y in range(bottom - tall - 16, top - tall, -int(2.6 * _PX_PER_M)):
        for x in range((step - wide) // 2, columns - wide, step):
            glass = int(rng.integers(48, 120))
            color = (glass, glass + 8, glass + 16) if rng.random() > 0.12 else (232, 206, 140)
            cv2.rectangle(image, (x, y), (x + wide, y + tall), color, -1)
            cv2.rectangle(image, (x, y), (x + wide, y + tall), (222, 218, 210), 3)
            cv2.line(image, (x + wide // 2, y), (x + wide // 2, y + tall), (222, 218, 210), 2)
            cv2.line(image, (x, y + tall // 3), (x + wide, y + tall // 3), (222, 218, 210), 2)
            cv2.rectangle(
                image, (x - 4, y + tall), (x + wide + 4, y + tall + 6), (196, 190, 182), -1
            )


def _shop_front(image: np.ndarray, top: int, rng) -> None:
    rows, columns = image.shape[:2]
    trim = tuple(int(c) for c in rng.integers(30, 120, 3))
    cv2.rectangle(image, (0, top), (columns, rows), trim, -1)
    window = (60, 74, 84)
    door = columns // 2 if rng.random() < 0.5 else columns // 5
    cv2.rectangle(image, (10, top + 44), (columns - 10, rows - 26), window, -1)
    for _ in range(int(columns / 14)):  # goods behind the glass
        x, y = int(rng.integers(12, columns - 22)), int(rng.integers(top + 56, rows - 46))
        color = tuple(int(c) for c in rng.integers(70, 190, 3))
        cv2.rectangle(image, (x, y), (x + int(rng.integers(5, 14)), y + 16), color, -1)
    cv2.rectangle(image, (door, top + 40), (door + 40, rows), trim, -1)
    cv2.rectangle(image, (door + 5, top + 46), (door + 35, rows - 10), (98, 112, 122), -1)
    awning = np.asarray(_AWNINGS[int(rng.integers(len(_AWNINGS)))])
    for k, x in enumerate(range(0, columns, 14)):
        stripe = awning if k % 2 else np.array([232, 228, 218])
        cv2.rectangle(image, (x, top + 14), (x + 14, top + 48), tuple(map(int, stripe)), -1)
    cv2.rectangle(image, (0, top - 4), (columns, top + 16), tuple(map(int, awning * 0.7)), -1)
    for x in range(columns // 4, 3 * columns // 4, 9):  # letters of the sign
        cv2.rectangle(
            image, (x, top + 1), (x + int(rng.integers(3, 7)), top + 11), (240, 236, 220), -1
        )


def _glass_front(image: np.ndarray, rng) -> np.ndarray:
    rows, columns = image.shape[:2]
    pane_w, pane_h = int(1.3 * _PX_PER_M), int(1.6 * _PX_PER_M)
    for y in range(0, rows, pane_h):
        for x in range(0, columns, pane_w):
            tone = int(rng.integers(70, 140))
            color = (tone - 12, tone, tone + 12) if rng.random() > 0.1 else (226, 214, 170)
            cv2.rectangle(image, (x, y), (x + pane_w, y + pane_h), color, -1)
            cv2.rectangle(image, (x, y), (x + pane_w, y + pane_h), (176, 178, 182), 4)
    return image


_BUILDERS = {
    "shops": _build_shops,
    "avenue": _build_avenue,
    "park": _build_park,
    "plaza": _build_plaza,
}
