"""Training sets of a few noisy pictures of 128 x 96, registered under a name."""

import json

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from kd_search.data import register_person_search_coco

WIDTH, HEIGHT = 128, 96

#: (class, XYXY) of the objects of every picture: class 0 is common, class 1 is in the last picture
#: alone, of class 2 there is but a small box, class 3 has none.
OBJECTS = (
    [(0, (4, 6, 50, 60)), (0, (60, 10, 120, 90))],
    [(0, (10, 20, 64, 80)), (2, (70, 40, 95, 90))],
    [],
    [(0, (30, 5, 90, 70)), (0, (2, 50, 40, 94)), (0, (80, 50, 126, 94))],
    [(0, (1, 1, 127, 95))],
    [(1, (8, 12, 58, 70)), (0, (50, 30, 110, 92)), (1, (70, 2, 126, 50))],
)

#: (person, XYWH) of the people; -1 is unlabelled.
PEOPLE = (
    [(10, (4, 6, 40, 80)), (11, (60, 10, 40, 70))],
    [(12, (10, 4, 44, 88)), (-1, (70, 8, 36, 80))],
    [(10, (30, 5, 40, 85)), (13, (80, 5, 40, 85))],
    [(14, (2, 10, 40, 80)), (11, (50, 4, 36, 76)), (12, (90, 4, 36, 88))],
)


def write_pictures(folder, count):
    """PNG files ``0.png``, ...: blocks of colour below noise."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        blocks = rng.integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3)).repeat(16, 0).repeat(16, 1)
        pixels = (blocks * 0.8 + rng.integers(0, 52, (HEIGHT, WIDTH, 3))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def object_records(folder, objects=OBJECTS):
    """Dataset dicts of a detection set."""
    return [
        {
            "file_name": str(folder / f"{number}.png"),
            "image_id": number,
            "width": WIDTH,
            "height": HEIGHT,
            "annotations": [
                {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": name}
                for name, box in boxes
            ],
        }
        for number, boxes in enumerate(objects)
    ]


def register_set(name, folder, objects=OBJECTS, classes=4):
    """Register a detection set whose pictures lie in a folder; a name may be taken twice."""
    forget(name)
    DatasetCatalog.register(name, lambda: object_records(folder, objects))
    MetadataCatalog.get(name).set(thing_classes=[f"class{c}" for c in range(classes)])
    return name


def register_people(name, folder, people=PEOPLE):
    """Register a person search set in COCO-JSON whose pictures lie in a folder."""
    images = [
        {"id": i + 1, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT}
        for i in range(len(people))
    ]
    annotations = [
        {"image_id": i + 1, "category_id": 1, "bbox": list(box), "person_id": person}
        for i, boxes in enumerate(people)
        for person, box in boxes
    ]
    content = {"categories": [{"id": 1, "name": "person"}], "images": images}
    file = folder / f"{name}.json"
    file.write_text(json.dumps({**content, "annotations": annotations}), encoding="utf-8")
    forget(name)
    register_person_search_coco(name, str(file), str(folder))
    return name


def forget(name):
    """Take a name out of Detectron2's catalogs, if it is there."""
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
