"""One scene: what is seen of each person, and that it is drawn well enough to be told apart."""

import numpy as np
import pytest

from kd_search.synthetic import SceneConfig
from kd_search.synthetic.appearance import draw_appearance, draw_identities, draw_outfit
from kd_search.synthetic.person import draw_person
from kd_search.synthetic.scene import build_stage, render_scene
from kd_search.synthetic.skeleton import Pose

CONFIG = SceneConfig()


@pytest.fixture(scope="module")
def stage():
    return build_stage(1, CONFIG, np.random.default_rng(3))


@pytest.fixture(scope="module")
def crowd():
    return draw_identities(np.random.default_rng(1), 12, 3)


def _scenes(stage, crowd, count):
    for k in range(count):
        rng = np.random.default_rng(k)
        chosen = rng.choice(len(crowd), 5, replace=False)
        yield render_scene(stage, [(int(i), crowd[i]) for i in chosen], CONFIG, rng)


def test_boxes_are_the_extents_of_what_is_seen(stage, crowd):
    for scene in _scenes(stage, crowd, 6):
        assert scene.image.shape == (CONFIG.height, CONFIG.width, 3)
        assert scene.people
        for person in scene.people:
            x0, y0, x1, y1 = person.box
            assert 0 <= x0 < x1 <= CONFIG.width and 0 <= y0 < y1 <= CONFIG.height
            outside = person.mask.copy()
            outside[y0:y1, x0:x1] = False
            assert not outside.any()
            # Every side of the box touches the person.
            inside = person.mask[y0:y1, x0:x1]
            assert inside[0].any() and inside[-1].any()
            assert inside[:, 0].any() and inside[:, -1].any()


def test_no_pixel_shows_two_people(stage, crowd):
    overlapping = 0
    for scene in _scenes(stage, crowd, 8):
        owners = np.sum([person.mask for person in scene.people], axis=0)
        assert owners.max() == 1
        overlapping += any(person.visible < 0.9 for person in scene.people)
    assert overlapping >= 2  # the test is about people who hide each other


def test_nobody_is_kept_who_can_hardly_be_seen(stage, crowd):
    for scene in _scenes(stage, crowd, 8):
        for person in scene.people:
            assert CONFIG.min_visible <= person.visible <= 1
            assert person.mask.sum() > 0


def test_scenes_vary_in_scale_occlusion_and_truncation(stage, crowd):
    people = [p for scene in _scenes(stage, crowd, 25) for p in scene.people]
    heights = [p.box[3] - p.box[1] for p in people if p.visible > 0.98]
    assert min(heights) < 60 and max(heights) > 105
    assert 0.05 < np.mean([p.visible < 0.8 for p in people]) < 0.6
    cut = [p for p in people if p.box[0] == 0 or p.box[2] == CONFIG.width]
    assert cut and len(cut) < len(people) / 3


def test_a_person_stands_out_from_the_empty_street(stage, crowd):
    # Mean difference to the same view without people, where somebody is and where nobody is.
    empty = render_scene(stage, [], CONFIG, np.random.default_rng(0)).image.astype(float)
    for scene in _scenes(stage, crowd, 4):
        difference = np.abs(scene.image - empty).mean(2)
        people = np.any([p.mask for p in scene.people], axis=0)
        assert difference[people].mean() > 2 * difference[~people].mean()


def test_cameras_differ_in_background_and_colour():
    images = []
    for camera_id in range(1, 5):
        stage = build_stage(camera_id, CONFIG, np.random.default_rng(camera_id))
        images.append(render_scene(stage, [], CONFIG, np.random.default_rng(0)).image.astype(float))
    for i in range(4):
        for j in range(i):
            assert np.abs(images[i] - images[j]).mean() > 20
    casts = [image.mean((0, 1)) / image.mean() for image in images]
    assert max(np.abs(a - b).max() for a in casts for b in casts) > 0.25


@pytest.mark.parametrize("size", [(640, 384), (400, 192), (200, 240)])
def test_other_image_sizes(size, crowd):
    width, height = size
    config = SceneConfig(
        width=width, height=height, min_person_height=height // 5, max_person_height=height // 2
    )
    stage = build_stage(2, config, np.random.default_rng(2))
    scene = render_scene(stage, list(enumerate(crowd[:3])), config, np.random.default_rng(0))
    assert scene.image.shape == (height, width, 3)
    tall = [p.box[3] - p.box[1] for p in scene.people if p.visible > 0.98]
    assert tall and max(tall) <= 1.25 * config.max_person_height  # hats and hair reach higher


def test_people_look_different_from_front_back_and_side():
    rng = np.random.default_rng(5)
    person = draw_appearance(rng, draw_outfit(rng))
    views = [
        draw_person(person, Pose(yaw, phase=1.0, stride=0.8), 100).color
        for yaw in (0.0, np.pi, np.pi / 2)
    ]
    for i in range(3):
        for j in range(i):
            assert np.abs(views[i] - views[j]).mean() > 2


def test_legs_swing_with_the_phase():
    rng = np.random.default_rng(5)
    person = draw_appearance(rng, draw_outfit(rng))

    def stance(phase):
        alpha = draw_person(person, Pose(np.pi / 2, phase, 1.0), 100).alpha
        columns = np.flatnonzero((alpha[-30:] > 0.5).any(0))
        return columns[-1] - columns[0]

    assert stance(np.pi / 2) > stance(0.0) + 10


def test_people_of_one_outfit_share_colours_but_not_structure():
    people = draw_identities(np.random.default_rng(0), 12, 3)
    for start in range(0, 12, 3):
        group = people[start : start + 3]
        assert len({p.upper_cloth.color for p in group}) == 1
        assert len({p.lower_cloth.color for p in group}) == 1
        for i in range(3):
            for j in range(i):
                same = zip(group[i].structure(), group[j].structure())
                assert sum(a != b for a, b in same) >= 3
    assert len({p.structure() for p in people}) == 12
