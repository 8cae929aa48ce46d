from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_search.data.reid.views import Candidate, choose_views, chunk_frames, random_chunk_frames

FEW = settings(max_examples=150)


@st.composite
def identities(draw):
    """Samples of one identity: camera (-1 unknown), tracklet, frames."""
    count = draw(st.integers(1, 8))
    cameras = draw(st.lists(st.integers(-1, 3), min_size=count, max_size=count))
    lengths = draw(st.lists(st.integers(1, 5), min_size=count, max_size=count))
    tracklets = draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))
    # A tracklet is in one camera.
    cameras = [cameras[tracklets.index(t)] for t in tracklets]
    return [Candidate(10 + i, cameras[i], tracklets[i], lengths[i]) for i in range(count)]


numbers = st.integers(1, 12)


def _views(candidates, count, source, data):
    drawn = data.draw(st.integers(0, len(candidates) - 1))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    return choose_views(candidates, drawn, count, source, rng), candidates[drawn]


def _place(candidate):
    """The camera, or the tracklet where the camera is unknown."""
    if candidate.camera_id < 0:
        return "tracklet", candidate.tracklet_id
    return "camera", candidate.camera_id


@given(identities(), numbers, st.data())
@FEW
def test_views_are_of_as_many_cameras_and_tracklets_as_there_are(candidates, count, data):
    views, drawn = _views(candidates, count, "cameras", data)
    by_sample = {c.sample: c for c in candidates}
    assert len(views) == count and views[0].sample == drawn.sample
    places = {_place(c) for c in candidates}
    assert len({_place(by_sample[v.sample]) for v in views}) == min(count, len(places))
    tracklets = {c.tracklet_id for c in candidates}
    assert len({by_sample[v.sample].tracklet_id for v in views}) == min(count, len(tracklets))


@given(identities(), numbers, st.data())
@FEW
def test_without_cameras_views_are_of_as_many_tracklets_as_there_are(candidates, count, data):
    views, drawn = _views(candidates, count, "tracklets", data)
    by_sample = {c.sample: c for c in candidates}
    assert len(views) == count and views[0].sample == drawn.sample
    tracklets = {c.tracklet_id for c in candidates}
    assert len({by_sample[v.sample].tracklet_id for v in views}) == min(count, len(tracklets))


@given(identities(), numbers, st.sampled_from(["cameras", "tracklets", "frames"]), st.data())
@FEW
def test_no_frame_comes_again_before_all_were_there(candidates, count, source, data):
    views, _ = _views(candidates, count, source, data)
    frames = {(c.sample, f) for c in candidates for f in range(c.num_frames)}
    counts = Counter((v.sample, v.frame) for v in views)
    assert set(counts) <= frames and len(views) == count
    assert max(counts.values()) <= -(-count // len(frames))
    assert len(counts) == min(count, len(frames))


@given(identities(), numbers, st.data())
@FEW
def test_views_of_one_tracklet_are_of_the_drawn_one_in_order(candidates, count, data):
    views, drawn = _views(candidates, count, "tracklet", data)
    assert {v.sample for v in views} == {drawn.sample} and len(views) == count
    frames = [v.frame for v in views]
    assert frames == sorted(frames) and frames[-1] < drawn.num_frames
    assert len(set(frames)) == min(count, drawn.num_frames)


@given(identities(), numbers, st.integers(0, 99), st.sampled_from(["cameras", "frames"]))
@FEW
def test_views_follow_from_the_seed(candidates, count, seed, source):
    again = [
        choose_views(candidates, 0, count, source, np.random.default_rng(seed)) for _ in range(2)
    ]
    assert again[0] == again[1]


def test_frames_of_the_identity_come_from_anywhere():
    # One sample of many frames outweighs nine of one: no tracklet is asked for.
    candidates = [Candidate(0, 1, 0, 91)] + [Candidate(i, 1, i, 1) for i in range(1, 10)]
    rng = np.random.default_rng(0)
    chosen = [v for _ in range(50) for v in choose_views(candidates, 1, 11, "frames", rng)[1:]]
    assert 0.85 < np.mean([v.sample == 0 for v in chosen]) < 0.97


def test_cameras_are_chosen_before_tracklets():
    candidates = [Candidate(i, 1, i, 9) for i in range(6)] + [Candidate(6, 2, 6, 9)]
    for seed in range(20):
        views = choose_views(candidates, 0, 2, "cameras", np.random.default_rng(seed))
        assert [v.sample for v in views] == [0, 6]
    seen = {
        choose_views(candidates, 0, 2, "tracklets", np.random.default_rng(seed))[1].sample
        for seed in range(60)
    }
    assert seen == set(range(1, 7))


def test_unknown_cameras_are_as_good_as_one_each():
    # Two unknown ones, and 6, are new to who has seen 5; the second tracklet in 5 is not.
    cameras = [5, -1, -1, 5, 6]
    candidates = [Candidate(i, camera, i, 9) for i, camera in enumerate(cameras)]
    for seed in range(20):
        views = choose_views(candidates, 0, 4, "cameras", np.random.default_rng(seed))
        assert {v.sample for v in views} == {0, 1, 2, 4}


def test_an_unknown_source_is_refused():
    with pytest.raises(ValueError, match="REID_DATA.VIEWS.SOURCE 'moon' .*tracklet, cameras"):
        choose_views([Candidate(0, 1, 0, 1)], 0, 1, "moon", np.random.default_rng(0))


def _chunks_by_strips(num_frames, count):
    """The same by writing the strips down, as the authors of VKD describe them."""
    length = 1
    while length * count < num_frames:
        length += 1
    strip = list(range(num_frames))
    while len(strip) < length * count:
        strip.append(num_frames - 1)
    return [strip[i * length] for i in range(count)]


@given(st.integers(1, 300), st.integers(1, 20))
@settings(max_examples=300)
def test_chunks_are_those_of_the_written_out_strips(num_frames, count):
    assert chunk_frames(num_frames, count) == _chunks_by_strips(num_frames, count)


def test_eight_chunks_of_some_lengths():
    assert chunk_frames(3, 8) == [0, 1, 2, 2, 2, 2, 2, 2]
    assert chunk_frames(8, 8) == list(range(8))
    assert chunk_frames(9, 8) == [0, 2, 4, 6, 8, 8, 8, 8]
    assert chunk_frames(80, 8) == list(range(0, 80, 10))


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 999))
@FEW
def test_random_chunks_are_one_frame_of_each_part(num_frames, count, seed):
    frames = random_chunk_frames(num_frames, count, np.random.default_rng(seed))
    assert len(frames) == count and frames == sorted(frames)
    if num_frames >= count:
        edges = [i * num_frames // count for i in range(count + 1)]
        assert all(low <= f < high for f, low, high in zip(frames, edges, edges[1:]))
    else:
        counts = Counter(frames)
        assert set(counts) == set(range(num_frames))
        assert max(counts.values()) - min(counts.values()) <= 1
