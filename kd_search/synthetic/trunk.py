"""Upper garments from neck to hem, hips and skirts."""

import numpy as np

from kd_search.synthetic.appearance import Appearance, Cloth
from kd_search.synthetic.canvas import capsule_points
from kd_search.synthetic.cloth import fabric, mix, rgb
from kd_search.synthetic.dressing import Dressing, SurfacePaint

_HEMS = {"tshirt": 0.47, "shirt": 0.46, "jacket": 0.44, "coat": 0.29, "vest": 0.47, "hoodie": 0.43}
_SKIRT_HEMS = {"skirt": 0.31, "long_skirt": 0.11, "dress": 0.27}


def draw_lower_body(d: Dressing) -> None:
    """Hips, and the skirt or the skirt of a dress."""
    look, body = d.look, d.body
    build = look.build
    hip = body.half_width(0.092 * build, 0.070 * build)
    waist = body.half_width(0.080 * build, 0.060 * build)
    cloth = look.upper_cloth if look.lower == "dress" else look.lower_cloth

    def paint(angle, y):
        color = fabric(cloth, angle * 0.09, 0.55 - y)
        if cloth.pattern == "side_stripe":
            return mix(color, cloth.accent, np.abs(np.sin(angle)) > 0.9)
        return color

    hem = _SKIRT_HEMS.get(look.lower)
    if hem is None:
        rows = [(0.57, waist), (0.51, hip), (0.455, hip * 0.93), (0.44, hip * 0.6)]
    else:
        flare = hip * (1.22 if look.lower != "dress" else 1.35)
        # From the side, a skirt is wide enough for both striding legs.
        stride = (0.03 + 0.42 * body.step) * (0.55 - hem) / 0.44
        rows = [(0.58, waist), (0.50, hip * 1.04), (hem, max(flare, abs(np.sin(d.yaw)) * stride))]
    d.cylinder(rows, paint)


def draw_trunk(d: Dressing) -> None:
    """The upper garment with the straps of a bag, and a scarf."""
    look, body = d.look, d.body
    build = look.build
    bulky = 1.1 if look.upper in ("coat", "jacket", "hoodie") else 1.0
    shoulder = body.half_width(0.098 + 0.03 * build, 0.062 * build) * bulky
    chest = body.half_width(0.105 * build, 0.072 * build) * bulky
    waist = body.half_width(0.088 * build, 0.066 * build) * bulky
    hip = body.half_width(0.097 * build, 0.074 * build) * bulky
    hem = _HEMS[look.upper] if look.lower != "dress" else 0.55
    rows = [(0.862, body.half_width(0.040, 0.040)), (0.838, shoulder * 0.72), (0.812, shoulder)]
    rows += [(0.74, chest), (0.60, waist)]
    if hem < 0.52:
        rows += [(0.50, hip), (hem, hip * (1.12 if look.upper == "coat" else 1.0))]
    else:
        rows += [(hem, waist)]
    neck = d.at(0, 0.88, 0.0)
    d.canvas.polygon(capsule_points(neck - (0, 0.03), neck, 0.034, 0.03), rgb(look.skin) * 0.78)
    d.cylinder(rows, _upper_garment(look, hem))
    if look.scarf:
        d.canvas.ellipse(neck - (0, 0.022), (0.052, 0.024), rgb(look.inner_color) * 0.9)


def _upper_garment(look: Appearance, hem: float) -> SurfacePaint:
    def paint(angle, y):
        lateral = np.sin(angle)
        front = np.abs(angle) < np.pi / 2
        color = fabric(look.upper_cloth, angle * 0.10, 0.83 - y)
        color = _print(color, look.upper_cloth, front, lateral, y)
        color = _front(color, look, front, lateral, y)
        if look.upper != "coat":
            color = np.where((y < hem + 0.014)[..., None], color * 0.72, color)
        strap = np.asarray(look.bag_color) * 0.8
        if look.bag == "backpack":
            at_shoulders = np.abs(np.abs(lateral) - 0.52) < 0.11
            return mix(color, strap, front & at_shoulders & (y > 0.64))
        if look.bag == "messenger":
            return mix(color, strap, np.abs(y - (0.69 - 0.17 * look.bag_side * lateral)) < 0.016)
        return color

    return paint


def _front(color: np.ndarray, look: Appearance, front, lateral, y) -> np.ndarray:
    """Front of the garment: an open jacket, buttons, a pocket, a neckline."""
    side = np.abs(lateral)
    if look.upper in ("jacket", "coat"):
        gap = 0.16 + 0.28 * np.clip((y - 0.62) / 0.2, 0, 1)
        return mix(color, look.inner_color, front & (side < gap) & (y > 0.40))
    if look.upper == "shirt":
        color = mix(color, (240, 240, 236), front & (side < 0.05))
        return mix(color, look.skin, front & (side < 0.9 * (y - 0.80) / 0.06))
    if look.upper == "hoodie":
        pocket = front & (side < 0.5) & (np.abs(y - 0.53) < 0.035)
        return np.where(pocket[..., None], color * 0.78, color)
    return mix(color, look.skin, front & (side < 0.3) & (y > 0.838))


def _print(color: np.ndarray, cloth: Cloth, front, lateral, y) -> np.ndarray:
    """Patterns at a fixed place of the trunk."""
    accent = cloth.accent
    if cloth.pattern == "yoke":
        return mix(color, accent, y > 0.745)
    if cloth.pattern == "band":
        return mix(color, accent, np.abs(y - 0.70) < 0.035)
    if cloth.pattern == "logo":
        return mix(color, accent, front & ((lateral / 0.42) ** 2 + ((y - 0.71) / 0.045) ** 2 < 1))
    if cloth.pattern == "back_print":
        back = ~front & (np.abs(lateral) < 0.6) & (np.abs(y - 0.70) < 0.07)
        badge = front & (np.abs(lateral - 0.4) < 0.14) & (np.abs(y - 0.74) < 0.02)
        return mix(color, accent, back | badge)
    if cloth.pattern == "halves":
        return mix(color, accent, y < 0.62)
    return color
