"""Writer of the generated person search set: images, COCO-JSON and queries."""

from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import numpy as np

from kd_search.synthetic.appearance import Appearance, draw_identities, draw_stranger
from kd_search.synthetic.config import GENERATOR_VERSION, GeneratorConfig
from kd_search.synthetic.generated_set import (
    SPLITS,
    box_fields,
    generate_set,
    has_coco_files,
    make_rng,
    run_jobs,
    write_coco,
    write_jpeg,
)
from kd_search.synthetic.scene import Scene, Stage, build_stage, render_scene
from kd_search.synthetic.schedule import (
    ImagePlan,
    Sighting,
    check_split,
    choose_queries,
    plan_split,
    planned_sightings,
)

# Every random stream has a number, so that images can be rendered alone and in any order.
_STREAMS = {"identities": 0, "camera": 1, "schedule": 2, "image": 3, "queries": 4}


class _Job(NamedTuple):
    config: GeneratorConfig
    seed: int
    split: str
    plan: ImagePlan
    folder: str


def generate_dataset(
    root: Union[str, Path],
    config: Optional[GeneratorConfig] = None,
    seed: int = 0,
    workers: int = 1,
    overwrite: bool = False,
    progress: bool = True,
) -> bool:
    """Write the person search set of a config and seed; equal ones give equal bytes.

    ``root`` gets ``train/images/*.jpg``, ``test/images/*.jpg``, ``train.json`` and ``test.json``
    (COCO-JSON with ``person_id``, ``camera_id`` and ``frame_id``), ``query_info.txt`` (as in PRW:
    "person_id x y width height frame") and ``dataset.json``. It is complete or absent.

    Returns:
        True if it was written, False if exactly this set exists.

    Raises:
        ValueError: see :func:`~kd_search.synthetic.generated_set.generate_set`; or the config has
            more identities than its images can show.
    """
    chosen = config or GeneratorConfig()
    description = {"generator_version": GENERATOR_VERSION, "seed": seed, "config": chosen.to_dict()}
    return generate_set(
        root,
        description,
        is_whole=lambda root: has_coco_files(root, chosen) and (root / "query_info.txt").is_file(),
        write=partial(_write, chosen, seed, workers, progress),
        overwrite=overwrite,
    )


def render_image(config: GeneratorConfig, seed: int, split: str, plan: ImagePlan) -> Scene:
    """Render one image; depends on nothing but the arguments."""
    rng = _rng(seed, "image", SPLITS.index(split), plan.index)
    known = identities(config, seed)
    people = [(person_id, known[person_id - 1]) for person_id in plan.person_ids]
    people += [(-1, draw_stranger(rng)) for _ in range(plan.num_unlabelled)]
    return render_scene(_stage(config, seed, plan.camera_id), people, config.scene, rng)


@lru_cache(maxsize=4)
def identities(config: GeneratorConfig, seed: int) -> tuple[Appearance, ...]:
    """All people with an identity; original id i is entry i - 1, train before test."""
    train, test = (
        draw_identities(_rng(seed, "identities", i), config.num_ids(split), config.ids_per_outfit)
        for i, split in enumerate(SPLITS)
    )
    return train + test


def _rng(seed: int, stream: str, *place: int) -> np.random.Generator:
    return make_rng(seed, _STREAMS[stream], *place)


@lru_cache(maxsize=16)
def _stage(config: GeneratorConfig, seed: int, camera_id: int) -> Stage:
    return build_stage(camera_id, config.scene, _rng(seed, "camera", camera_id))


def _write(config: GeneratorConfig, seed: int, workers: int, progress: bool, folder: Path) -> None:
    plans = {s: plan_split(config, s, _rng(seed, "schedule", SPLITS.index(s))) for s in SPLITS}
    for split in SPLITS:  # impossible plans fail before the rendering
        check_split(config, split, planned_sightings(plans[split]))
        (folder / split / "images").mkdir(parents=True)
    jobs = [_Job(config, seed, s, plan, str(folder)) for s in SPLITS for plan in plans[s]]
    records: dict[str, list] = {split: [] for split in SPLITS}
    for job, record in zip(jobs, run_jobs(_make_image, jobs, workers, progress)):
        records[job.split].append(record)
    for split in SPLITS:
        sightings = _sightings(records[split])
        check_split(config, split, sightings)
        if split == "test":
            queries = choose_queries(sightings, config.queries_per_id, _rng(seed, "queries"))
            (folder / "query_info.txt").write_text("".join(map(_query_line, queries)))
        write_coco(folder / f"{split}.json", records[split], ("person",))


def _make_image(job: _Job) -> dict[str, Any]:
    """Write an image; return its COCO-JSON entry."""
    config, plan = job.config, job.plan
    scene = render_image(config, job.seed, job.split, plan)
    # Frame numbers of the test split follow those of the train split.
    frame_id = plan.index + 1 + (config.num_train_images if job.split == "test" else 0)
    name = f"c{plan.camera_id}s1_{frame_id:06d}.jpg"
    write_jpeg(Path(job.folder, job.split, "images", name), scene.image, config.scene.jpeg_quality)
    people = sorted(scene.people, key=lambda p: (p.person_id < 0, p.person_id, p.box))
    return {
        "id": plan.index + 1,
        "file_name": name,
        "width": config.scene.width,
        "height": config.scene.height,
        "camera_id": plan.camera_id,
        "frame_id": frame_id,
        "annotations": [
            box_fields(person.box, 1, person.visible, person_id=person.person_id)
            for person in people
        ],
    }


def _sightings(records: list[dict[str, Any]]) -> list[Sighting]:
    found = []
    for record in records:
        frame, camera_id = Path(record["file_name"]).stem, record["camera_id"]
        for person in record["annotations"]:
            if person["person_id"] >= 0:
                x, y, w, h = person["bbox"]
                box = (x, y, x + w, y + h)
                found.append(
                    Sighting(person["person_id"], frame, camera_id, box, person["visible"])
                )
    return found


def _query_line(query: Sighting) -> str:
    x0, y0, x1, y1 = query.box
    return f"{query.person_id} {x0} {y0} {x1 - x0} {y1 - y0} {query.frame}\n"
