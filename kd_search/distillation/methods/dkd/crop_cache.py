"""Cache of a re-ID teacher's features of the annotated people of a training set."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from tqdm import tqdm

from kd_search.data import get_person_search_dicts
from kd_search.data.io.image import read_image
from kd_search.data.person_search.mapper import absolute_boxes
from kd_search.modeling.crops import cut_crops
from kd_search.utils.files import atomic_write, file_sha256, write_json

if TYPE_CHECKING:
    from kd_search.distillation.methods.dkd.reid_teacher import ReIDTeacher

logger = logging.getLogger(__name__)

FORMAT = "kd_search.crop_cache"
FORMAT_VERSION = 1
FEATURES = "features.npy"
INDEX = "index.json"

Records = list[dict[str, Any]]


class CropCache:
    """Features of every annotation of a training set, original and mirrored.

    The array is memory-mapped, and so shared by the ranks and workers of a machine.
    """

    def __init__(self, features: np.ndarray[Any, Any], first_row: dict[str, int]):
        """
        Args:
            features: (A, M, D) float32; M is 2 with mirrored crops and 1 without.
            first_row: image file to the row of its first annotation.
        """
        self.features = features
        self.first_row = first_row

    def read(self, file_name: str, annotations: torch.Tensor, mirror: bool) -> torch.Tensor:
        """(G, D) float32 features of annotations of an image.

        Args:
            file_name: of the image, as in the dataset dict.
            annotations: (G,) indices of its annotations.
            mirror: of the mirrored crops.
        """
        rows = self.first_row[file_name] + annotations.numpy()
        return torch.from_numpy(np.array(self.features[rows, int(mirror)]))


def cached_features(
    cfg: CfgNode, teacher: ReIDTeacher, teacher_cfg: CfgNode, weights_sha256: str
) -> CropCache:
    """The cache in ``DISTILLATION.REID_TEACHER.CACHE_DIR``, computed if there is none.

    A cache is specific to a teacher (weights and config), a training set (names and sizes of files,
    boxes) and the way to cut crops. A corrupt or modified file is computed again. A collective
    call.

    Args:
        cfg: the student's config.
        teacher: computes the features.
        teacher_cfg: its config.
        weights_sha256: of its weights file.
    """
    records = get_person_search_dicts(cfg.DATASETS.TRAIN)[0]
    key = _key(teacher, teacher_cfg, weights_sha256, cfg.INPUT.FORMAT, records)
    folder = os.path.join(cfg.DISTILLATION.REID_TEACHER.CACHE_DIR, key[:16])
    cache = None
    if comm.is_main_process():
        cache, problem = _open(folder, key, records, verify=True)
        if cache is None:
            logger.info("Computing the re-ID teacher's features of %s: %s", folder, problem)
            _build(folder, key, teacher, records, cfg)
    comm.synchronize()
    if cache is None:
        cache, problem = _open(folder, key, records, verify=False)
        if cache is None:
            raise RuntimeError(f"crop cache {folder} cannot be read after writing it: {problem}")
    return cache


def _key(
    teacher: ReIDTeacher, teacher_cfg: CfgNode, weights: str, image_format: str, records: Records
) -> str:
    settings = {
        "version": FORMAT_VERSION,
        "weights": weights,
        # Device and path of the weights do not change the features.
        "network": {**teacher_cfg.MODEL, "DEVICE": "", "WEIGHTS": ""},
        "size": list(teacher.input_size),
        "mirror": teacher.mirror,
        "channels": [image_format, teacher.flips_channels],
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for record in records:
        digest.update(os.path.basename(record["file_name"]).encode())
        # To notice a replaced image; a digest of all images would take minutes.
        digest.update(str(os.path.getsize(record["file_name"])).encode())
        digest.update(absolute_boxes(record["annotations"]).tobytes())
    return digest.hexdigest()


def _open(folder: str, key: str, records: Records, *, verify: bool) -> tuple[CropCache | None, str]:
    """(cache, ""), or (``None``, reason)."""
    index_file, path = os.path.join(folder, INDEX), os.path.join(folder, FEATURES)
    if not os.path.isfile(index_file):
        return None, "there is no cache for this teacher and training set"
    try:
        with open(index_file) as f:
            index = json.load(f)
        if (index["format"], index["key"]) != (FORMAT, key):
            return None, f"{index_file} is of another teacher or training set"
        if verify and file_sha256(path) != index["sha256"]:
            return None, f"{path} was modified"
        features = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, f"{folder} is corrupt ({error})"
    # Not stored in the index: the files of a data set that was moved have other paths.
    rows, count = {}, 0
    for record in records:
        rows[record["file_name"]] = count
        count += len(record["annotations"])
    return CropCache(features, rows), ""


def _build(folder: str, key: str, teacher: ReIDTeacher, records: Records, cfg: CfgNode) -> None:
    """Compute all features; the index, which makes the cache valid, is written last."""
    os.makedirs(folder, exist_ok=True)
    index, path = os.path.join(folder, INDEX), os.path.join(folder, FEATURES)
    if os.path.exists(index):
        os.remove(index)
    dim = teacher.features(torch.zeros(0, 3, *teacher.input_size)).shape[1]
    shape = (sum(len(record["annotations"]) for record in records), 1 + teacher.mirror, dim)
    header = {"shape": shape, "fortran_order": False, "descr": "<f4"}
    with atomic_write(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for record in tqdm(records, desc="re-ID teacher", unit="image", disable=None):
            boxes = torch.as_tensor(absolute_boxes(record["annotations"])).float()
            if len(boxes) == 0:
                continue
            pixels = read_image(record["file_name"], cfg.INPUT.FORMAT, cfg.INPUT.MAX_IMAGE_PIXELS)
            image = torch.as_tensor(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
            features = [
                teacher.features(cut_crops(image, boxes, teacher.input_size, mirror=bool(mirror)))
                for mirror in range(shape[1])
            ]
            file.write(torch.stack(features, dim=1).cpu().numpy().astype("<f4").tobytes())
    write_json(index, {"format": FORMAT, "key": key, "sha256": file_sha256(path)})
