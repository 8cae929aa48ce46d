"""Cameras: position, light and lens."""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from kd_search.synthetic.config import SceneConfig

#: Mean height of people, which determines the distance of a height in pixels.
MEAN_HEIGHT_M = 1.74


@dataclass(frozen=True)
class Geometry:
    """A level pinhole camera above a flat ground.

    World coordinates in metres: X right, Y up from the ground, Z away from the camera. Picture
    coordinates in pixels of the final image, y down.
    """

    focal: float
    camera_height: float
    vanishing_x: float
    horizon: float

    def project(self, x: float, y: float, z: float) -> tuple[float, float]:
        return (
            self.vanishing_x + self.focal * x / z,
            self.horizon + self.focal * (self.camera_height - y) / z,
        )

    def pixels_per_metre(self, z: float) -> float:
        return self.focal / z

    def depth_at(self, metres: float, pixels: float) -> float:
        """Distance at which something ``metres`` tall is ``pixels`` tall."""
        return self.focal * metres / pixels


@dataclass(frozen=True)
class Look:
    """Light and lens. Gains are RGB; ``light`` is the direction of the sun, (side, front)."""

    gain: tuple[float, float, float]
    gamma: float
    saturation: float
    blur: float
    noise: float
    vignette: float
    shadow: float
    shadow_slope: float
    light: tuple[float, float]


@dataclass(frozen=True)
class Camera:
    camera_id: int
    style: str
    geometry: Geometry
    look: Look


STYLES = ("shops", "avenue", "park", "plaza")

# One look per style: midday sun, low warm sun, green overcast, blue dusk with a noisy sensor.
_LOOKS = {
    "shops": Look((1.02, 1.0, 0.97), 1.0, 1.0, 0.35, 2.0, 0.10, 0.42, -0.55, (-0.45, 0.85)),
    "avenue": Look((1.17, 1.0, 0.78), 0.96, 1.02, 0.45, 3.0, 0.18, 0.40, 0.95, (0.62, 0.72)),
    "park": Look((0.90, 1.03, 0.90), 1.10, 0.78, 0.60, 3.0, 0.12, 0.20, 0.12, (0.05, 0.85)),
    "plaza": Look((0.80, 0.92, 1.12), 1.12, 0.86, 0.55, 5.0, 0.24, 0.24, -0.15, (-0.2, 0.82)),
}


def make_camera(camera_id: int, config: SceneConfig, rng: np.random.Generator) -> Camera:
    """Camera ``camera_id`` (from 1). The style changes from camera to camera."""
    style = STYLES[(camera_id - 1) % len(STYLES)]
    height, width = config.height, config.width
    horizon = height * rng.uniform(0.15, 0.25)
    # The nearest people stand a little below the lower border; that fixes the camera's height.
    foot = height * 1.04
    camera_height = MEAN_HEIGHT_M * (foot - horizon) / config.max_person_height
    geometry = Geometry(
        focal=width * rng.uniform(0.85, 1.05),
        camera_height=float(camera_height),
        vanishing_x=float(width * rng.uniform(0.35, 0.65)),
        horizon=float(horizon),
    )
    look = _LOOKS[style]
    jitter = rng.uniform(0.96, 1.04, 3)
    red, green, blue = (float(g * j) for g, j in zip(look.gain, jitter))
    return Camera(camera_id, style, geometry, replace(look, gain=(red, green, blue)))


def expose(scene: np.ndarray, look: Look, rng: np.random.Generator) -> np.ndarray:
    """Turn the drawn scene, float32 RGB 0..255, into the camera's picture, uint8 RGB."""
    height, width = scene.shape[:2]
    image: np.ndarray = scene / np.float32(255)
    if look.blur > 0:
        sigma = look.blur * height / 192 * rng.uniform(0.8, 1.25)
        image = cv2.GaussianBlur(image, (0, 0), sigmaX=sigma)
    gray = image @ np.array([0.299, 0.587, 0.114], np.float32)
    image = gray[..., None] + np.float32(look.saturation) * (image - gray[..., None])
    exposure = rng.uniform(0.88, 1.12)
    gain = np.asarray(look.gain) * exposure * rng.uniform(0.97, 1.03, 3)
    image *= gain.astype(np.float32)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    image *= (1 - np.float32(look.vignette) * (x * x + y * y) / 2)[..., None]
    image = np.clip(image, 0, 1) ** np.float32(look.gamma)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    image = image * 255 + noise * np.float32(look.noise) * (0.6 + 0.8 * (1 - image))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
