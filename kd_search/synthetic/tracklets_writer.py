"""Writes the generated tracklet set in the layout and names of Market-1501, whole or not at all."""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Optional, Union

import numpy as np
from tqdm import tqdm

from kd_search.synthetic.appearance import Appearance, draw_appearance, draw_identities, draw_outfit
from kd_search.synthetic.generated_set import DESCRIPTION_FILE, is_generated, write_jpeg
from kd_search.synthetic.scene import Stage
from kd_search.synthetic.tracklets_config import TRACKLETS_VERSION, TrackletsConfig
from kd_search.synthetic.tracklets_scene import build_street, film_tracklet
from kd_search.synthetic.whole_folder import whole_folder
from kd_search.synthetic.workers import run_jobs
from kd_search.utils.files import write_json

_KIND = "tracklets"
_FOLDERS = ("bounding_box_train", "query", "bounding_box_test")
# Every random stream has a name; apart from those of the other generated sets of the same seed.
_STREAMS = {"identities": 200, "camera": 201, "tracklet": 202}
#: Frames between two pictures of a tracklet, and between the begins of two tracklets.
_STEP, _PAUSE = 25, 5000


class _Job(NamedTuple):
    config: TrackletsConfig
    seed: int
    #: 0 for a distractor, who is somebody else in each tracklet.
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
    """Write the set that follows from ``config`` and ``seed``; equal ones give equal bytes.

    ``root`` gets ``bounding_box_train``, ``query`` and ``bounding_box_test`` with crops named as
    those of Market-1501 (0001_c2s1_000025_00.jpg), and ``dataset.json``. Tracklets follow from the
    names. Of each test identity the first tracklet of each camera is in ``query``. It appears whole
    or not at all.

    Returns:
        True if it was written, False if exactly this set was already there.

    Raises:
        ValueError: ``root`` holds another set and ``overwrite`` is False, or something that is no
            generated set of tracklets, which is never touched.
    """
    root = Path(root).expanduser().absolute()
    config = config or TrackletsConfig()
    if seed < 0:
        raise ValueError(f"the seed must not be negative, got {seed}")
    description = {
        "kind": _KIND,
        "tracklets_version": TRACKLETS_VERSION,
        "seed": seed,
        "config": config.to_dict(),
    }
    jobs = list(_plan(config, seed))
    if is_generated(
        root,
        description,
        lambda: _is_whole(root, jobs),
        what="generated set of tracklets",
        overwrite=overwrite,
    ):
        return False
    with whole_folder(root) as partial:
        for folder in _FOLDERS:
            (partial / folder).mkdir(parents=True)
        jobs = [job._replace(folder=str(partial / job.folder)) for job in jobs]
        with tqdm(total=len(jobs), desc="filming tracklets", disable=not progress) as bar:
            for _ in run_jobs(_make_tracklet, jobs, workers):
                bar.update()
        write_json(partial / DESCRIPTION_FILE, description)
    return True


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
    return np.random.default_rng(np.random.SeedSequence([seed, _STREAMS[stream], *place]))


@lru_cache(maxsize=16)
def _street(config: TrackletsConfig, seed: int, camera_id: int) -> Stage:
    return build_street(config, camera_id, _rng(seed, "camera", camera_id))


@lru_cache(maxsize=4)
def _identities(config: TrackletsConfig, seed: int) -> tuple[Appearance, ...]:
    """Everybody with an identity; number i is entry i - 1, train before test."""
    counts = (config.num_train_ids, config.num_test_ids)
    train, test = (
        draw_identities(_rng(seed, "identities", i), count, config.ids_per_outfit)
        for i, count in enumerate(counts)
    )
    return train + test


def _names(job: _Job, rng: np.random.Generator) -> list[str]:
    """Files of a tracklet; the first thing that is drawn from its generator."""
    count = int(rng.integers(job.config.min_frames, job.config.max_frames + 1))
    begin = _PAUSE * job.number
    return [
        f"{job.person_id:04d}_c{job.camera_id}s1_{begin + _STEP * (t + 1):06d}_00.jpg"
        for t in range(count if job.person_id else 1)
    ]


def _make_tracklet(job: _Job) -> int:
    """Write the frames of a tracklet; depends on nothing but the job."""
    config = job.config
    rng = _rng(job.seed, "tracklet", job.person_id, job.camera_id, job.number)
    names = _names(job, rng)
    passer_by = draw_appearance(rng, draw_outfit(rng))
    if job.person_id:
        person = _identities(config, job.seed)[job.person_id - 1]
    else:
        person = draw_appearance(rng, draw_outfit(rng))
    stage = _street(config, job.seed, job.camera_id)
    frames = film_tracklet(stage, person, len(names), config, rng, passer_by)
    for name, frame in zip(names, frames):
        write_jpeg(Path(job.folder, name), frame, config.jpeg_quality)
    return len(names)


def _is_whole(root: Path, jobs: list[_Job]) -> bool:
    present = {
        folder: set(os.listdir(root / folder)) if (root / folder).is_dir() else set()
        for folder in _FOLDERS
    }
    return all(
        set(_names(job, _rng(job.seed, "tracklet", job.person_id, job.camera_id, job.number)))
        <= present[job.folder]
        for job in jobs
    )
