"""Posed body in three dimensions and its projection."""

from dataclasses import dataclass
from typing import Any

import numpy as np

_TILT = 0.13  # offset of a nearer foot in the picture, downwards, per unit of depth


@dataclass(frozen=True)
class Pose:
    """Pose of a person in one image.

    ``yaw`` in radians is 0 when facing the camera and pi/2 when walking to the right of the
    picture; ``phase`` in radians is the place in the gait cycle and ``stride`` its size, from 0
    (standing) to 1 (walking fast).
    """

    yaw: float
    phase: float
    stride: float
    lean: float = 0.0


class Skeleton:
    """Joints of a posed person, in body heights.

    Body axes: X to the person's left, Y up, Z forward. :meth:`project` gives picture coordinates
    (x right, y up, origin between the feet) and the depth towards the camera.
    """

    def __init__(self, build: float, pose: Pose) -> None:
        self.pose = pose
        self.build = build
        self._cos, self._sin = np.cos(pose.yaw), np.sin(pose.yaw)
        self.joints: dict[str, np.ndarray] = {}
        swing = 0.50 * pose.stride
        for side, name in ((1, "left"), (-1, "right")):
            beat = pose.phase + (0 if side > 0 else np.pi)
            self._leg(name, side, swing * np.sin(beat), 0.85 * swing * max(0.0, -np.cos(beat)))
            self._arm(name, side, -0.9 * swing * np.sin(beat), 0.15 + 0.5 * pose.stride)
        # Everything is lowered by drop, so that the lower foot touches the ground in any gait.
        self.drop = min(self.joints["left_ankle"][1], self.joints["right_ankle"][1]) - 0.035
        for joint in self.joints.values():
            joint[1] -= self.drop

    def _leg(self, name: str, side: int, hip: float, knee: float) -> None:
        start = np.array([side * 0.048 * self.build, 0.50, 0.0])
        bend = start + 0.235 * np.array([0.0, -np.cos(hip), np.sin(hip)])
        ankle = bend + 0.23 * np.array([0.0, -np.cos(hip - knee), np.sin(hip - knee)])
        foot = hip - 0.7 * knee
        toe = ankle + np.array([side * 0.012, -0.022 + 0.05 * np.sin(foot), 0.075 * np.cos(foot)])
        self.joints.update(
            {f"{name}_hip": start, f"{name}_knee": bend, f"{name}_ankle": ankle, f"{name}_toe": toe}
        )

    def _arm(self, name: str, side: int, swing: float, elbow: float) -> None:
        start = np.array([side * (0.094 + 0.028 * self.build), 0.795, 0.0])
        out = side * 0.10
        bend = start + 0.165 * np.array([out, -np.cos(swing), np.sin(swing)])
        forward = swing + elbow
        hand = bend + 0.15 * np.array([0.3 * out, -np.cos(forward), np.sin(forward)])
        self.joints.update({f"{name}_shoulder": start, f"{name}_elbow": bend, f"{name}_hand": hand})

    def project(self, point: Any) -> np.ndarray:
        """(X, Y, Z) of the body -> (x, y) of the picture."""
        x, y, z = point
        depth = self._depth(point)
        picture_x = x * self._cos + z * self._sin + self.pose.lean * max(0.0, y - 0.5)
        return np.array([picture_x, y - _TILT * depth * max(0.0, 1 - y / 0.6)])

    def joint(self, name: str) -> np.ndarray:
        """(x, y) of a joint in the picture."""
        return self.project(self.joints[name])

    def near_and_far(self) -> tuple[str, str]:
        """The side of the body nearer to the camera, and the other one."""
        left, right = (self._depth(self.joints[f"{side}_hip"]) for side in ("left", "right"))
        return ("left", "right") if left > right else ("right", "left")

    def half_width(self, across: float, deep: float) -> float:
        """Half the width in the picture of a body of elliptic cross-section."""
        return float(np.hypot(across * self._cos, deep * self._sin))

    @property
    def step(self) -> float:
        """Distance of the feet in the direction of walking."""
        return abs(self.joints["left_ankle"][2] - self.joints["right_ankle"][2])

    @property
    def facing(self) -> float:
        """1 seen from the front, 0 from the side, -1 from behind."""
        return float(self._cos)

    def _depth(self, point: Any) -> float:
        return point[2] * self._cos - point[0] * self._sin
