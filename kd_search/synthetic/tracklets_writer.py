"""Writer of the generated tracklet set, in the layout of Market-1501."""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Optional, Union

import numpy as np

from kd_search.synthetic.appearance import Appearance, draw_identities, draw_stranger
from kd_search.synthetic.config import TRACKLETS_VERSION, TrackletsConfig
from kd_search.synthetic.generated_set import SPLITS, generate_set, make_rng, run_jobs, write_jpeg
from kd_search.synthetic.scene import Stage
from kd_search.synthetic.tracklets_scene import build_street, render_tracklet

_FOLDERS = ("bounding_box_train", "query", "bounding_box_test")
# Numbers of the random streams, which differ from those of the other sets of the same seed.
_STREAMS = {"identities": 200, "camera": 201, "tracklet": 202}
#: Frames between two images of a tracklet, and between the starts of two tracklets.
_STEP, _PAUSE = 25, 5000


class _Job(NamedTuple):
    config: TrackletsConfig
    seed: int
    #: 0 for a distractor, a different person in each tracklet.
    person_id: int
    camera_id: int
    #: Number of the tracklet of this identity in this camera.
    number: int
    folder: str


def generate_tracklets(
    root: Union[str, Path],
    config: Optional[TrackletsConfig] = None,
    seed: int = 0,
    workers: int = 1,
    overwrite: bool = False,
    progress: bool = True,
) -> bool:
    """Write the tracklet set of a config and seed; equal ones give equal bytes.

    ``root`` gets ``bounding_box_train``, ``query`` and ``bounding_box_test`` with crops named as
    those of Market-1501 (0001_c2s1_000025_00.jpg), and ``dataset.json``. The names determine the
    tracklets. The first tracklet of each test identity in each camera is in ``query``. The set is
    complete or absent.

    Returns:
        True if it was written, False if exactly this set exists.

    Raises:
        ValueError: see :func:`~kd_search.synthetic.generated_set.generate_set`.
    """
    chosen = config or TrackletsConfig()
    description = {
        "kind": "tracklets",
        "tracklets_version": TRACKLETS_VERSION,
        "seed": seed,
        "config": chosen.to_dict(),
    }

    def write(folder: Path) -> None:
        for name in _FOLDERS:
            (folder / name).mkdir()
        jobs = [job._replace(folder=str(folder / job.folder)) for job in _plan(chosen, seed)]
        for _ in run_jobs(_make_tracklet, jobs, workers, progress):
            pass

    return generate_set(
        root,
        description,
        is_whole=lambda root: _is_whole(root, _plan(chosen, seed)),
        write=write,
        overwrite=overwrite,
    )


def _plan(config: TrackletsConfig, seed: int) -> Iterator[_Job]:
    for index in range(config.num_train_ids + config.num_test_ids):
        for camera in range(1, config.num_cameras + 1):
            for number in range(config.tracklets_per_camera):
                is_train = index < config.num_train_ids
                folder = _FOLDERS[0] if is_train else _FOLDERS[1 if number == 0 else 2]
                yield _Job(config, seed, index + 1, camera, number, folder)
    for number in range(config.num_distractors):
        camera = 1 + number % config.num_cameras
        yield _Job(config, seed, 0, camera, number, _FOLDERS[2])


def _rng(seed: int, stream: str, *place: int) -> np.random.Generator:
    return make_rng(seed, _STREAMS[stream], *place)


@lru_cache(maxsize=16)
def _street(config: TrackletsConfig, seed: int, camera_id: int) -> Stage:
    return build_street(config, camera_id, _rng(seed, "camera", camera_id))


@lru_cache(maxsize=4)
def _identities(config: TrackletsConfig, seed: int) -> tuple[Appearance, ...]:
    """All people with an identity; number i is entry i - 1, train before test."""
    train, test = (
        draw_identities(_rng(seed, "identities", i), config.num_ids(split), config.ids_per_outfit)
        for i, split in enumerate(SPLITS)
    )
    return train + test


def _names(job: _Job) -> tuple[list[str], np.random.Generator]:
    """Files of a tracklet, and the generator after this first draw of it."""
    rng = _rng(job.seed, "tracklet", job.person_id, job.camera_id, job.number)
    count = int(rng.integers(job.config.min_frames, job.config.max_frames + 1))
    names = [
        f"{job.person_id:04d}_c{job.camera_id}s1_{_PAUSE * job.number + _STEP * (t + 1):06d}_00.jpg"
        for t in range(count if job.person_id else 1)
    ]
    return names, rng


def _make_tracklet(job: _Job) -> None:
    """Write the frames of a tracklet."""
    config = job.config
    names, rng = _names(job)
    passer_by = draw_stranger(rng)
    if job.person_id:
        person = _identities(config, job.seed)[job.person_id - 1]
    else:
        person = draw_stranger(rng)
    stage = _street(config, job.seed, job.camera_id)
    frames = render_tracklet(stage, person, len(names), config, rng, passer_by)
    for name, frame in zip(names, frames):
        write_jpeg(Path(job.folder, name), frame, config.jpeg_quality)


def _is_whole(root: Path, jobs: Iterator[_Job]) -> bool:
    present = {
        folder: set(os.listdir(root / folder)) if (root / folder).is_dir() else set()
        for folder in _FOLDERS
    }
    return all(set(_names(job)[0]) <= present[job.folder] for job in jobs)
