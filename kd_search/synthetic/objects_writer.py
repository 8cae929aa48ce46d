"""Writer of the generated multi-class detection set: images and COCO-JSON."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

from kd_search.data.detection.objects import OBJECT_CLASSES
from kd_search.synthetic.config import OBJECTS_VERSION, ObjectsConfig
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
from kd_search.synthetic.objects_scene import ObjectScene, render_objects

#: Random stream, which differs from those of the other sets of the same seed.
_STREAM = 100


class _Job(NamedTuple):
    config: ObjectsConfig
    seed: int
    split: str
    number: int
    folder: str


def generate_objects(
    root: Union[str, Path],
    config: Optional[ObjectsConfig] = None,
    seed: int = 0,
    workers: int = 1,
    overwrite: bool = False,
    progress: bool = True,
) -> bool:
    """Write the multi-class set of a config and seed; equal ones give equal bytes.

    ``root`` gets ``train/images/*.jpg``, ``test/images/*.jpg``, ``train.json`` and ``test.json``
    (COCO-JSON; boxes enclose the visible parts) and ``dataset.json``. It is complete or absent.

    Returns:
        True if it was written, False if exactly this set exists.

    Raises:
        ValueError: see :func:`~kd_search.synthetic.generated_set.generate_set`.
    """
    chosen = config or ObjectsConfig()
    description = {
        "kind": "objects",
        "objects_version": OBJECTS_VERSION,
        "seed": seed,
        "config": chosen.to_dict(),
    }
    return generate_set(
        root,
        description,
        is_whole=lambda root: has_coco_files(root, chosen),
        write=partial(_write, chosen, seed, workers, progress),
        overwrite=overwrite,
    )


def render_object_image(config: ObjectsConfig, seed: int, split: str, index: int) -> ObjectScene:
    """Render image ``index`` (from 0) of a split; depends on nothing but the arguments."""
    return render_objects(config, make_rng(seed, _STREAM, SPLITS.index(split), index))


def _write(config: ObjectsConfig, seed: int, workers: int, progress: bool, folder: Path) -> None:
    for split in SPLITS:
        (folder / split / "images").mkdir(parents=True)
    jobs = [
        _Job(config, seed, split, index, str(folder))
        for split in SPLITS
        for index in range(config.num_images(split))
    ]
    records: dict[str, list] = {split: [] for split in SPLITS}
    for job, record in zip(jobs, run_jobs(_make_image, jobs, workers, progress)):
        records[job.split].append(record)
    for split in SPLITS:
        write_coco(folder / f"{split}.json", records[split], OBJECT_CLASSES)


def _make_image(job: _Job) -> dict[str, Any]:
    """Write an image; return its COCO-JSON entry."""
    config = job.config
    scene = render_object_image(config, job.seed, job.split, job.number)
    name = f"{job.split}_{job.number + 1:06d}.jpg"
    write_jpeg(Path(job.folder, job.split, "images", name), scene.image, config.jpeg_quality)
    return {
        "id": job.number + 1,
        "file_name": name,
        "width": config.width,
        "height": config.height,
        "annotations": [
            box_fields(item.box, item.category + 1, item.visible) for item in scene.objects
        ],
    }
