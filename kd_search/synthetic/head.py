"""Heads: face, hair and hats."""

import numpy as np

from kd_search.synthetic.canvas import ellipse_points, rounded_box
from kd_search.synthetic.cloth import lit, mix, rgb
from kd_search.synthetic.dressing import Dressing, body_angle, plain

_TALL = 0.071
# Lower and upper end of the crown of a hat, in half heads above the center of the head.
_CROWNS = {"cap": (0.38, 1.08), "beanie": (0.22, 1.22), "sunhat": (0.42, 1.2)}


def hair_is_behind(d: Dressing) -> bool:
    """Whether head and trunk hide the hair that hangs down the back."""
    return d.body.facing > -0.3


def draw_hanging_hair(d: Dressing) -> None:
    """Hair beside or below the head."""
    look = d.look
    hair = plain(look.hair_color)
    if look.hair_style in ("long", "headscarf"):
        length, width = (0.75, 0.057) if look.hair_style == "long" else (0.78, 0.068)
        d.limb(d.at(0, 0.945, -0.02), d.at(0, length, -0.035), width, width * 0.92, hair)
    elif look.hair_style == "ponytail":
        d.limb(d.at(0, 0.955, -0.06), d.at(0, 0.80, -0.085), 0.022, 0.013, hair)
    elif look.hair_style == "bun":
        d.canvas.ellipse(d.at(0, 0.985, -0.055), (0.03, 0.028), rgb(look.hair_color))
    elif look.hair_style == "afro":
        d.canvas.ellipse(d.at(0, 0.955, -0.01), (0.082, 0.08), rgb(look.hair_color))


def draw_head(d: Dressing) -> None:
    """The head; from behind, with the hanging hair in front of it."""
    look, body = d.look, d.body
    center = d.at(0, 0.930, 0.012)
    width = body.half_width(0.049, 0.060)

    def paint(x, y):
        v = np.clip((y - center[1]) / _TALL, -1, 1)
        ring = np.sqrt(np.maximum(1 - v * v, 1e-3))
        u = np.clip((x - center[0]) / (width * ring), -1, 1)
        angle = body_angle(u, d.yaw)
        v = np.broadcast_to(v, angle.shape)
        color = plain(look.skin)(angle, v)
        eyes = (np.abs(np.abs(angle) - 0.42) < 0.17) & (np.abs(v - 0.08) < 0.09)
        color = mix(color, (40, 34, 34), eyes * 0.85)
        mouth = (np.abs(angle) < 0.3) & (np.abs(v + 0.48) < 0.06)
        color = mix(color, (140, 70, 66), mouth * 0.6)
        if look.beard:
            color = mix(color, look.hair_color, (v < -0.28) & (np.abs(angle) < 1.5) & ~mouth)
        color = mix(color, look.hair_color, _hairline(look.hair_style, np.abs(angle), v))
        return lit(color, u * ring, d.light)

    if look.hair_style == "afro":
        draw_hanging_hair(d)
    d.canvas.polygon(ellipse_points(center, (width, _TALL)), paint)
    if not hair_is_behind(d):
        draw_hanging_hair(d)
    if look.hat != "none":
        _draw_hat(d, center, width)


def _hairline(style: str, angle: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Mask of hair (or cloth) on the head; angle 0 is the face, v 1 the crown."""
    if style == "bald":
        return np.zeros_like(v, bool)
    if style == "headscarf":
        return (v > 0.42) | (angle > 0.85) | (v < -0.62)
    if style == "fringe":
        return (v > 0.28) | ((angle > 1.0) & (v > -0.45))
    if style in ("long", "ponytail", "bun", "afro"):
        return (v > 0.5) | ((angle > 1.0) & (v > -0.75))
    return (v > 0.5) | ((angle > 1.35) & (v > -0.3))


def _draw_hat(d: Dressing, center: np.ndarray, width: float) -> None:
    look = d.look
    color = rgb(look.hat_color)
    low, high = _CROWNS[look.hat]

    def shade(x, y):
        u = np.broadcast_arrays((x - center[0]) / (width * 1.1), y)[0]
        return lit(plain(color)(u, u), u, d.light)

    turn = np.linspace(0, np.pi, 14)
    across = center[0] + 1.1 * width * np.cos(turn)
    up = center[1] + _TALL * (low + (high - low) * np.sin(turn))
    d.canvas.polygon(np.stack([across, up], 1), shade)
    brim = center + (0, low * _TALL)
    if look.hat == "beanie":
        band = rounded_box(brim + (0, 0.1 * _TALL), width * 1.13, 0.014)
        d.canvas.polygon(band, color * 0.75)
    elif look.hat == "sunhat":
        d.canvas.ellipse(brim, (0.105, 0.021), color * 0.82)
    elif d.body.facing > -0.35:
        forward = np.sin(d.yaw)
        length = 0.35 + 0.65 * abs(forward)
        peak = brim + (forward * 0.062, 0)
        d.canvas.ellipse(peak, (0.052 * length + 0.012, 0.013), color * 0.72)
