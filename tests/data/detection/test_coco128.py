"""The set "kd_coco128": found by its folder, read by Detectron2, named where it is missing."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from kd_search.data.builtin import register_coco128
from kd_search.data.detection.register import load_detection_set

NAME = "coco128_for_tests"


@pytest.fixture
def root(tmp_path):
    """A set of one image with a "stop sign", whose id in COCO is 13, in a list of 80 classes."""
    names = MetadataCatalog.get("coco_2017_train").thing_classes
    ids = MetadataCatalog.get("coco_2017_val").thing_dataset_id_to_contiguous_id
    document = {
        "images": [{"id": 9, "file_name": "000000000009.jpg", "width": 64, "height": 48}],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 13, "bbox": [1, 2, 10, 20], "iscrowd": 0}
        ],
        "categories": [{"id": i, "name": names[k]} for i, k in ids.items()],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train2017").mkdir()
    file = tmp_path / "annotations" / "instances_train2017.json"
    file.write_text(json.dumps(document))
    register_coco128(str(tmp_path), NAME)
    yield tmp_path
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_boxes_have_the_classes_of_coco(root):
    (record,) = load_detection_set(NAME)
    assert record["file_name"] == str(root / "train2017" / "000000000009.jpg")
    (annotation,) = record["annotations"]
    names = MetadataCatalog.get(NAME).thing_classes
    assert len(names) == 80 and names[annotation["category_id"]] == "stop sign"
    assert MetadataCatalog.get(NAME).evaluator_type == "coco"
    # Read again, it does not stumble over what it knows already.
    assert load_detection_set(NAME) == [record]


def test_a_broken_file_is_named(root):
    (root / "annotations" / "instances_train2017.json").write_text('{"images": [')
    with pytest.raises(ValueError, match="instances_train2017.json"):
        load_detection_set(NAME)


def test_a_missing_folder_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match="kd_coco128: .*instances_train2017.json is missing; "
    ):
        load_detection_set("kd_coco128")


def test_real_files(real_data, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(real_data("coco128").parent))
    records = load_detection_set("kd_coco128")
    boxes = [a for record in records for a in record["annotations"]]
    assert (len(records), len(boxes)) == (128, 939)
    assert sum(a["iscrowd"] for a in boxes) == 10
    assert sum(a["category_id"] == 0 for a in boxes) == 259
