"""Draws a whole person, far parts first."""

from kd_search.synthetic.appearance import Appearance
from kd_search.synthetic.bags import draw_carried_bag, draw_worn_bag
from kd_search.synthetic.canvas import Canvas, Sprite
from kd_search.synthetic.dressing import Dressing
from kd_search.synthetic.head import draw_hanging_hair, draw_head, hair_is_behind
from kd_search.synthetic.limbs import draw_arm, draw_leg
from kd_search.synthetic.skeleton import Pose, Skeleton
from kd_search.synthetic.trunk import draw_lower_body, draw_trunk


def draw_person(
    appearance: Appearance, pose: Pose, height: float, light: tuple[float, float] = (-0.4, 0.9)
) -> Sprite:
    """Draw a person ``height`` pixels tall from sole to crown.

    ``light`` is (side, front): where the light comes from, side negative for the left.
    """
    canvas = Canvas(height, left=0.48, right=0.48, down=0.08, up=1.14)
    body = Skeleton(appearance.build, pose)
    person = Dressing(canvas, body, appearance, light)
    near, far = body.near_and_far()
    # Seen from the front or from behind, both arms hang beside the trunk.
    beside = abs(body.facing) > 0.75
    if hair_is_behind(person):
        draw_hanging_hair(person)
    draw_worn_bag(person, in_front=False)
    if not beside:
        _draw_arm_and_bag(person, far)
    draw_leg(person, far)
    draw_leg(person, near)
    draw_lower_body(person)
    draw_trunk(person)
    if beside:
        _draw_arm_and_bag(person, far)
    draw_head(person)
    draw_worn_bag(person, in_front=True)
    _draw_arm_and_bag(person, near)
    return canvas.to_sprite()


def _draw_arm_and_bag(person: Dressing, side: str) -> None:
    draw_arm(person, side)
    draw_carried_bag(person, side)
