"""Flat pictures of building fronts, to be warped into the street."""

import cv2
import numpy as np

_PX_PER_M = 40
_WALLS = ((168, 92, 72), (190, 168, 136), (146, 142, 138), (206, 190, 160), (150, 112, 92))
_AWNINGS = ((170, 44, 44), (38, 92, 70), (40, 66, 120), (206, 164, 60), (120, 60, 96))


def draw_facade(kind: str, wide: float, tall: float, rng: np.random.Generator) -> np.ndarray:
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
        color = awning if k % 2 else np.array([232, 228, 218])
        cv2.rectangle(image, (x, top + 14), (x + 14, top + 48), tuple(map(int, color)), -1)
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
