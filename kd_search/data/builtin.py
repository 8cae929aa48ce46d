"""Registers the data sets that kd_search knows by name. Importing it touches no file."""

import os
from typing import Optional

from detectron2.data import DatasetCatalog

from kd_search.data.detection.coco128 import register_coco128
from kd_search.data.detection.ilsvrc import register_ilsvrc_det
from kd_search.data.detection.kitti import register_kitti
from kd_search.data.detection.objects import register_objects
from kd_search.data.person_search.cuhk_sysu import CUHKSYSUFiles
from kd_search.data.person_search.generated import register_generated
from kd_search.data.person_search.mot import MOTFiles
from kd_search.data.person_search.prw_mat import PRWFiles
from kd_search.data.person_search.register import SplitFiles, register_split
from kd_search.data.person_search.split import SplitSource

_D2_DATASETS = "DETECTRON2_DATASETS"
_PRW_C6 = "KD_SEARCH_PRW_C6"
_MOT = "KD_SEARCH_MOT"


def _existing(name: str, hint: str, files: SplitFiles) -> SplitFiles:
    for path in (files.json_file, files.image_root, files.query_info):
        if path is not None and not os.path.exists(path):
            raise FileNotFoundError(f"{name}: {path} is missing; {hint} (see docs/datasets.md)")
    return files


def _root(folder: str) -> str:
    return os.path.join(os.path.expanduser(os.getenv(_D2_DATASETS, "datasets")), folder)


def _prw(name: str, split: str, queries: Optional[str] = None) -> SplitSource:
    """The release's own files where they are, or else COCO-JSON."""
    root = _root("prw")
    query_info = os.path.join(root, queries) if queries else None
    if any(os.path.isfile(os.path.join(root, f"frame_{part}.mat")) for part in ("train", "test")):
        return PRWFiles(root, split, query_info)
    # The ids of the two JSON files are numbered apart: train_pid.json counts 0..482, test_pid.json
    # keeps the numbers of the release.
    files = SplitFiles(
        json_file=os.path.join(root, "annotations", f"{split}_pid.json"),
        image_root=os.path.join(root, "frames"),
        query_info=query_info,
        id_space="prw relabelled" if split == "train" else "prw",
    )
    return _existing(name, f"set {_D2_DATASETS} to the folder that holds prw/", files)


def _cuhk_sysu(name: str, split: str) -> SplitSource:
    """The release's own files where they are, or else COCO-JSON."""
    root = _root("cuhk_sysu")
    if os.path.isfile(os.path.join(root, "annotation", "Images.mat")):
        return CUHKSYSUFiles(root, split)
    files = SplitFiles(
        json_file=os.path.join(root, "annotations", f"{split}.json"),
        image_root=os.path.join(root, "Image", "SSM"),
        query_info=os.path.join(root, "query_info.txt") if split == "test" else None,
    )
    return _existing(name, f"set {_D2_DATASETS} to the folder that holds cuhk_sysu/", files)


def _mot(name: str, split: str) -> SplitSource:
    root = os.path.join(os.path.expanduser(os.getenv(_MOT, "")), split)
    if not os.getenv(_MOT) or not os.path.isdir(root):
        raise FileNotFoundError(
            f"{name}: set {_MOT} to the folder that holds {split}/ with its sequences (see "
            "docs/datasets.md)"
        )
    return MOTFiles(root, queries=split == "test")


def _prw_c6(name: str, json_file: str, query: bool) -> SplitFiles:
    hint = f"set {_PRW_C6} to the folder that holds split/ and frames/"
    if not os.getenv(_PRW_C6):
        raise FileNotFoundError(f"{name}: {hint} (see docs/datasets.md)")
    root = os.path.expanduser(os.environ[_PRW_C6])
    files = SplitFiles(
        json_file=os.path.join(root, "split", json_file),
        image_root=os.path.join(root, "frames"),
        query_info=os.path.join(root, "split", "query_info.txt") if query else None,
    )
    return _existing(name, hint, files)


def register_builtin() -> None:
    """Register every built-in set; runs once, when kd_search.data is imported."""
    register_generated()
    register_builtin_detection()
    register_split("prw_train", lambda: _prw("prw_train", "train"))
    register_split("prw_test", lambda: _prw("prw_test", "test", "query_info.txt"))
    mini = "prwmini_query_info.txt"
    register_split("prw_mini_test", lambda: _prw("prw_mini_test", "test", mini))
    register_split("prw_c6_train", lambda: _prw_c6("prw_c6_train", "train.json", False))
    register_split("prw_c6_test", lambda: _prw_c6("prw_c6_test", "test.json", True))
    register_split("cuhk_sysu_train", lambda: _cuhk_sysu("cuhk_sysu_train", "train"))
    register_split("cuhk_sysu_test", lambda: _cuhk_sysu("cuhk_sysu_test", "test"))
    register_split("mot_train", lambda: _mot("mot_train", "train"))
    register_split("mot_test", lambda: _mot("mot_test", "test"))


# Plain detection sets ---------------------------------------------------------------------------
# PASCAL VOC and COCO are registered by Detectron2 itself.


def register_builtin_detection() -> None:
    """Register the detection sets without identities; names that exist are left as they are."""
    if "kd_objects_train" not in DatasetCatalog.list():
        register_objects()
    if "kd_coco128" not in DatasetCatalog.list():
        register_coco128()
    for split in ("train", "val"):
        if f"kitti_{split}" not in DatasetCatalog.list():
            register_kitti(f"kitti_{split}", split)
        if f"ilsvrc_det_{split}" not in DatasetCatalog.list():
            register_ilsvrc_det(f"ilsvrc_det_{split}", split)
