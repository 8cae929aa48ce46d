"""Fabric patterns: the color of a cloth at a place on the body."""

from typing import Any

import numpy as np

from kd_search.synthetic.appearance import Cloth


def rgb(color: Any) -> np.ndarray:
    """A color as float32."""
    return np.asarray(color, np.float32)


def mix(base: np.ndarray, accent: Any, weight: Any) -> np.ndarray:
    """Blend ``accent`` over ``base`` (..., 3) with ``weight`` (h, w), 0 to 1."""
    weight = np.asarray(weight, np.float32)[..., None]
    return base + (rgb(accent) - base) * weight


def lit(color: np.ndarray, u: np.ndarray, light: tuple[float, float]) -> np.ndarray:
    """Shade a round surface.

    ``u`` (h, w) is -1 at the left outline and 1 at the right one; ``light`` is the direction of the
    light, (side, front).
    """
    u = np.clip(u, -1, 1)
    facing = np.sqrt(1 - u * u)
    brightness = 0.58 + 0.5 * np.maximum(0, u * light[0] + facing * light[1])
    return color * brightness[..., None].astype(np.float32)


def fabric(cloth: Cloth, across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Color of ``cloth`` at ``across`` and ``down`` (h, w), both in body heights -> (h, w, 3)."""
    across, down = np.broadcast_arrays(across, down)
    base = np.broadcast_to(rgb(cloth.color), (*across.shape, 3))
    weight = _WEIGHTS.get(cloth.pattern)
    return base if weight is None else mix(base, cloth.accent, weight(across, down, cloth.period))


def _stripes(x: np.ndarray, period: float, share: float) -> np.ndarray:
    return (np.mod(x, period) < share * period).astype(np.float32)


def _checks(across: np.ndarray, down: np.ndarray, period: float) -> np.ndarray:
    return 0.5 * (_stripes(across, period, 0.45) + _stripes(down, period, 0.45))


def _dots(across: np.ndarray, down: np.ndarray, period: float) -> np.ndarray:
    row = np.floor(down / period)
    x = np.mod(across + 0.5 * period * np.mod(row, 2), period) / period - 0.5
    y = np.mod(down, period) / period - 0.5
    return (x * x + y * y < 0.075).astype(np.float32)


# Patterns that depend on the place on the fabric alone; the drawing of a body part adds those of a
# side of the body (logo, band, halves, side stripe, ...).
_WEIGHTS = {
    "stripes_wide": lambda across, down, period: _stripes(down, 1.25 * period, 0.5),
    "stripes_thin": lambda across, down, period: _stripes(down, 0.6 * period, 0.4),
    "pinstripes": lambda across, down, period: _stripes(across, 0.8 * period, 0.4),
    "checks": _checks,
    "dots": _dots,
}
