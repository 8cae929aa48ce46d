"""Registration of the sets that ``kd-search generate`` makes from a seed."""

import os
from functools import partial
from typing import Optional

from kd_search.data.catalog import unregister
from kd_search.data.detection.objects import OBJECT_CLASSES, read_objects_json
from kd_search.data.detection.register import load_coco, register_detection_set
from kd_search.data.person_search.register import SplitFiles, register_split
from kd_search.data.records import Record
from kd_search.data.reid.market1501 import load_market1501
from kd_search.data.reid.register import register_reid_set
from kd_search.data.reid.samples import LoadedReID

#: Environment variable and default folder of each kind of set.
GENERATED_ROOTS = {
    "people": ("KD_SEARCH_GENERATED", os.path.join("output", "generated")),
    "objects": ("KD_SEARCH_OBJECTS", os.path.join("output", "objects")),
    "tracklets": ("KD_SEARCH_TRACKLETS", os.path.join("output", "tracklets")),
}


def generated_root(kind: str) -> str:
    """Folder of a kind of set: its environment variable, or the default."""
    variable, default = GENERATED_ROOTS[kind]
    return os.path.expanduser(os.getenv(variable, default))


def register_generated(root: Optional[str] = None, prefix: str = "kd_generated") -> None:
    """Register ``<prefix>_train`` and ``<prefix>_test``, replacing earlier sets of these names.

    Args:
        root: folder that :func:`~kd_search.synthetic.generate_dataset` wrote. ``None`` looks up
            ``$KD_SEARCH_GENERATED`` on first use; its default is ``output/generated``.
        prefix: of the two names.
    """
    for split in ("train", "test"):
        name = f"{prefix}_{split}"
        unregister(name)
        # Train and test people are different but have one numbering: their ids can be compared.
        register_split(name, partial(_people, name, split, root), id_space="generated")


def register_objects(root: Optional[str] = None, prefix: str = "kd_objects") -> None:
    """Register the multi-class set; as :func:`register_generated`, with ``$KD_SEARCH_OBJECTS``.

    Args:
        root: folder that :func:`~kd_search.synthetic.generate_objects` wrote.
        prefix: of the two names.
    """
    for split in ("train", "test"):
        name = f"{prefix}_{split}"
        unregister(name)
        register_detection_set(name, partial(_objects, name, split, root), OBJECT_CLASSES)


def register_tracklets(root: Optional[str] = None, prefix: str = "kd_tracklets") -> None:
    """Register the tracklets; as :func:`register_generated`, with ``$KD_SEARCH_TRACKLETS``.

    Args:
        root: folder that :func:`~kd_search.synthetic.generate_tracklets` wrote.
        prefix: of the two names.
    """
    for split in ("train", "test"):
        name = f"{prefix}_{split}"
        register_reid_set(name, partial(_tracklets, name, split, root), replace=True)


def _find(name: str, kind: str, root: Optional[str]) -> str:
    folder = root or generated_root(kind)
    # Other folders have no dataset.json.
    if not os.path.isfile(os.path.join(folder, "dataset.json")):
        raise FileNotFoundError(
            f"{name}: {folder} holds no generated set; make it with 'kd-search generate --kind "
            f"{kind} --output {folder}' or set {GENERATED_ROOTS[kind][0]}"
        )
    return folder


def _people(name: str, split: str, root: Optional[str]) -> SplitFiles:
    folder = _find(name, "people", root)
    return SplitFiles(
        json_file=os.path.join(folder, f"{split}.json"),
        image_root=os.path.join(folder, split, "images"),
        query_info=os.path.join(folder, "query_info.txt") if split == "test" else None,
    )


def _objects(name: str, split: str, root: Optional[str], strict: bool) -> list[Record]:
    folder = _find(name, "objects", root)
    json_file = os.path.join(folder, f"{split}.json")
    read_objects_json(json_file)
    images = os.path.join(folder, split, "images")
    return load_coco(name, json_file, images, extra_annotation_keys=["visible"])


def _tracklets(name: str, split: str, root: Optional[str]) -> LoadedReID:
    return load_market1501(_find(name, "tracklets", root), split, tracklets=True)
