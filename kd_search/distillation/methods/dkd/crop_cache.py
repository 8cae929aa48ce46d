"""A re-ID teacher's features of the annotated people, computed once and read in every epoch."""

import hashlib
import json
import logging
import os
from typing import Any, Optional

import numpy as np
import torch
from detectron2.utils import comm
from tqdm import tqdm

from kd_search.data import get_person_search_dicts
from kd_search.data.io.image import read_image
from kd_search.data.person_search.mapper import absolute_boxes
from kd_search.distillation.methods.dkd.crops import cut_crops
from kd_search.utils.files import atomic_write, file_sha256, write_json

logger = logging.getLogger(__name__)

FORMAT = "kd_search.crop_cache"
FORMAT_VERSION = 1
FEATURES = "features.npy"
INDEX = "index.json"


class CropCache:
    """Features of every annotation of a training set, as it is and mirrored.

    The array is memory-mapped: ranks and workers of one machine share it.
    """

    def __init__(self, features: np.ndarray, first_row: dict[str, int]):
        """
        Args:
            features: (A, M, D) float32; M is 2 with mirrored crops and 1 without.
            first_row: image file to the row of its first annotation.
        """
        self.features = features
        self.first_row = first_row

    def read(self, file_name: str, annotations: torch.Tensor, mirror: bool) -> torch.Tensor:
        """Features of annotations of an image.

        Args:
            file_name: of the image, as in the dataset dict.
            annotations: (G,) places among its annotations.
            mirror: of the mirrored crops.

        Returns:
            (G, D) float32.
        """
        rows = self.first_row[file_name] + annotations.numpy()
        return torch.from_numpy(np.array(self.features[rows, int(mirror)]))


def cached_features(cfg, teacher, teacher_cfg, weights_sha256: str) -> CropCache:
    """The cache in ``DISTILLATION.REID_TEACHER.CACHE_DIR``, made first where there is none.

    A cache belongs to one teacher (weights and config), one training set (names and sizes of
    files, boxes) and one way to cut crops; under any other it is not found. A corrupt or changed
    file is computed again.

    Args:
        cfg: the student's config.
        teacher: a :class:`ReIDTeacher`.
        teacher_cfg: its config.
        weights_sha256: of its weights file.
    """
    dicts = get_person_search_dicts(cfg.DATASETS.TRAIN)[0]
    key = _key(teacher, teacher_cfg, weights_sha256, cfg.INPUT.FORMAT, dicts)
    folder = os.path.join(cfg.DISTILLATION.REID_TEACHER.CACHE_DIR, key[:16])
    cache = None
    if comm.is_main_process():
        cache, problem = _open(folder, key, dicts, verify=True)
        if cache is None:
            logger.info("Computing the re-ID teacher's features of %s: %s", folder, problem)
            _build(folder, key, teacher, dicts, cfg.INPUT.FORMAT, cfg.INPUT.MAX_IMAGE_PIXELS)
    comm.synchronize()
    if cache is None:
        cache, problem = _open(folder, key, dicts, verify=False)
        if cache is None:
            raise RuntimeError(f"crop cache {folder} cannot be read after it was made: {problem}")
    return cache


def _key(teacher, teacher_cfg, weights: str, image_format: str, dicts: list[dict[str, Any]]) -> str:
    digest = hashlib.sha256()
    settings = {
        "version": FORMAT_VERSION,
        "weights": weights,
        # Device and place of the weights do not change what it computes.
        "network": {**teacher_cfg.MODEL, "DEVICE": "", "WEIGHTS": ""},
        "size": list(teacher.input_size),
        "mirror": teacher.mirror,
        "channels": [image_format, teacher.flips_channels],
    }
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for record in dicts:
        digest.update(os.path.basename(record["file_name"]).encode())
        # An image that was replaced under its name; reading all of them would take minutes.
        digest.update(str(os.path.getsize(record["file_name"])).encode())
        digest.update(absolute_boxes(record["annotations"]).tobytes())
    return digest.hexdigest()


def _open(folder, key: str, dicts, *, verify: bool) -> tuple[Optional[CropCache], str]:
    """The cache, or ``None`` and why there is none."""
    index_file, path = os.path.join(folder, INDEX), os.path.join(folder, FEATURES)
    if not os.path.isfile(index_file):
        return None, "there is none for this teacher and training set"
    try:
        with open(index_file) as f:
            index = json.load(f)
        if (index["format"], index["key"]) != (FORMAT, key):
            return None, f"{index_file} is of another teacher or training set"
        if verify and file_sha256(path) != index["sha256"]:
            return None, f"{path} is not as it was written"
        features = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, f"{folder} is torn ({error})"
    return CropCache(features, _first_rows(dicts)), ""


def _first_rows(dicts: list[dict[str, Any]]) -> dict[str, int]:
    """Image file to the row of its first annotation.

    Not kept with the features: a data set that was moved has its images elsewhere, in this order.
    """
    rows, count = {}, 0
    for record in dicts:
        rows[record["file_name"]] = count
        count += len(record["annotations"])
    return rows


def _build(folder, key, teacher, dicts, image_format, max_pixels) -> None:
    """Compute all features; the index, which makes the cache valid, is written last."""
    os.makedirs(folder, exist_ok=True)
    index, path = os.path.join(folder, INDEX), os.path.join(folder, FEATURES)
    if os.path.exists(index):
        os.remove(index)
    count = sum(len(record["annotations"]) for record in dicts)
    shape = (
        count,
        1 + teacher.mirror,
        teacher.features(torch.zeros(0, 3, *teacher.input_size)).shape[1],
    )
    header = {"shape": shape, "fortran_order": False, "descr": "<f4"}
    with atomic_write(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for record in tqdm(dicts, desc="re-ID teacher", unit="image", disable=None):
            boxes = torch.as_tensor(absolute_boxes(record["annotations"])).float()
            if len(boxes) == 0:
                continue
            image = read_image(record["file_name"], image_format, max_pixels)
            image = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
            features = [
                teacher.features(cut_crops(image, boxes, teacher.input_size, mirror=bool(mirror)))
                for mirror in range(shape[1])
            ]
            file.write(torch.stack(features, dim=1).cpu().numpy().astype("<f4").tobytes())
    write_json(index, {"format": FORMAT, "key": key, "sha256": file_sha256(path)})
