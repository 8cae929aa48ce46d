"""Base of the generators: description and folder of a set, worker processes, output files."""

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar, Union

import cv2
import numpy as np
from tqdm import tqdm

from kd_search.data.io.files import whole_folder
from kd_search.synthetic.config import GeneratorConfig, ObjectsConfig
from kd_search.utils.files import write_json

#: Kind, version of the generator, seed and config of the set in a folder.
DESCRIPTION_FILE = "dataset.json"
SPLITS = ("train", "test")

Job = TypeVar("Job")
Result = TypeVar("Result")


def read_description(root: Union[str, Path]) -> Optional[dict[str, Any]]:
    """``dataset.json`` of a data set, or None where ``root`` holds no complete one."""
    try:
        return json.loads(Path(root, DESCRIPTION_FILE).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def generate_set(
    root: Union[str, Path],
    description: dict[str, Any],
    *,
    is_whole: Callable[[Path], bool],
    write: Callable[[Path], None],
    overwrite: bool,
) -> bool:
    """Write a set into a folder that is complete or absent, unless it exists.

    Args:
        root: folder of the set.
        description: ``kind`` (absent for the person search set), version, ``seed``, ``config``.
        is_whole: whether a folder has all files of the set.
        write: writes all files but the description into a folder.
        overwrite: replace another set of the same kind.

    Returns:
        True if it was written, False if exactly this set exists.

    Raises:
        ValueError: the seed is negative, ``root`` holds another set and ``overwrite`` is False, or
            ``root`` holds something else, which is never removed.
    """
    root = Path(root).expanduser().absolute()
    if description["seed"] < 0:
        raise ValueError(f"the seed must not be negative, got {description['seed']}")
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        flaw = _difference(root, description) or (None if is_whole(root) else "lacks images")
        if flaw is None:
            return False
        if not overwrite:
            raise ValueError(
                f"the data set in {root} {flaw}: choose another folder, or overwrite it "
                "(--overwrite)"
            )
    with whole_folder(root) as partial:
        write(partial)
        write_json(partial / DESCRIPTION_FILE, description)
    return True


def _difference(root: Path, description: dict[str, Any]) -> Optional[str]:
    """Keys in which the set in ``root`` differs; ``None`` if there are none."""
    found = read_description(root)
    # As it is read from a file: tuples become lists.
    wanted = json.loads(json.dumps(description))
    if (
        not isinstance(found, dict)
        or found.get("kind") != wanted.get("kind")
        or not wanted.keys() <= found.keys()
    ):
        what = f"set of {wanted['kind']}" if "kind" in wanted else "data set"
        raise ValueError(f"{root} exists and is no generated {what}: choose another folder")
    keys = [key for key in wanted if found[key] != wanted[key]]
    return f"has another {' and '.join(keys)}" if keys else None


def make_rng(*entropy: int) -> np.random.Generator:
    """Random numbers of a stream, which is named by integers."""
    return np.random.default_rng(np.random.SeedSequence(list(entropy)))


def run_jobs(
    make: Callable[[Job], Result], jobs: Sequence[Job], workers: int, progress: bool
) -> Iterator[Result]:
    """Results of ``make`` for every job, in their order, with a progress bar.

    Args:
        make: function of a module.
        jobs: its arguments.
        workers: processes; 1 or less runs in this one.
        progress: show the bar.
    """
    with tqdm(total=len(jobs), desc="generating", disable=not progress) as bar:
        for result in _map(make, jobs, workers):
            bar.update()
            yield result


def _map(make: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    if workers <= 1:
        yield from map(make, jobs)
        return
    # "spawn": a fork of a process that already runs torch or OpenCV threads may hang. An executor
    # and not a Pool, which waits forever for a worker that was killed.
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
    )
    try:
        yield from pool.map(make, jobs, chunksize=4)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    cv2.setNumThreads(1)
    # Ctrl-C signals the whole process group; only the parent handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Workers of an executor whose process was killed would wait for jobs forever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def write_jpeg(path: Path, image: np.ndarray, quality: int) -> None:
    """Write an image.

    Args:
        path: file to write.
        image: (H, W, 3) uint8, RGB.
        quality: of JPEG, 0 to 100.
    """
    ok, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise RuntimeError(f"could not encode {path.name}")
    path.write_bytes(encoded.tobytes())


def has_coco_files(root: Path, config: Union[GeneratorConfig, ObjectsConfig]) -> bool:
    """Whether a folder has the images and annotation files of both splits."""
    return all(
        len(list((root / split / "images").glob("*.jpg"))) == config.num_images(split)
        and (root / f"{split}.json").is_file()
        for split in SPLITS
    )


def write_coco(path: Path, records: list[dict[str, Any]], categories: Sequence[str]) -> None:
    """Write COCO-JSON.

    Args:
        path: file to write.
        records: entry of each image, with its annotations under ``annotations``.
        categories: names, with ids from 1.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record in records:
        images.append({k: v for k, v in record.items() if k != "annotations"})
        for item in record["annotations"]:
            annotations.append({"id": len(annotations) + 1, "image_id": record["id"], **item})
    names = [{"id": number, "name": name} for number, name in enumerate(categories, 1)]
    write_json(path, {"images": images, "annotations": annotations, "categories": names})


def box_fields(
    box: tuple[int, int, int, int], category: int, visible: float, **more: Any
) -> dict[str, Any]:
    """Fields of an annotation.

    Args:
        box: XYXY, pixels.
        category: id from 1.
        visible: visible fraction, 0 to 1.
        more: fields before ``visible``.
    """
    x0, y0, x1, y1 = box
    width, height = x1 - x0, y1 - y0
    return {
        "bbox": [x0, y0, width, height],
        "area": width * height,
        "category_id": category,
        "iscrowd": 0,
        **more,
        "visible": round(visible, 3),
    }
