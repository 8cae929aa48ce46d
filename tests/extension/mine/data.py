"""A data set: coloured people on noise, in COCO-JSON below the folder $MINE_DATA."""

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from kd_search.data import register_person_search_coco

WIDTH, HEIGHT, PEOPLE = 128, 96, 4
COLOURS = np.random.default_rng(0).integers(0, 256, (PEOPLE, 3))


def folder() -> Path:
    return Path(os.environ.get("MINE_DATA", "mine_data"))


def write() -> None:
    """Write 6 training images, 4 test images and the queries of the test set."""
    rng = np.random.default_rng(1)
    for split, count in (("train", 6), ("test", 4)):
        images, annotations, queries = [], [], []
        (folder() / split).mkdir(parents=True)
        for number in range(count):
            name = f"{split}_{number}.png"
            picture = rng.integers(0, 80, (HEIGHT, WIDTH, 3))
            images.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
            for place, person in enumerate(rng.permutation(PEOPLE)[:3].tolist()):
                x, y, w, h = 4 + 40 * place, 8 + 4 * place, 32, 72
                picture[y : y + h, x : x + w] = COLOURS[person]
                box = {"id": len(annotations) + 1, "image_id": number, "category_id": 1}
                box.update(bbox=[x, y, w, h], area=w * h, iscrowd=0, person_id=person + 1)
                annotations.append(box)
                if split == "test" and number == 0:
                    queries.append(f"{person + 1} {x} {y} {w} {h} {Path(name).stem}")
            Image.fromarray(picture.astype(np.uint8)).save(folder() / split / name)
        categories = [{"id": 1, "name": "person"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder() / f"{split}.json").write_text(json.dumps(content))
        if queries:
            (folder() / "queries.txt").write_text("\n".join(queries) + "\n")


def register() -> None:
    for split, queries in (("train", None), ("test", str(folder() / "queries.txt"))):
        files = str(folder() / f"{split}.json"), str(folder() / split)
        register_person_search_coco(f"mine_{split}", *files, queries)
