"""Writes the generated multi-class detection set: images and COCO-JSON, whole or not at all."""

from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
from tqdm import tqdm

from kd_search.data.detection.objects import OBJECT_CLASSES
from kd_search.synthetic.generated_set import DESCRIPTION_FILE, is_generated, write_jpeg
from kd_search.synthetic.objects_config import OBJECTS_VERSION, ObjectsConfig
from kd_search.synthetic.objects_scene import ObjectScene, render_objects
from kd_search.synthetic.whole_folder import whole_folder
from kd_search.synthetic.workers import run_jobs
from kd_search.synthetic.writer import SPLITS
from kd_search.utils.files import write_json

_KIND = "objects"
#: Keeps the random numbers apart from those of the street scenes of the same seed.
_STREAM = 100


def generate_objects(
    root: Union[str, Path],
    config: Optional[ObjectsConfig] = None,
    seed: int = 0,
    workers: int = 1,
    overwrite: bool = False,
    progress: bool = True,
) -> bool:
    """Write the set that follows from ``config`` and ``seed``; equal ones give equal bytes.

    ``root`` gets ``train/images/*.jpg``, ``test/images/*.jpg``, ``train.json`` and ``test.json``
    (COCO-JSON; boxes enclose what can be seen) and ``dataset.json``. It appears whole or not at
    all.

    Returns:
        True if it was written, False if exactly this set was already there.

    Raises:
        ValueError: ``root`` holds another set and ``overwrite`` is False, or something that is no
            generated set of things, which is never touched.
    """
    root = Path(root).expanduser().absolute()
    config = config or ObjectsConfig()
    if seed < 0:
        raise ValueError(f"the seed must not be negative, got {seed}")
    description = {
        "kind": _KIND,
        "objects_version": OBJECTS_VERSION,
        "seed": seed,
        "config": config.to_dict(),
    }
    if is_generated(
        root,
        description,
        lambda: _is_whole(root, config),
        what="generated set of things",
        overwrite=overwrite,
    ):
        return False
    with whole_folder(root) as partial:
        _write_all(partial, config, seed, workers, progress, description)
    return True


def render_object_image(config: ObjectsConfig, seed: int, split: str, index: int) -> ObjectScene:
    """Render image ``index`` (from 0) of a split; depends on nothing but the arguments."""
    sequence = np.random.SeedSequence([seed, _STREAM, SPLITS.index(split), index])
    return render_objects(config, np.random.default_rng(sequence))


def _is_whole(root: Path, config: ObjectsConfig) -> bool:
    return all(
        len(list((root / split / "images").glob("*.jpg"))) == config.num_images(split)
        and (root / f"{split}.json").is_file()
        for split in SPLITS
    )


def _write_all(folder: Path, config, seed: int, workers: int, progress: bool, description) -> None:
    for split in SPLITS:
        (folder / split / "images").mkdir(parents=True)
    jobs = [
        (config, seed, split, index, str(folder))
        for split in SPLITS
        for index in range(config.num_images(split))
    ]
    records: dict[str, list] = {split: [] for split in SPLITS}
    with tqdm(total=len(jobs), desc="generating images", unit="img", disable=not progress) as bar:
        for job, record in zip(jobs, run_jobs(_make_image, jobs, workers)):
            records[job[2]].append(record)
            bar.update()
    for split in SPLITS:
        write_json(folder / f"{split}.json", _to_coco(records[split]))
    write_json(folder / DESCRIPTION_FILE, description)


def _make_image(job: tuple[ObjectsConfig, int, str, int, str]) -> dict[str, Any]:
    config, seed, split, index, folder = job
    scene = render_object_image(config, seed, split, index)
    name = f"{split}_{index + 1:06d}.jpg"
    write_jpeg(Path(folder, split, "images", name), scene.image, config.jpeg_quality)
    return {
        "id": index + 1,
        "file_name": name,
        "width": config.width,
        "height": config.height,
        "objects": [
            {
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "category_id": item.category + 1,
                "iscrowd": 0,
                "visible": round(item.visible, 3),
            }
            for item in scene.objects
            for x0, y0, x1, y1 in (item.box,)
        ],
    }


def _to_coco(records: list) -> dict[str, Any]:
    images, annotations = [], []
    for record in records:
        images.append({k: v for k, v in record.items() if k != "objects"})
        for item in record["objects"]:
            annotations.append({"id": len(annotations) + 1, "image_id": record["id"], **item})
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(OBJECT_CLASSES, 1)],
    }
