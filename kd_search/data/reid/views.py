"""Choice of the frames of an identity: several views in training, equal chunks in the test."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

#: Sources of the N frames of a training sample, see :func:`choose_views`.
SOURCES = ("tracklet", "cameras", "tracklets", "frames")


class FrameRef(NamedTuple):
    """A frame of a sample."""

    #: Index of the sample.
    sample: int
    #: Index of the frame in it.
    frame: int


class Candidate(NamedTuple):
    """A sample of an identity whose frames can be chosen."""

    #: Index of the sample.
    sample: int
    #: -1 where it is not known.
    camera_id: int
    tracklet_id: int
    num_frames: int


def chunk_frames(num_frames: int, count: int) -> list[int]:
    """First frame of each of ``count`` equal chunks of a tracklet, for the test.

    As in the code of VKD (Porrello et al., ECCV 2020), which takes 8: chunks have
    ``ceil(num_frames / count)`` frames, and the last frame stands for chunks beyond it, also in
    short tracklets.

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

    Chunks are as equal as possible, so no frame is repeated if there are enough. Shorter tracklets
    repeat every frame as evenly as ``count`` allows. The code of VKD draws from the chunks of
    :func:`chunk_frames` instead, padded with the last frame, which is then too frequent.

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
) -> list[FrameRef]:
    """N frames of one identity.

    Args:
        candidates: all samples of the identity.
        drawn: index of the one that the sampler drew; the first frame is one of it.
        count: N.
        source: of the other frames:

            - "tracklet": the same sample, a random frame of each of N chunks; time instead of
              viewpoint.
            - "cameras": as many cameras as there are, then as many tracklets; the views of the
              paper of VKD (Porrello et al., ECCV 2020). Each unknown camera counts as one.
            - "tracklets": as many tracklets as there are, of any camera; sampling of the code of
              VKD, but for its repeated frames.
            - "frames": any other frames, without regard to cameras and tracklets.
        rng: source of randomness.

    Returns:
        ``count`` frames. None is repeated before every frame of the identity was taken.

    Raises:
        ValueError: unknown source.
    """
    check_source(source)
    if source == "tracklet":
        own = candidates[drawn]
        return [FrameRef(own.sample, f) for f in random_chunk_frames(own.num_frames, count, rng)]
    if source == "frames":
        return _any_frames(candidates, drawn, count, rng)
    return _different_places(candidates, drawn, count, rng, source == "cameras")


def check_source(source: str) -> None:
    """Check ``REID_DATA.VIEWS.SOURCE``.

    Raises:
        ValueError: it is none of :data:`SOURCES`.
    """
    if source not in SOURCES:
        raise ValueError(f"REID_DATA.VIEWS.SOURCE {source!r} must be one of {', '.join(SOURCES)}")


def _any_frames(
    candidates: Sequence[Candidate], drawn: int, count: int, rng: np.random.Generator
) -> list[FrameRef]:
    every = [FrameRef(c.sample, frame) for c in candidates for frame in range(c.num_frames)]
    own = candidates[drawn]
    first = FrameRef(own.sample, int(rng.integers(own.num_frames)))
    rest = [every[i] for i in rng.permutation(len(every)).tolist()]
    rest.remove(first)
    cycle = [first, *rest]
    return [cycle[i % len(cycle)] for i in range(count)]


def _different_places(
    candidates: Sequence[Candidate],
    drawn: int,
    count: int,
    rng: np.random.Generator,
    with_cameras: bool,
) -> list[FrameRef]:
    """Frames of cameras, then tracklets, that are as different as possible.

    Each next frame is of a sample with an unused frame whose camera, tracklet and self were used
    least.
    """
    frames = [rng.permutation(c.num_frames).tolist() for c in candidates]
    lots = rng.random((count, len(candidates)))
    taken: Counter = Counter()
    cameras: Counter = Counter()
    tracklets: Counter = Counter()
    chosen: list[FrameRef] = []
    for turn in range(count):
        place = drawn
        if turn > 0:
            place = min(
                range(len(candidates)),
                key=lambda i: (
                    taken[i] // len(frames[i]),
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
        chosen.append(FrameRef(candidate.sample, frames[place][taken[place] % len(frames[place])]))
        taken[place] += 1
    return chosen


def _camera(candidate: Candidate) -> tuple[str, int]:
    if candidate.camera_id < 0:
        return "unknown", candidate.tracklet_id
    return "camera", candidate.camera_id
