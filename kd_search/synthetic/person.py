"""Drawing of a person with bags, far parts first."""

import numpy as np

from kd_search.synthetic.appearance import Appearance
from kd_search.synthetic.canvas import (
    Canvas,
    Paint,
    Sprite,
    capsule_points,
    ellipse_points,
    rounded_box,
)
from kd_search.synthetic.cloth import rgb
from kd_search.synthetic.dressing import Dressing
from kd_search.synthetic.head import draw_hanging_hair, draw_head, hair_is_behind
from kd_search.synthetic.limbs import draw_arm, draw_leg
from kd_search.synthetic.skeleton import Pose, Skeleton
from kd_search.synthetic.trunk import draw_lower_body, draw_trunk


def draw_person(
    appearance: Appearance, pose: Pose, height: float, light: tuple[float, float] = (-0.4, 0.9)
) -> Sprite:
    """Draw a person of ``height`` pixels from sole to crown.

    ``light`` is the direction of the light, (side, front); a negative side is the left.
    """
    canvas = Canvas(height, left=0.48, right=0.48, down=0.08, up=1.14)
    body = Skeleton(appearance.build, pose)
    person = Dressing(canvas, body, appearance, light)
    near, far = body.near_and_far()
    # From the front or from behind, both arms are beside the trunk.
    beside = abs(body.facing) > 0.75
    if hair_is_behind(person):
        draw_hanging_hair(person)
    _draw_worn_bag(person, in_front=False)
    if not beside:
        _draw_arm_and_bag(person, far)
    draw_leg(person, far)
    draw_leg(person, near)
    draw_lower_body(person)
    draw_trunk(person)
    if beside:
        _draw_arm_and_bag(person, far)
    draw_head(person)
    _draw_worn_bag(person, in_front=True)
    _draw_arm_and_bag(person, near)
    return canvas.to_sprite()


def _draw_arm_and_bag(person: Dressing, side: str) -> None:
    draw_arm(person, side)
    _draw_carried_bag(person, side)


# Bags on the back, at the hip and in the hand -----------------------------------------------------


def _draw_worn_bag(d: Dressing, in_front: bool) -> None:
    """A backpack or a bag at the hip, if it is in front of the body (or behind it)."""
    bag = d.look.bag
    if bag == "backpack" and (d.body.facing <= 0) == in_front:
        _draw_backpack(d)
    elif bag in ("messenger", "tote"):
        near, _ = d.body.near_and_far()
        if (_bag_side(d) == near) == in_front:
            _draw_hip_bag(d)


def _draw_carried_bag(d: Dressing, side: str) -> None:
    """A bag in the hand of that side, if there is one."""
    look = d.look
    if look.bag not in ("handbag", "shopping") or side != _bag_side(d):
        return
    color, hand = rgb(look.bag_color), d.body.joint(f"{side}_hand")
    big = look.bag == "shopping"
    tall = 0.085 if big else 0.05
    half = d.body.half_width(0.04, 0.07 if big else 0.065)
    center = hand - (0, 0.035 + tall)
    d.canvas.polygon(ellipse_points(hand - (0, 0.03), (half * 0.5, 0.035)), color * 0.6)
    d.canvas.polygon(rounded_box(center, half, tall, 0.2), _box_paint(color, center, half))
    if big:
        d.canvas.polygon(rounded_box(center, half * 0.5, tall * 0.35), (236, 232, 220))


def _bag_side(d: Dressing) -> str:
    return "left" if d.look.bag_side > 0 else "right"


def _draw_backpack(d: Dressing) -> None:
    color = rgb(d.look.bag_color)
    center = d.at(0, 0.695, -0.115)
    half = d.body.half_width(0.088, 0.055)
    d.canvas.polygon(rounded_box(center, half, 0.118, 0.6), _box_paint(color, center, half))
    if d.body.facing < -0.3:  # pocket and its zip
        pocket = center - (0, 0.045)
        d.canvas.polygon(rounded_box(pocket, half * 0.72, 0.05, 0.5), color * 0.72)
        d.canvas.polygon(rounded_box(pocket + (0, 0.03), half * 0.6, 0.006), color * 0.4)


def _draw_hip_bag(d: Dressing) -> None:
    look, side = d.look, d.look.bag_side
    big = look.bag == "tote"
    color = rgb(look.bag_color)
    center = d.at(side * 0.135, 0.50 if big else 0.52, 0.0)
    half = d.body.half_width(0.045 if big else 0.04, 0.085 if big else 0.07)
    if big:
        shoulder = d.at(side * 0.10, 0.825, 0.0)
        strap = capsule_points(shoulder, center + (0, 0.05), 0.011, 0.011)
        d.canvas.polygon(strap, color * 0.7)
    box = rounded_box(center, half, 0.085 if big else 0.055, 0.35)
    d.canvas.polygon(box, _box_paint(color, center, half))


def _box_paint(color: np.ndarray, center: np.ndarray, half: float) -> Paint:
    def paint(x, y):
        x, y = np.broadcast_arrays(x, y)
        fall = 1.05 - 0.22 * np.clip((x - center[0]) / half, -1, 1) + 0.9 * (y - center[1])
        return color * fall[..., None].astype(np.float32)

    return paint
