"""Transparent drawing surface whose shapes are filled by functions of position."""

from dataclasses import dataclass
from typing import Any, Callable, Optional

import cv2
import numpy as np

#: Factor of the resolution of the drawing, which is averaged down for anti-aliasing.
SUPERSAMPLING = 3
_SHIFT = 4  # fractional bits of polygon corners

#: (x, y) in the canvas' own units, arrays that broadcast to (h, w) -> RGB (h, w, 3) or (3,).
Paint = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass
class Sprite:
    """An image with transparency.

    ``color`` (h, w, 3) float32 RGB 0..255, premultiplied by ``alpha`` (h, w) float32 0..1. The
    pixel ``anchor`` (x, y) is the point on the ground, or the center; it may lie outside.
    """

    color: np.ndarray
    alpha: np.ndarray
    anchor: tuple[int, int]

    def paste(self, picture: np.ndarray, at: tuple[int, int]) -> None:
        """Draw onto a picture (h, w, 3) float32, with the anchor at the pixel (x, y)."""
        overlap = self._overlap(at, picture.shape)
        if overlap:
            inside, part = overlap
            picture[inside] *= 1 - self.alpha[part][..., None]
            picture[inside] += self.color[part]

    def mark(self, mask: np.ndarray, at: tuple[int, int]) -> None:
        """Set the opaque pixels in a mask (h, w) bool, with the anchor at the pixel (x, y)."""
        overlap = self._overlap(at, mask.shape)
        if overlap:
            mask[overlap[0]] |= self.alpha[overlap[1]] > 0.5

    def visible(self, hidden: np.ndarray, at: tuple[int, int]) -> tuple[np.ndarray, float]:
        """Mask of the pixels that are not ``hidden`` (h, w), and their fraction of all."""
        seen = np.zeros_like(hidden)
        self.mark(seen, at)
        seen &= ~hidden
        whole = int(np.count_nonzero(self.alpha > 0.5))
        return seen, int(np.count_nonzero(seen)) / max(whole, 1)

    def _overlap(
        self, at: tuple[int, int], shape: tuple[int, ...]
    ) -> Optional[tuple[tuple[slice, slice], tuple[slice, slice]]]:
        """Slices of the picture and of the sprite where they overlap, or ``None``."""
        height, width = self.alpha.shape
        left, top = at[0] - self.anchor[0], at[1] - self.anchor[1]
        x0, x1 = max(left, 0), min(left + width, shape[1])
        y0, y1 = max(top, 0), min(top + height, shape[0])
        if x1 <= x0 or y1 <= y0:
            return None
        inside = (slice(y0, y1), slice(x0, x1))
        return inside, (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """XYXY box of the pixels of a mask (h, w), with exclusive right and lower border."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


class Canvas:
    """Surface in units of ``scale`` final pixels, x to the right and y up, origin at the anchor."""

    def __init__(self, scale: float, left: float, right: float, down: float, up: float) -> None:
        self._px = scale * SUPERSAMPLING
        self._final = tuple(int(np.ceil(scale * side)) + 1 for side in (left, right, down, up))
        left_px, right_px, down_px, up_px = self._final
        shape = ((down_px + up_px) * SUPERSAMPLING, (left_px + right_px) * SUPERSAMPLING)
        self.color = np.zeros((*shape, 3), np.float32)
        self.alpha = np.zeros(shape, np.uint8)
        self._origin = (left_px * SUPERSAMPLING, up_px * SUPERSAMPLING)

    def polygon(self, points: Any, paint: Any) -> None:
        """Fill the polygon ``points`` (n, 2) with a color (3,) or a :data:`Paint`."""
        points = np.asarray(points, np.float64)
        pixels = np.empty_like(points)
        pixels[:, 0] = self._origin[0] + points[:, 0] * self._px
        pixels[:, 1] = self._origin[1] - points[:, 1] * self._px
        height, width = self.alpha.shape
        x0, y0 = np.maximum(np.floor(pixels.min(0)).astype(int) - 1, 0)
        x1, y1 = np.ceil(pixels.max(0)).astype(int) + 2
        x1, y1 = min(x1, width), min(y1, height)
        if x1 <= x0 or y1 <= y0:
            return
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        fixed = np.round((pixels - (x0, y0)) * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(mask, [fixed], 255, cv2.LINE_8, _SHIFT)
        if callable(paint):
            xs = ((np.arange(x0, x1, dtype=np.float32) - self._origin[0]) / self._px)[None, :]
            ys = ((self._origin[1] - np.arange(y0, y1, dtype=np.float32)) / self._px)[:, None]
            color = paint(xs, ys)
        else:
            color = np.asarray(paint, np.float32)
        inside = mask > 0
        np.copyto(self.color[y0:y1, x0:x1], color, where=inside[..., None])
        self.alpha[y0:y1, x0:x1][inside] = 255

    def ellipse(self, center: Any, radii: Any, paint: Any, angle: float = 0.0) -> None:
        self.polygon(ellipse_points(center, radii, angle), paint)

    def to_sprite(self) -> Sprite:
        """Average down to the final resolution."""
        height, width = self.alpha.shape
        size = (width // SUPERSAMPLING, height // SUPERSAMPLING)
        # Empty pixels are black, so averaging of color and alpha premultiplies.
        color = cv2.resize(self.color, size, interpolation=cv2.INTER_AREA)
        alpha = cv2.resize(self.alpha, size, interpolation=cv2.INTER_AREA)
        anchor = (self._final[0], self._final[3])
        return Sprite(color, alpha.astype(np.float32) / 255.0, anchor)


def ellipse_points(center: Any, radii: Any, angle: float = 0.0, count: int = 28) -> np.ndarray:
    """(count, 2) corners of an ellipse turned by ``angle`` radians."""
    turn = np.linspace(0, 2 * np.pi, count, endpoint=False)
    x, y = radii[0] * np.cos(turn), radii[1] * np.sin(turn)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([center[0] + x * cos - y * sin, center[1] + x * sin + y * cos], 1)


def capsule_points(a: Any, b: Any, radius_a: float, radius_b: float, count: int = 8) -> np.ndarray:
    """Corners of a limb from ``a`` to ``b`` with round ends."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    direction = np.arctan2(b[1] - a[1], b[0] - a[0])
    half = np.linspace(-np.pi / 2, np.pi / 2, count)
    end_b = b + radius_b * np.stack([np.cos(direction + half), np.sin(direction + half)], 1)
    back = direction + np.pi + half
    end_a = a + radius_a * np.stack([np.cos(back), np.sin(back)], 1)
    return np.concatenate([end_b, end_a])


def rounded_box(
    center: Any, half_width: float, half_height: float, corner: float = 0.3
) -> np.ndarray:
    """Outline of a box with corners rounded by ``corner`` of its shorter half side."""
    r = corner * min(half_width, half_height)
    turn = np.linspace(0, np.pi / 2, 5)
    points = []
    for quadrant, (sx, sy) in enumerate(((1, 1), (-1, 1), (-1, -1), (1, -1))):
        cx, cy = center[0] + sx * (half_width - r), center[1] + sy * (half_height - r)
        angle = turn + quadrant * np.pi / 2
        points.append(np.stack([cx + r * np.cos(angle), cy + r * np.sin(angle)], 1))
    return np.concatenate(points)
