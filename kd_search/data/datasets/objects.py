"""Registers the multi-class set that ``tools/generate_dataset.py --kind objects`` makes."""

import os
from typing import Any, Optional

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from kd_search.data.datasets.detection_sets import register_detection_set

#: In pairs that share their outline and differ in structure: what tells them apart is not colour,
#: size or direction, all of which are drawn alike for every class.
OBJECT_CLASSES = ("wheel", "button", "star", "flower", "fish", "leaf", "mug", "pot")

_ROOT_VARIABLE = "KD_SEARCH_OBJECTS"
_DEFAULT_ROOT = os.path.join("output", "objects")


def register_objects(root: Optional[str] = None, prefix: str = "kd_objects") -> None:
    """Register ``<prefix>_train`` and ``<prefix>_test``; again, with another root, replaces them.

    Args:
        root: folder that :func:`~kd_search.data.synthesis.objects_writer.generate_objects` has
            written. ``None`` looks up ``$KD_SEARCH_OBJECTS``, or else takes ``output/objects``, at
            first use.
        prefix: begin of the two names.
    """
    for split in ("train", "test"):
        name = f"{prefix}_{split}"
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_detection_set(name, _loader(name, split, root), OBJECT_CLASSES)


def _loader(name: str, split: str, root: Optional[str]):
    def load(strict: bool) -> list[dict[str, Any]]:
        folder = root or os.path.expanduser(os.getenv(_ROOT_VARIABLE, _DEFAULT_ROOT))
        json_file = os.path.join(folder, f"{split}.json")
        # dataset.json is checked too: without it the folder is something else.
        if not all(map(os.path.isfile, (os.path.join(folder, "dataset.json"), json_file))):
            raise FileNotFoundError(
                f"{name}: {folder} holds no generated set of things; make it with 'python "
                f"tools/generate_dataset.py --kind objects --output {folder}' or set "
                f"{_ROOT_VARIABLE}"
            )
        metadata = MetadataCatalog.get(name)
        # Metadata refuses to change a value, but the set may have been made anew elsewhere.
        for key in ("json_file", "image_root", "thing_dataset_id_to_contiguous_id"):
            if key in metadata.__dict__:
                delattr(metadata, key)
        metadata.set(json_file=json_file, image_root=os.path.join(folder, split, "images"))
        try:
            return load_coco_json(
                json_file, metadata.image_root, name, extra_annotation_keys=["visible"]
            )
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise ValueError(f"{json_file}: broken ({type(error).__name__}: {error})") from None

    return load
