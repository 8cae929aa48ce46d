"""Arms and legs with sleeves, trousers, socks and shoes."""

import numpy as np

from kd_search.synthetic.appearance import Cloth
from kd_search.synthetic.canvas import capsule_points
from kd_search.synthetic.cloth import fabric, lit, mix
from kd_search.synthetic.dressing import Dressing, SurfacePaint, plain

# Share of the upper arm that is covered; 2 covers the lower arm too.
_SLEEVES = {"tshirt": 0.75, "shirt": 2.0, "jacket": 2.0, "coat": 2.0, "vest": 0.0, "hoodie": 2.0}
_THIGH, _UPPER_ARM = 0.235, 0.165


def draw_leg(d: Dressing, side: str) -> None:
    look, body = d.look, d.body
    hip, knee, ankle, toe = (body.joint(f"{side}_{j}") for j in ("hip", "knee", "ankle", "toe"))
    thick = 0.6 + 0.4 * look.build
    fitted = {"leggings": 0.85, "trousers": 1.0}.get(look.lower, 0.92) * thick
    covered = look.lower in ("trousers", "leggings")
    skin = plain(look.skin)

    def sock(u, t):
        return mix(skin(u, t), look.sock_color, t > 0.13)

    upper = _trouser(d, look.lower_cloth, 0.0) if covered else skin
    lower = _trouser(d, look.lower_cloth, _THIGH) if covered else sock
    _draw_shoe(d, ankle, toe)
    d.limb(knee, ankle, 0.039 * fitted, (0.031 if covered else 0.024) * fitted, lower)
    d.limb(hip, knee, 0.056 * fitted, 0.042 * fitted, upper)
    if look.lower == "shorts":
        cut = hip + 0.85 * (knee - hip)
        d.limb(hip, cut, 0.058 * thick, 0.053 * thick, _trouser(d, look.lower_cloth, 0.0))


def _trouser(d: Dressing, cloth: Cloth, offset: float) -> SurfacePaint:
    def paint(u, t):
        angle = np.arcsin(np.clip(u, -1, 1)) - d.yaw
        color = fabric(cloth, angle * 0.045, t + offset)
        if cloth.pattern == "side_stripe":
            return mix(color, cloth.accent, np.abs(np.sin(angle)) > 0.8)
        if cloth.pattern == "cuffs":
            return mix(color, cloth.accent, t + offset > 0.40)
        return color

    return paint


def _draw_shoe(d: Dressing, ankle: np.ndarray, toe: np.ndarray) -> None:
    sole = capsule_points(ankle - (0, 0.022), toe - (0, 0.008), 0.025, 0.018)
    d.canvas.polygon(sole, np.asarray(d.look.shoe_color) * 0.55)
    d.limb(ankle - (0, 0.012), toe, 0.026, 0.019, plain(d.look.shoe_color))


def draw_arm(d: Dressing, side: str) -> None:
    look, body = d.look, d.body
    shoulder, elbow, hand = (body.joint(f"{side}_{j}") for j in ("shoulder", "elbow", "hand"))
    bulky = look.upper in ("coat", "jacket", "hoodie")
    thick = (0.7 + 0.3 * look.build) * (1.12 if bulky else 1)
    sleeve = _SLEEVES[look.upper]
    skin = plain(look.skin)
    upper, lower = (_sleeve(d, 0.0), _sleeve(d, _UPPER_ARM)) if sleeve > 1 else (skin, skin)

    def hand_paint(x, y):
        u = np.broadcast_arrays((x - hand[0]) / 0.02, y)[0]
        return lit(skin(u, u), u, d.light)

    d.canvas.ellipse(hand, (0.019, 0.024), hand_paint)
    d.limb(elbow, hand, 0.025 * thick, 0.020 * thick, lower)
    d.limb(shoulder, elbow, 0.034 * thick, 0.027 * thick, upper)
    if 0 < sleeve < 1:
        cut = shoulder + sleeve * (elbow - shoulder)
        d.limb(shoulder, cut, 0.037 * thick, 0.034 * thick, _sleeve(d, 0.0))


def _sleeve(d: Dressing, offset: float) -> SurfacePaint:
    cloth = d.look.upper_cloth

    def paint(u, t):
        color = fabric(cloth, np.arcsin(np.clip(u, -1, 1)) * 0.03, t + offset)
        if cloth.pattern == "yoke":
            return mix(color, cloth.accent, t + offset < 0.09)
        if cloth.pattern == "band":
            return mix(color, cloth.accent, np.abs(t + offset - 0.11) < 0.025)
        if cloth.pattern == "halves":
            return mix(color, cloth.accent, t + offset > 0.17)
        return color

    return paint
