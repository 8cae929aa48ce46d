"""Which frames stand for an identity: several views in training, eight chunks in the test."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

#: Where the N frames of a training sample come from, see :func:`choose_views`.
SOURCES = ("tracklet", "cameras", "tracklets", "frames")


class View(NamedTuple):
    """A frame of a sample."""

    #: Index of the sample.
    sample: int
    #: Index of its frame.
    frame: int


class Candidate(NamedTuple):
    """A sample of the identity that views are chosen of."""

    #: Index of the sample.
    sample: int
    #: -1 where it is not known.
    camera_id: int
    tracklet_id: int
    num_frames: int


def chunk_frames(num_frames: int, count: int) -> list[int]:
    """First frame of each of ``count`` equal chunks of a tracklet, for the test.

    As in the code of VKD (Porrello et al., ECCV 2020), which takes 8: chunks have
    ``ceil(num_frames / count)`` frames, and beyond the last frame it is repeated, of short
    tracklets too.

    Args:
        num_frames: length of the tracklet, at least 1.
        count: frames wanted, at least 1.

    Returns:
        ``count`` indices, ascending.
    """
    length = max(-(-num_frames // count), 1)
    return [min(i * length, num_frames - 1) for i in range(count)]


def random_chunk_frames(num_frames: int, count: int, rng: np.random.Generator) -> list[int]:
    """A random frame of each of ``count`` chunks of a tracklet, for training.

    Chunks are as equal as can be, so no frame comes twice if there are enough. Tracklets that are
    shorter give every frame, as evenly as ``count`` allows. The code of VKD draws from the chunks
    of :func:`chunk_frames` instead, filled up with the last frame, which comes too often then.

    Returns:
        ``count`` indices, ascending.
    """
    if num_frames < count:
        return sorted(np.resize(rng.permutation(num_frames), count).tolist())
    edges = np.arange(count + 1) * num_frames // count
    return [int(rng.integers(low, high)) for low, high in zip(edges[:-1], edges[1:])]


def choose_views(
    candidates: Sequence[Candidate],
    drawn: int,
    count: int,
    source: str,
    rng: np.random.Generator,
) -> list[View]:
    """N frames of one identity.

    Args:
        candidates: all samples of the identity.
        drawn: place of the one that the sampler drew; the first view is a frame of it.
        count: N.
        source: where the others come from:

            - "tracklet": the same sample, a random frame of each of N chunks; time instead of
              viewpoint.
            - "cameras": as many cameras as there are, then as many tracklets; the views that the
              paper of VKD (Porrello et al., ECCV 2020) describes. Unknown cameras count as one
              each.
            - "tracklets": as many tracklets as there are, whatever their camera; what the code of
              VKD samples, though with repeated frames.
            - "frames": any other frames; neither cameras nor tracklets are known.
        rng: source of randomness.

    Returns:
        ``count`` views. None is repeated before every frame of the identity was taken.

    Raises:
        ValueError: unknown source.
    """
    if source not in SOURCES:
        raise ValueError(f"REID_DATA.VIEWS.SOURCE {source!r} must be one of {', '.join(SOURCES)}")
    if source == "tracklet":
        own = candidates[drawn]
        return [View(own.sample, f) for f in random_chunk_frames(own.num_frames, count, rng)]
    if source == "frames":
        return _any_frames(candidates, drawn, count, rng)
    with_cameras = source == "cameras"
    return _different_places(candidates, drawn, count, rng, with_cameras)


def _any_frames(candidates, drawn, count, rng) -> list[View]:
    every = [View(c.sample, frame) for c in candidates for frame in range(c.num_frames)]
    own = [View(candidates[drawn].sample, f) for f in range(candidates[drawn].num_frames)]
    first = own[int(rng.integers(len(own)))]
    rest = [every[i] for i in rng.permutation(len(every)).tolist()]
    rest.remove(first)
    cycle = [first, *rest]
    return [cycle[i % len(cycle)] for i in range(count)]


def _different_places(candidates, drawn, count, rng, with_cameras: bool) -> list[View]:
    """The next view is of the sample with an unused frame whose camera, tracklet and self were
    used least: that makes cameras, then tracklets, as different as they can be."""
    frames = [_Frames(c, rng) for c in candidates]
    lots = rng.random((count, len(candidates)))
    cameras: Counter = Counter()
    tracklets: Counter = Counter()
    views: list[View] = []
    for turn in range(count):
        if turn == 0:
            place = drawn
        else:
            place = min(
                range(len(candidates)),
                key=lambda i: (
                    frames[i].rounds,
                    # A first view of a camera counts; after that tracklets decide.
                    with_cameras and cameras[_camera(candidates[i])] > 0,
                    tracklets[candidates[i].tracklet_id],
                    with_cameras and cameras[_camera(candidates[i])],
                    lots[turn, i],
                ),
            )
        candidate = candidates[place]
        cameras[_camera(candidate)] += 1
        tracklets[candidate.tracklet_id] += 1
        views.append(View(candidate.sample, frames[place].take()))
    return views


def _camera(candidate: Candidate) -> tuple[str, int]:
    if candidate.camera_id < 0:
        return "unknown", candidate.tracklet_id
    return "camera", candidate.camera_id


class _Frames:
    """Frames of a sample in random order, over and over."""

    def __init__(self, candidate: Candidate, rng: np.random.Generator) -> None:
        self._order = rng.permutation(candidate.num_frames).tolist()
        self._taken = 0

    @property
    def rounds(self) -> int:
        """How often all frames were taken."""
        return self._taken // len(self._order)

    def take(self) -> int:
        frame = self._order[self._taken % len(self._order)]
        self._taken += 1
        return frame
