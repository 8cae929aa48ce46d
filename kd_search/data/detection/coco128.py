"""Registers "kd_coco128": the first 128 images of COCO 2017's training set, in COCO's own files.

Enough real pictures to see whether something works at all; far too few for a result.
"""

import os
from typing import Any, Optional

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from kd_search.data.detection.register import register_detection_set

_ROOT_VARIABLE = "DETECTRON2_DATASETS"
_COCO = "coco_2017_train"


def register_coco128(root: Optional[str] = None, name: str = "kd_coco128") -> None:
    """Register the set; again, with another root, replaces it.

    Args:
        root: folder with ``annotations/instances_train2017.json`` and ``train2017/``. ``None``
            takes ``$DETECTRON2_DATASETS/coco128`` at first use.
        name: registered name.
    """
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)

    def load(strict: bool) -> list[dict[str, Any]]:
        folder = root or os.path.join(
            os.path.expanduser(os.getenv(_ROOT_VARIABLE, "datasets")), "coco128"
        )
        json_file = os.path.join(folder, "annotations", "instances_train2017.json")
        images = os.path.join(folder, "train2017")
        for path in (json_file, images):
            if not os.path.exists(path):
                raise FileNotFoundError(
                    f"{name}: {path} is missing; set {_ROOT_VARIABLE} to the folder that holds "
                    "coco128/ (see docs/datasets.md)"
                )
        metadata = MetadataCatalog.get(name)
        # Metadata refuses to change a value, but the set may have moved.
        for key in ("json_file", "image_root", "thing_dataset_id_to_contiguous_id"):
            if key in metadata.__dict__:
                delattr(metadata, key)
        metadata.set(json_file=json_file, image_root=images)
        try:
            return load_coco_json(json_file, images, name)
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise ValueError(f"{json_file}: broken ({type(error).__name__}: {error})") from None

    register_detection_set(name, load, list(MetadataCatalog.get(_COCO).thing_classes))
