"""Registers the embedded data set, which ``tools/generate_dataset.py`` makes from a seed."""

import os
from typing import Optional

from detectron2.data import DatasetCatalog

from kd_search.data.person_search.register import SplitFiles, register_split

_ROOT_VARIABLE = "KD_SEARCH_GENERATED"
_DEFAULT_ROOT = os.path.join("output", "generated")


def register_generated(root: Optional[str] = None, prefix: str = "kd_generated") -> None:
    """Register ``<prefix>_train`` and ``<prefix>_test``; again, with another root, replaces them.

    No file is touched before a set is used.

    Args:
        root: folder that :func:`~kd_search.synthetic.generate_dataset` has written. ``None``
            looks up ``$KD_SEARCH_GENERATED``, or else takes ``output/generated``, at first use.
        prefix: begin of the two names.
    """
    for split in ("train", "test"):
        name = f"{prefix}_{split}"
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
        # Train and test number their people apart but in one count, so ids can be compared.
        register_split(name, _locator(name, split, root), id_space="generated")


def _locator(name: str, split: str, root: Optional[str]):
    def locate() -> SplitFiles:
        folder = root or os.path.expanduser(os.getenv(_ROOT_VARIABLE, _DEFAULT_ROOT))
        # dataset.json is checked too: without it the folder is something else.
        if not os.path.isfile(os.path.join(folder, "dataset.json")):
            raise FileNotFoundError(
                f"{name}: {folder} holds no generated data set; make it with "
                f"'python tools/generate_dataset.py --output {folder}' or set {_ROOT_VARIABLE}"
            )
        return SplitFiles(
            json_file=os.path.join(folder, f"{split}.json"),
            image_root=os.path.join(folder, split, "images"),
            query_info=os.path.join(folder, "query_info.txt") if split == "test" else None,
        )

    return locate
