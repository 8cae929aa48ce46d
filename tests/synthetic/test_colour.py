"""Identity must not be readable from colour alone."""

import numpy as np
import pytest

from kd_search.synthetic import PRESETS
from kd_search.synthetic.people_writer import render_image
from kd_search.synthetic.schedule import plan_split

SEED = 0


@pytest.fixture(scope="module")
def boxes():
    """Mean colour, identity and frame of every box of a part of the demo's test split."""
    config = PRESETS["demo"]
    plans = plan_split(config, "test", np.random.default_rng(np.random.SeedSequence([SEED, 2, 1])))
    colors, ids, frames, cameras = [], [], [], []
    for plan in plans[:52]:
        scene = render_image(config, SEED, "test", plan)
        for person in scene.people:
            x0, y0, x1, y1 = person.box
            colors.append(scene.image[y0:y1, x0:x1].mean((0, 1)))
            ids.append(person.person_id)
            frames.append(plan.index)
            cameras.append(plan.camera_id)
    return np.array(colors), np.array(ids), np.array(frames), np.array(cameras)


def test_the_nearest_mean_colour_is_rarely_the_same_person(boxes):
    colors, ids, frames, _ = boxes
    hits = []
    for k in np.flatnonzero(ids >= 0):
        others = frames != frames[k]
        distance = ((colors[others] - colors[k]) ** 2).sum(1)
        hits.append(ids[others][distance.argmin()] == ids[k])
    assert len(hits) > 120
    assert np.mean(hits) < 0.25


def test_cameras_shift_the_colours_of_a_person_more_than_people_differ(boxes):
    colors, ids, _, cameras = boxes
    means = np.array([colors[(cameras == c) & (ids >= 0)].mean(0) for c in range(1, 5)])
    shift = max(np.linalg.norm(a - b) for a in means for b in means)
    spread = np.mean([colors[cameras == c].std(0).mean() for c in range(1, 5)])
    assert shift > spread
