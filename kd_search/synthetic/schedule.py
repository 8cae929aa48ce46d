"""Plan of the identities in each image, and choice of the queries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kd_search.synthetic.config import GeneratorConfig

#: Least numbers of images and cameras of a training identity.
MIN_TRAIN_IMAGES = 4
MIN_CAMERAS = 2
#: Least number of other gallery frames with the person of a query.
MIN_MATCHES = 2


@dataclass(frozen=True)
class ImagePlan:
    """Content of image ``index`` of a split; cameras count from 1."""

    index: int
    camera_id: int
    person_ids: tuple[int, ...]
    num_unlabelled: int


@dataclass(frozen=True)
class Sighting:
    """One labelled box: ``box`` is XYXY in pixels."""

    person_id: int
    frame: str
    camera_id: int
    box: tuple[int, int, int, int]
    visible: float


def split_ids(config: GeneratorConfig, split: str) -> range:
    """Original ids of a split: train from 1, test after them."""
    if split == "train":
        return range(1, config.num_train_ids + 1)
    start = config.num_train_ids + 1
    return range(start, start + config.num_test_ids)


def plan_split(
    config: GeneratorConfig, split: str, rng: np.random.Generator
) -> tuple[ImagePlan, ...]:
    """Plan all images of a split, with nearly equal counts of people in every camera."""
    ids = np.array(split_ids(config, split))
    seen = np.zeros((len(ids), config.num_cameras), int)
    scene = config.scene
    plans = []
    for index in range(config.num_images(split)):
        camera = index % config.num_cameras
        count = int(rng.integers(scene.min_labelled, scene.max_labelled + 1))
        # Ordered by the counts in this camera, then in all cameras, then at random.
        order = np.lexsort((rng.random(len(ids)), seen.sum(1), seen[:, camera]))
        chosen = np.sort(order[:count])
        seen[chosen, camera] += 1
        limit = scene.max_people - len(chosen)
        unlabelled = min(limit, int(rng.poisson(scene.mean_unlabelled)))
        people = tuple(int(i) for i in ids[chosen])
        plans.append(ImagePlan(index, camera + 1, people, unlabelled))
    return tuple(plans)


def choose_queries(
    sightings: Sequence[Sighting], queries_per_id: int, rng: np.random.Generator
) -> list[Sighting]:
    """Up to ``queries_per_id`` boxes per identity, from different cameras where possible.

    Each has matches in at least :data:`MIN_MATCHES` other frames, one of another camera.
    """
    queries = []
    for _, group in sorted(_by_person(sightings).items()):
        # Well visible people first, ties at random.
        clear = sorted(group, key=lambda s: (s.visible < 0.8, rng.random()))
        picked: list[Sighting] = []
        for other_camera_only in (True, False):
            for sighting in clear:
                if len(picked) == queries_per_id or sighting in picked:
                    continue
                if other_camera_only and sighting.camera_id in {p.camera_id for p in picked}:
                    continue
                if _can_be_found(sighting, group):
                    picked.append(sighting)
        queries.extend(picked)
    return queries


def _by_person(sightings: Sequence[Sighting]) -> Mapping[int, list[Sighting]]:
    groups: dict[int, list[Sighting]] = {}
    for sighting in sightings:
        groups.setdefault(sighting.person_id, []).append(sighting)
    return groups


def _can_be_found(query: Sighting, group: Sequence[Sighting]) -> bool:
    others = [s for s in group if s.frame != query.frame]
    return len(others) >= MIN_MATCHES and any(s.camera_id != query.camera_id for s in others)


def planned_sightings(plans: Sequence[ImagePlan]) -> list[Sighting]:
    """Sightings of a plan without occlusion; the boxes are empty."""
    return [
        Sighting(person_id, str(plan.index), plan.camera_id, (0, 0, 0, 0), 1.0)
        for plan in plans
        for person_id in plan.person_ids
    ]


def check_split(config: GeneratorConfig, split: str, sightings: Sequence[Sighting]) -> None:
    """Check that each identity is in enough images; raise ``ValueError`` with one line if not."""
    groups = _by_person(sightings)
    for person_id in split_ids(config, split):
        group = groups.get(person_id, [])
        cameras = {sighting.camera_id for sighting in group}
        if split == "train":
            enough = len(group) >= MIN_TRAIN_IMAGES and len(cameras) >= MIN_CAMERAS
        else:
            enough = any(_can_be_found(sighting, group) for sighting in group)
        if not enough:
            raise ValueError(
                f"identity {person_id} of the {split} split is in only {len(group)} images of "
                f"{len(cameras)} cameras: raise num_{split}_images or lower num_{split}_ids"
            )
