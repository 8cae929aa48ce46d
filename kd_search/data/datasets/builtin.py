"""Registers the data sets that kd_search knows by name. Importing it touches no file."""

import os

from kd_search.data.datasets.generated import register_generated
from kd_search.data.datasets.register import SplitFiles, register_split

_D2_DATASETS = "DETECTRON2_DATASETS"
_PRW_C6 = "KD_SEARCH_PRW_C6"


def _existing(name: str, hint: str, files: SplitFiles) -> SplitFiles:
    for path in (files.json_file, files.image_root, files.query_info):
        if path is not None and not os.path.exists(path):
            raise FileNotFoundError(f"{name}: {path} is missing; {hint} (see docs/datasets.md)")
    return files


def _under_datasets(name: str, folder: str, json_file: str, images: str, query: bool) -> SplitFiles:
    root = os.path.join(os.path.expanduser(os.getenv(_D2_DATASETS, "datasets")), folder)
    files = SplitFiles(
        json_file=os.path.join(root, "annotations", json_file),
        image_root=os.path.join(root, images),
        query_info=os.path.join(root, "query_info.txt") if query else None,
    )
    return _existing(name, f"set {_D2_DATASETS} to the folder that holds {folder}/", files)


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
    # The ids of the two PRW files are numbered apart: train_pid.json counts 0..482, test_pid.json
    # keeps the numbers of the release.
    register_split(
        "prw_train",
        lambda: _under_datasets("prw_train", "prw", "train_pid.json", "frames", False),
        id_space="prw relabelled",
    )
    register_split(
        "prw_test",
        lambda: _under_datasets("prw_test", "prw", "test_pid.json", "frames", True),
        id_space="prw",
    )
    register_split("prw_c6_train", lambda: _prw_c6("prw_c6_train", "train.json", False))
    register_split("prw_c6_test", lambda: _prw_c6("prw_c6_test", "test.json", True))
    images = os.path.join("Image", "SSM")
    register_split(
        "cuhk_sysu_train",
        lambda: _under_datasets("cuhk_sysu_train", "cuhk_sysu", "train.json", images, False),
    )
    register_split(
        "cuhk_sysu_test",
        lambda: _under_datasets("cuhk_sysu_test", "cuhk_sysu", "test.json", images, True),
    )
