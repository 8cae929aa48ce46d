"""Training inputs that keep their original image, for re-ID teachers."""

import numpy as np
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from kd_search.data import PersonSearchDatasetMapper


def crops_input(folder, person_ids, seed: int = 0) -> dict:
    """One mirrored, scaled training input of 96x128 with a person per id, side by side."""
    noise = np.random.default_rng(seed).integers(0, 256, (192, 256, 3), dtype=np.uint8)
    path = folder / f"scene{seed}_{len(person_ids)}.png"
    Image.fromarray(noise).save(path)
    people = [
        {
            **{"bbox": [10 + 60 * i, 20, 56 + 60 * i, 160], "bbox_mode": BoxMode.XYXY_ABS},
            **{"category_id": 0, "person_id": person_id},
        }
        for i, person_id in enumerate(person_ids)
    ]
    record = {
        **{"file_name": str(path), "image_id": seed, "height": 192, "width": 256},
        "annotations": people,
    }
    transforms = [T.ResizeTransform(192, 256, 96, 128), T.HFlipTransform(128)]
    return PersonSearchDatasetMapper(True, augmentations=transforms, with_original=True)(record)
