"""A little person search data set on disk, and configs for it."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from kd_search.config import get_cfg


class LittleSet:
    """Writes images, a COCO-JSON file and a query file below a folder."""

    def __init__(self, root):
        self.root = root
        self.images = root / "images"
        self.json_file = root / "people.json"
        self.query_info = None
        self.images.mkdir(parents=True)
        self.content = {
            "categories": [{"id": 1, "name": "person"}],
            "images": [],
            "annotations": [],
        }

    def add_image(self, name, people=(), size=(64, 48), **entry):
        """``people``: (person_id, [x, y, w, h]) pairs; ``size``: width, height."""
        image_id = len(self.content["images"]) + 1
        width, height = size
        pixels = np.random.default_rng(image_id).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(self.images / name)
        image = {"id": image_id, "file_name": name, "width": width, "height": height, **entry}
        self.content["images"].append(image)
        for person_id, bbox in people:
            annotation = {"image_id": image_id, "category_id": 1, "bbox": bbox}
            self.content["annotations"].append({**annotation, "person_id": person_id})
        return self.write()

    def write(self):
        self.json_file.write_text(json.dumps(self.content), encoding="utf-8")
        return self

    def write_queries(self, *lines):
        self.query_info = self.root / "query_info.txt"
        self.query_info.write_bytes("\r\n".join(lines).encode() + b"\r\n")
        return self


@pytest.fixture
def little_set(tmp_path):
    """``little_set(name)`` makes an empty set in its own folder."""
    return lambda name="set": LittleSet(tmp_path / name)


@pytest.fixture
def street(little_set):
    """Eight images, six wide and two tall, of four people; the last image is without people."""
    made = little_set("street")
    for i in range(7):
        size = (48, 64) if i in (2, 5) else (64, 48)
        people = [(10 + i % 4, [2, 3, 10, 20]), (-1, [30, 5, 12, 30])]
        made.add_image(f"{i}.png", people, size)
    return made.add_image("7.png")


@pytest.fixture
def registry():
    """Names appended to this list are taken out of Detectron2's catalogs after the test."""
    names = []
    yield names
    for name in names:
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
        if name in MetadataCatalog.list():
            MetadataCatalog.remove(name)


@pytest.fixture
def data_cfg():
    """``data_cfg("KEY", value, ...)``: a config for loading little images in this process."""

    def make(*overrides):
        cfg = get_cfg()
        cfg.SEED = 5
        cfg.SOLVER.IMS_PER_BATCH = 2
        cfg.DATALOADER.NUM_WORKERS = 0
        cfg.INPUT.MIN_SIZE_TRAIN = (24, 32, 40)
        cfg.INPUT.MIN_SIZE_TEST = 24
        cfg.INPUT.MAX_SIZE_TEST = 96
        cfg.merge_from_list(list(overrides))
        return cfg

    return make
