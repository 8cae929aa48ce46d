"""Shapes of clothed bodies: limbs and standing cylinders, both shaded."""

from dataclasses import dataclass
from typing import Any, Callable

import numpy as np

from kd_search.synthetic.appearance import Appearance
from kd_search.synthetic.canvas import Canvas, capsule_points
from kd_search.synthetic.cloth import lit, rgb
from kd_search.synthetic.skeleton import Skeleton

#: Coordinates on a surface, two arrays (h, w) -> RGB (h, w, 3).
SurfacePaint = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Dressing:
    """State of the drawing of a person: canvas, posed body, appearance and light."""

    canvas: Canvas
    body: Skeleton
    look: Appearance
    light: tuple[float, float]

    @property
    def yaw(self) -> float:
        return self.body.pose.yaw

    def at(self, x: float, y: float, z: float) -> np.ndarray:
        """Picture coordinates of a point of the standing body, lowered by the gait."""
        return self.body.project((x, y - self.body.drop, z))

    def limb(
        self, start: Any, end: Any, radius_start: float, radius_end: float, paint: SurfacePaint
    ) -> None:
        """Draw a limb; ``paint(u, t)``: u -1 to 1 across, t body heights from the start."""
        axis = np.asarray(end) - start
        length = max(float(np.hypot(*axis)), 1e-4)
        along = axis / length

        def shade(x, y):
            dx, dy = x - start[0], y - start[1]
            t = dx * along[0] + dy * along[1]
            across = dx * along[1] - dy * along[0]
            share = np.clip(t / length, 0, 1)
            u = -across / (radius_start + (radius_end - radius_start) * share)
            return lit(paint(u, t), u, self.light)

        self.canvas.polygon(capsule_points(start, end, radius_start, radius_end), shade)

    def cylinder(self, outline: Any, paint: SurfacePaint) -> None:
        """Draw a standing part of the body.

        ``outline`` rows are (y, half width), top first. ``paint(angle, y)``: angle in radians
        around the body, 0 in front, positive towards the person's left; y in heights of the
        standing body.
        """
        rows = np.asarray(outline, np.float64)
        lean, drop = self.body.pose.lean, self.body.drop
        ys, widths = rows[:, 0] - drop, rows[:, 1]
        centers = lean * np.maximum(0, ys - 0.5)
        left = np.stack([centers - widths, ys], 1)
        right = np.stack([centers + widths, ys], 1)[::-1]

        def shade(x, y):
            half = np.interp(y, ys[::-1], widths[::-1]).astype(np.float32)
            u = np.clip((x - lean * np.maximum(0, y - 0.5)) / half, -1, 1)
            angle = body_angle(u, self.yaw)
            return lit(paint(angle, np.broadcast_to(y + drop, angle.shape)), u, self.light)

        self.canvas.polygon(np.concatenate([left, right]), shade)


def body_angle(u: np.ndarray, yaw: float) -> np.ndarray:
    """Angle around a body rotated by ``yaw`` at u, -1 to 1 across its visible side."""
    return np.mod(np.arcsin(u) - yaw + np.pi, 2 * np.pi) - np.pi


def plain(color: Any) -> SurfacePaint:
    """A single color."""
    color = rgb(color)
    return lambda u, v: np.broadcast_to(color, (*np.broadcast(u, v).shape, 3))
