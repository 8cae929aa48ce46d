"""Ground from above: pavement, roads, paths and lawns."""

from typing import Any

import cv2
import numpy as np

_PX_PER_M = 48
#: Nearest distance and half width of the drawing, in metres.
GROUND_NEAR = 1.2
GROUND_HALF_WIDTH = 16.0
_KERB = 0.17  # half its width


def draw_ground(style: str, far: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the ground up to ``far`` metres away, uint8 RGB.

    Row 0 is the far edge and the middle column lies straight ahead of the camera.
    """
    plan = _Plan(_BASE[style], far)
    _STYLES[style](plan, rng)
    for _ in range(5):
        plan.manhole(rng.uniform(-6.4, 6.4), rng.uniform(4, 14))
    return plan.weathered(rng)


class _Plan:
    """A drawing in metres: x to the right and z away from the camera."""

    def __init__(self, base: Any, far: float) -> None:
        self.far = far
        shape = (self._length(far - GROUND_NEAR), self._length(2 * GROUND_HALF_WIDTH), 3)
        self.image = np.empty(shape, np.uint8)
        self.image[:] = base

    def rectangle(self, x0: float, x1: float, z0: float, z1: float, color: Any) -> None:
        cv2.rectangle(self.image, self._pixel(x0, z1), self._pixel(x1, z0), color, -1)

    def band(self, edge: np.ndarray, width: float, color: Any, border: Any) -> None:
        """A path of ``width`` metres with the left edge ``edge``, rows of (x, z)."""
        left = np.array([self._pixel(x, z) for x, z in edge])
        right = left + (self._length(width), 0)
        cv2.fillPoly(self.image, [np.concatenate([left, right[::-1]])], color, cv2.LINE_AA)
        cv2.polylines(self.image, [left, right], False, border, 8, cv2.LINE_AA)

    def manhole(self, x: float, z: float) -> None:
        center = self._pixel(x, z)
        cv2.circle(self.image, center, self._length(0.33), (92, 90, 88), -1, cv2.LINE_AA)
        cv2.circle(self.image, center, self._length(0.27), (112, 110, 106), 3, cv2.LINE_AA)

    def tiles(self, side: float, rng: np.random.Generator, variation: float) -> None:
        """Slabs of ``side`` metres with a standard deviation of ``variation`` gray levels."""
        rows, columns = self.image.shape[:2]
        px = side * _PX_PER_M
        shape = (int(np.ceil(rows / px)), int(np.ceil(columns / px)))
        tone = rng.normal(0, variation, shape).astype(np.float32)
        i = np.minimum((np.arange(rows) / px).astype(int), shape[0] - 1)
        j = np.minimum((np.arange(columns) / px).astype(int), shape[1] - 1)
        across, along = np.mod(np.arange(rows), px) < 2, np.mod(np.arange(columns), px) < 2
        self._add(tone[i][:, j] - 26 * (across[:, None] | along[None]))

    def mottle(self, cell: float, strength: float, rng, smooth: int = cv2.INTER_LINEAR) -> None:
        """Uneven tone with spots of ``cell`` metres."""
        rows, columns = self.image.shape[:2]
        px = max(1, self._length(cell))
        spots = rng.normal(0, strength, (rows // px + 2, columns // px + 2)).astype(np.float32)
        self._add(cv2.resize(spots, (columns, rows), interpolation=smooth))

    def weathered(self, rng: np.random.Generator) -> np.ndarray:
        self.mottle(0.0625, 5, rng)
        self.mottle(1.25, 7, rng, cv2.INTER_CUBIC)
        return self.image

    def _add(self, tone: np.ndarray) -> None:
        self.image[:] = np.clip(self.image + tone[..., None], 0, 255).astype(np.uint8)

    def _pixel(self, x: float, z: float) -> tuple[int, int]:
        return self._length(x + GROUND_HALF_WIDTH), self._length(self.far - z)

    @staticmethod
    def _length(metres: float) -> int:
        return int(metres * _PX_PER_M)


def _draw_shopping_street(plan: _Plan, rng) -> None:
    """A road across the picture with a zebra crossing."""
    near, far = 10.6, 14.2
    plan.tiles(0.6, rng, 7)
    plan.rectangle(-GROUND_HALF_WIDTH, GROUND_HALF_WIDTH, near, far, (92, 92, 96))
    for z in (near, far):
        kerb = (z - _KERB, z + _KERB)
        plan.rectangle(-GROUND_HALF_WIDTH, GROUND_HALF_WIDTH, *kerb, (196, 194, 188))
    for x in np.arange(-16, 16, 2.0):
        plan.rectangle(x, x + 1, 12.3, 12.45, (222, 222, 214))
    first = float(rng.uniform(-3, 0))
    for x in first + 0.9 * np.arange(6):
        plan.rectangle(x, x + 0.45, near + _KERB, far - _KERB, (220, 220, 214))


def _draw_avenue(plan: _Plan, rng) -> None:
    """A road away from the camera, beside a wide pavement."""
    left, right = 1.2, 6.2
    plan.tiles(0.45, rng, 9)
    plan.rectangle(left, right, GROUND_NEAR, plan.far, (88, 86, 88))
    for x in (left, right):
        plan.rectangle(x - _KERB, x + _KERB, GROUND_NEAR, plan.far, (186, 180, 170))
    middle = (left + right) / 2
    for z in np.arange(2, plan.far, 3.0):
        plan.rectangle(middle - 0.08, middle + 0.08, z, z + 1.5, (214, 210, 200))


def _draw_park(plan: _Plan, rng) -> None:
    """A winding path across a lawn."""
    plan.mottle(0.125, 9, rng)
    z = np.arange(GROUND_NEAR, plan.far, 0.5)
    edge = np.stack([-3.2 + 1.4 * np.sin(z / 7), z], 1)
    plan.band(edge, 5.6, (186, 170, 138), (150, 138, 112))


def _draw_plaza(plan: _Plan, rng) -> None:
    """Large slabs with two guiding strips."""
    plan.tiles(1.5, rng, 12)
    for x in (-4.5, 4.5):
        plan.rectangle(x, x + 0.35, GROUND_NEAR, plan.far, (188, 164, 82))


_BASE = {
    "shops": (168, 160, 150),
    "avenue": (160, 154, 146),
    "park": (104, 128, 72),
    "plaza": (150, 150, 154),
}
_STYLES = {
    "shops": _draw_shopping_street,
    "avenue": _draw_avenue,
    "park": _draw_park,
    "plaza": _draw_plaza,
}
