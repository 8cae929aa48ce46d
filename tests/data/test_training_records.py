"""Training images in a fixed order, and as a test sees them, of both kinds of sets."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T  # noqa: N812
from detectron2.structures import BoxMode
from tiny_training_set import OBJECTS, forget, register_set, write_pictures

from kd_search.data import ImageError, read_image, register_person_search_coco
from kd_search.data.detection.loader import build_seeded_detection_train_loader
from kd_search.data.person_search.loader import build_person_search_train_loader
from kd_search.data.training_records import build_record_loader, training_records


@pytest.fixture
def objects(tmp_path):
    write_pictures(tmp_path, len(OBJECTS))
    yield register_set("records_objects", tmp_path)
    forget("records_objects")


@pytest.fixture
def people(street, registry):
    registry.append("records_people")
    register_person_search_coco("records_people", str(street.json_file), str(street.images))
    return "records_people"


def samples_of(cfg, records, positions):
    return [sample for batch in build_record_loader(cfg, records, positions) for sample in batch]


def expected_image(record, size, max_size=96):
    image = read_image(record["file_name"], "BGR")
    resize = T.ResizeShortestEdge([size, size], max_size).get_transform(image)
    return torch.as_tensor(resize.apply_image(image).transpose(2, 0, 1).copy())


@pytest.mark.parametrize("workers", [0, 2])
def test_person_search_images_come_as_in_testing_in_the_order_asked_for(people, data_cfg, workers):
    cfg = data_cfg("DATASETS.TRAIN", (people,), "DATALOADER.NUM_WORKERS", workers)
    cfg.TEST.PERSON_SEARCH.EMBED_GT_BOXES = True
    records = training_records(cfg)
    # The last image is without people.
    assert [r["file_name"][-5] for r in records] == list("0123456")
    loader = build_record_loader(cfg, records, [5, 0, 3])
    for _ in range(2):
        batches = list(loader)
        assert [len(batch) for batch in batches] == [1, 1, 1]
        samples = [batch[0] for batch in batches]
        assert [s["training_position"] for s in samples] == [5, 0, 3]
        for sample in samples:
            record = records[sample["training_position"]]
            assert torch.equal(sample["image"], expected_image(record, 24))
            assert (sample["height"], sample["width"]) == (record["height"], record["width"])
            assert "instances" not in sample and "annotations" not in sample


def test_detection_images_come_as_in_testing_without_their_annotations(objects, data_cfg):
    cfg = data_cfg("DATASETS.TRAIN", (objects,))
    records = training_records(cfg)
    # Nobody needs proposals that were computed before.
    cfg.MODEL.LOAD_PROPOSALS = True
    assert [r["image_id"] for r in records] == [0, 1, 3, 4, 5]
    for sample in samples_of(cfg, records, [0, 2, 4]):
        record = records[sample["training_position"]]
        assert torch.equal(sample["image"], expected_image(record, 24))
        assert (sample["height"], sample["width"]) == (96, 128) and "annotations" not in sample
    assert "annotations" in records[0]


@pytest.mark.parametrize("filter_empty", [True, False])
def test_positions_are_those_of_the_training_loader(people, objects, data_cfg, filter_empty):
    for name, build in (
        (people, build_person_search_train_loader),
        (objects, build_seeded_detection_train_loader),
    ):
        cfg = data_cfg("DATASETS.TRAIN", (name,))
        cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filter_empty
        loader = build(cfg)
        names = [record["file_name"] for record in loader.dataset.dicts]
        assert names == [record["file_name"] for record in training_records(cfg)]


def test_unreadable_images_stop_or_are_left_out(objects, data_cfg, tmp_path, caplog):
    (tmp_path / "1.png").write_bytes(b"no picture")
    cfg = data_cfg("DATASETS.TRAIN", (objects,))
    records = training_records(cfg)
    with pytest.raises(ImageError, match="1.png"):
        samples_of(cfg, records, [0, 1])
    cfg.INPUT.ON_IMAGE_ERROR, cfg.INPUT.MAX_SKIPPED_FRACTION = "skip", 0.5
    samples = samples_of(cfg, records, [0, 1, 2])
    assert [s["training_position"] for s in samples] == [0, 2] and "1.png" in caplog.text


def test_what_has_no_boxes_or_is_not_there_is_refused(people, objects, data_cfg, registry):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    registry.append("records_crops")
    DatasetCatalog.register("records_crops", list)
    MetadataCatalog.get("records_crops").set(evaluator_type="reid")
    for names, message in (
        ((), "DATASETS.TRAIN names no data set"),
        (("records_crops",), "records_crops is a re-ID set: its crops have no boxes"),
        ((people, objects), "DATASETS.TRAIN mixes person search sets"),
        (("not_here",), "'not_here' is not registered"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            training_records(data_cfg("DATASETS.TRAIN", names))
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no image"):
        build_record_loader(data_cfg("DATASETS.TRAIN", (objects,)), [], [])


def test_sets_without_annotations_are_refused(registry, data_cfg, tmp_path):
    from detectron2.data import DatasetCatalog

    registry.append("records_bare")
    record = {"file_name": str(tmp_path / "x.png"), "image_id": 0, "width": 9, "height": 9}
    DatasetCatalog.register("records_bare", lambda: [record])
    with pytest.raises(ValueError, match="DATASETS.TRAIN"):
        training_records(data_cfg("DATASETS.TRAIN", ("records_bare",)))
    box = {"bbox": np.zeros(4), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 1}
    registry.append("records_crowd")
    DatasetCatalog.register("records_crowd", lambda: [{**record, "annotations": [box]}])
    with pytest.raises(ValueError):
        training_records(data_cfg("DATASETS.TRAIN", ("records_crowd",)))
