"""Writes a generated data set to disk: images, COCO-JSON, queries; whole or not at all."""

from functools import lru_cache
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
from tqdm import tqdm

from kd_search.synthetic.appearance import Appearance, draw_appearance, draw_identities, draw_outfit
from kd_search.synthetic.config import GENERATOR_VERSION, GeneratorConfig
from kd_search.synthetic.generated_set import DESCRIPTION_FILE, is_generated, write_jpeg
from kd_search.synthetic.scene import Scene, Stage, build_stage, render_scene
from kd_search.synthetic.schedule import (
    ImagePlan,
    Sighting,
    check_split,
    choose_queries,
    plan_split,
    planned_sightings,
)
from kd_search.synthetic.whole_folder import whole_folder
from kd_search.synthetic.workers import run_jobs
from kd_search.utils.files import write_json

SPLITS = ("train", "test")
# Every random stream has a name, so that images can be made alone and in any order.
_STREAMS = {"identities": 0, "camera": 1, "schedule": 2, "image": 3, "queries": 4}


def _rng(seed: int, stream: str, *place: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, _STREAMS[stream], *place]))


# One image -------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _stage(config: GeneratorConfig, seed: int, camera_id: int) -> Stage:
    return build_stage(camera_id, config.scene, _rng(seed, "camera", camera_id))


@lru_cache(maxsize=4)
def identities(config: GeneratorConfig, seed: int) -> tuple[Appearance, ...]:
    """Everybody with an identity; original id i is entry i - 1, train before test."""
    train = draw_identities(
        _rng(seed, "identities", 0), config.num_train_ids, config.ids_per_outfit
    )
    test = draw_identities(_rng(seed, "identities", 1), config.num_test_ids, config.ids_per_outfit)
    return train + test


def render_image(config: GeneratorConfig, seed: int, split: str, plan: ImagePlan) -> Scene:
    """Render one image; depends on nothing but the arguments."""
    rng = _rng(seed, "image", SPLITS.index(split), plan.index)
    everybody = identities(config, seed)
    people = [(person_id, everybody[person_id - 1]) for person_id in plan.person_ids]
    for _ in range(plan.num_unlabelled):
        people.append((-1, draw_appearance(rng, draw_outfit(rng))))
    return render_scene(_stage(config, seed, plan.camera_id), people, config.scene, rng)


def _record(config: GeneratorConfig, split: str, plan: ImagePlan, scene: Scene) -> dict[str, Any]:
    """COCO-JSON image entry, with its annotations under the key ``people``."""
    # Frame numbers of the test split go on where those of the train split end.
    frame_id = plan.index + 1 + (config.num_train_images if split == "test" else 0)
    people = []
    for person in sorted(scene.people, key=lambda p: (p.person_id < 0, p.person_id, p.box)):
        x0, y0, x1, y1 = person.box
        people.append(
            {
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "category_id": 1,
                "iscrowd": 0,
                "person_id": person.person_id,
                "visible": round(person.visible, 3),
            }
        )
    return {
        "id": plan.index + 1,
        "file_name": f"c{plan.camera_id}s1_{frame_id:06d}.jpg",
        "width": config.scene.width,
        "height": config.scene.height,
        "camera_id": plan.camera_id,
        "frame_id": frame_id,
        "people": people,
    }


def _make_image(job: tuple[GeneratorConfig, int, str, ImagePlan, str]) -> dict[str, Any]:
    config, seed, split, plan, folder = job
    scene = render_image(config, seed, split, plan)
    record = _record(config, split, plan, scene)
    path = Path(folder, split, "images", record["file_name"])
    write_jpeg(path, scene.image, config.scene.jpeg_quality)
    return record


# The data set ----------------------------------------------------------------------------------


def generate_dataset(
    root: Union[str, Path],
    config: Optional[GeneratorConfig] = None,
    seed: int = 0,
    workers: int = 1,
    overwrite: bool = False,
    progress: bool = True,
) -> bool:
    """Write the data set that follows from ``config`` and ``seed``; equal ones give equal bytes.

    ``root`` gets ``train/images/*.jpg``, ``test/images/*.jpg``, ``train.json`` and ``test.json``
    (COCO-JSON with ``person_id``, ``camera_id`` and ``frame_id``), ``query_info.txt`` (as in PRW:
    "person_id x y width height frame") and ``dataset.json``. It appears whole or not at all.

    Returns:
        True if it was written, False if exactly this data set was already there.

    Raises:
        ValueError: ``root`` holds another data set and ``overwrite`` is False; or something that
            is no generated data set, which is never touched; or the config asks for more
            identities than its images can show.
    """
    root = Path(root).expanduser().absolute()
    config = config or GeneratorConfig()
    if seed < 0:
        raise ValueError(f"the seed must not be negative, got {seed}")
    description = {"generator_version": GENERATOR_VERSION, "seed": seed, "config": config.to_dict()}
    if is_generated(
        root,
        description,
        lambda: _is_whole(root, config),
        what="generated data set",
        overwrite=overwrite,
    ):
        return False
    with whole_folder(root) as partial:
        _write_all(partial, config, seed, workers, progress, description)
    return True


def _is_whole(root: Path, config: GeneratorConfig) -> bool:
    return (
        all(
            len(list((root / split / "images").glob("*.jpg"))) == config.num_images(split)
            and (root / f"{split}.json").is_file()
            for split in SPLITS
        )
        and (root / "query_info.txt").is_file()
    )


def _write_all(folder: Path, config, seed: int, workers: int, progress: bool, description) -> None:
    plans = {s: plan_split(config, s, _rng(seed, "schedule", SPLITS.index(s))) for s in SPLITS}
    for split in SPLITS:  # what cannot work even if everybody is seen fails before the drawing
        check_split(config, split, planned_sightings(plans[split]))
    for split in SPLITS:
        (folder / split / "images").mkdir(parents=True)
    jobs = [(config, seed, s, plan, str(folder)) for s in SPLITS for plan in plans[s]]
    bar = tqdm(total=len(jobs), desc="generating images", unit="img", disable=not progress)
    records: dict[str, list] = {split: [] for split in SPLITS}
    with bar:
        for job, record in zip(jobs, run_jobs(_make_image, jobs, workers)):
            records[job[2]].append(record)
            bar.update()
    for split in SPLITS:
        sightings = _sightings(records[split])
        check_split(config, split, sightings)
        if split == "test":
            queries = choose_queries(sightings, config.queries_per_id, _rng(seed, "queries"))
            _write_queries(folder / "query_info.txt", queries)
        write_json(folder / f"{split}.json", _to_coco(records[split]))
    write_json(folder / DESCRIPTION_FILE, description)


def _sightings(records: list) -> list[Sighting]:
    found = []
    for record in records:
        for person in record["people"]:
            if person["person_id"] >= 0:
                x, y, w, h = person["bbox"]
                frame = Path(record["file_name"]).stem
                box = (x, y, x + w, y + h)
                found.append(
                    Sighting(
                        person["person_id"], frame, record["camera_id"], box, person["visible"]
                    )
                )
    return found


def _to_coco(records: list) -> dict[str, Any]:
    images, annotations = [], []
    for record in records:
        images.append({k: v for k, v in record.items() if k != "people"})
        for person in record["people"]:
            annotations.append({"id": len(annotations) + 1, "image_id": record["id"], **person})
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}],
    }


def _write_queries(path: Path, queries: list) -> None:
    lines = []
    for query in queries:
        x0, y0, x1, y1 = query.box
        lines.append(f"{query.person_id} {x0} {y0} {x1 - x0} {y1 - y0} {query.frame}\n")
    path.write_text("".join(lines))
