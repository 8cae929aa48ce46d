"""Plain detection sets in the resumable loader: Detectron2's samples, in an order of our own."""

import itertools

import numpy as np
import pytest
import torch
from detection_tree import make_tree, register_tiny_objects
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.structures import BoxMode
from PIL import Image

from kd_search.data import ImageError
from kd_search.data.catalog import is_person_search, require_registered
from kd_search.data.detection.loader import (
    NamedErrorMapper,
    build_plain_detection_test_loader,
    build_seeded_detection_train_loader,
    train_set_kind,
)
from kd_search.data.detection.register import known_classes, load_detection_set


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def names(tree):
    return register_tiny_objects(tree, "objects_for_loader")


@pytest.fixture
def cfg(names, data_cfg):
    return data_cfg("DATASETS.TRAIN", (names[0],), "DATASETS.TEST", (names[1],))


@pytest.fixture
def own(registry, tmp_path):
    """``own(name, records, **metadata)`` registers dataset dicts of pictures of 40x30 pixels."""

    def register(name, boxes, **metadata):
        dicts = []
        for number, annotations in enumerate(boxes):
            path = tmp_path / f"{name}{number}.png"
            pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8)
            Image.fromarray(pixels).save(path)
            record = {"file_name": str(path), "image_id": number, "width": 40, "height": 30}
            dicts.append({**record, "annotations": annotations})
        registry.append(name)
        DatasetCatalog.register(name, lambda: dicts)
        MetadataCatalog.get(name).set(**metadata)
        return dicts

    return register


def box(category=0, crowd=0, corners=(2, 3, 20, 25)):
    return {
        "bbox": list(corners),
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": category,
        "iscrowd": crowd,
    }


def take(loader, count):
    return list(itertools.islice(loader, count))


def same(one, other):
    assert [x["image_id"] for x in one] == [x["image_id"] for x in other]
    for x, y in zip(one, other):
        assert torch.equal(x["image"], y["image"])
        assert torch.equal(x["instances"].gt_boxes.tensor, y["instances"].gt_boxes.tensor)
        assert torch.equal(x["instances"].gt_classes, y["instances"].gt_classes)


def test_a_loader_can_start_anywhere_and_workers_change_nothing(cfg):
    whole = take(build_seeded_detection_train_loader(cfg), 6)
    for number, batch in enumerate(take(build_seeded_detection_train_loader(cfg, 4), 2), 4):
        same(batch, whole[number])
    cfg.DATALOADER.NUM_WORKERS = 2
    for one, other in zip(take(build_seeded_detection_train_loader(cfg), 3), whole):
        same(one, other)


def test_augmentations_follow_the_seed_and_leave_the_training_alone(cfg):
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = take(build_seeded_detection_train_loader(cfg), 12)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    np.random.seed(99)
    for one, other in zip(take(build_seeded_detection_train_loader(cfg), 12), first):
        same(one, other)
    # Twenty-four draws of sixteen images: those that come twice are not scaled and flipped alike.
    samples = [sample for batch in first for sample in batch]
    views = {(s["image_id"], s["image"].numpy().tobytes()) for s in samples}
    images = {s["image_id"] for s in samples}
    assert len(samples) == 24 and len(images) == 16 and len(views) > 16 + 4
    cfg.SEED = 6
    other_seed = take(build_seeded_detection_train_loader(cfg), 12)
    assert [s["image_id"] for b in other_seed for s in b] != [s["image_id"] for s in samples]


def test_samples_are_those_of_detectron2s_mapper(cfg, names):
    cfg.INPUT.MIN_SIZE_TRAIN = (80,)
    cfg.INPUT.RANDOM_FLIP = "none"
    records = {record["image_id"]: record for record in DatasetCatalog.get(names[0])}
    (batch,) = take(build_seeded_detection_train_loader(cfg), 1)
    expected = [DatasetMapper(cfg, True)(records[sample["image_id"]]) for sample in batch]
    same(batch, expected)


def test_crowd_boxes_are_left_out_and_images_of_crowds_alone_too(own, data_cfg):
    own("crowded", [[box(1), box(0, 1)], [box(1, 1)], []], thing_classes=["a", "b"])
    cfg = data_cfg("DATASETS.TRAIN", ("crowded",), "SOLVER.IMS_PER_BATCH", 1)
    loader = build_seeded_detection_train_loader(cfg)
    for (sample,) in take(loader, 3):
        assert sample["image_id"] == 0 and sample["instances"].gt_classes.tolist() == [1]
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    seen = {sample["image_id"] for (sample,) in take(build_seeded_detection_train_loader(cfg), 9)}
    assert seen == {0, 1, 2}


def test_the_test_loader_gives_every_image_once(cfg, names):
    loader = build_plain_detection_test_loader(cfg, names[1])
    assert [b[0]["image_id"] for b in loader] == list(range(1, 9))
    with pytest.raises(ValueError, match="'objects_for_loader_tset' .*objects_for_loader_test"):
        build_plain_detection_test_loader(cfg, "objects_for_loader_tset")


def test_unreadable_images_are_named_or_replaced(own, data_cfg):
    dicts = own("pictures", [[box()] for _ in range(6)], thing_classes=["a"])
    torn = dicts[2]["file_name"]
    with open(torn, "rb") as stream:
        content = stream.read()
    cfg = data_cfg("DATASETS.TRAIN", ("pictures",), "DATASETS.TEST", ("pictures",))
    for broken in (content[:200], b"", b"no picture"):
        with open(torn, "wb") as stream:
            stream.write(broken)
        with pytest.raises(ImageError, match="pictures2.png"):
            take(build_seeded_detection_train_loader(cfg), 4)
        with pytest.raises(ImageError, match="pictures2.png"):
            list(build_plain_detection_test_loader(cfg, "pictures"))
    cfg.INPUT.ON_IMAGE_ERROR = "skip"
    cfg.INPUT.MAX_SKIPPED_FRACTION = 0.5
    batches = take(build_seeded_detection_train_loader(cfg), 6)
    assert 2 not in {sample["image_id"] for batch in batches for sample in batch}


def test_missing_huge_and_wrongly_sized_images_are_named(own, data_cfg):
    (record,) = own("one", [[box()]], thing_classes=["a"])
    mapper = DatasetMapper(data_cfg(), True)
    with pytest.raises(ImageError, match=r"one0\.png: 40 x 30 .*1199"):
        NamedErrorMapper(mapper, 1199)(record)
    assert NamedErrorMapper(mapper, 1200)(record)["instances"].gt_classes.tolist() == [0]
    with pytest.raises(ImageError, match=r"gone\.png"):
        NamedErrorMapper(mapper, 1200)({**record, "file_name": "gone.png"})
    with pytest.raises(ImageError, match=r"'a\\x00b.png'"):
        NamedErrorMapper(mapper, 1200)({**record, "file_name": "a\0b.png"})
    with pytest.raises(SizeMismatchError, match="one0.png"):
        NamedErrorMapper(mapper, 1200)({**record, "width": 41})


def test_sets_of_two_kinds_or_two_class_lists_are_not_joined(own, data_cfg, names):
    assert train_set_kind(["kd_generated_train", "prw_train"]) == "person_search"
    assert train_set_kind([]) == "person_search"
    assert train_set_kind([names[0], "kitti_train", "voc_2007_trainval"]) == "detection"
    with pytest.raises(
        ValueError, match=rf"mixes person search sets \(prw_train\) .*\({names[0]}\)"
    ):
        train_set_kind([names[0], "prw_train"])
    with pytest.raises(ValueError, match="'nothing'"):
        train_set_kind(["nothing"])
    own("letters", [[box()]], thing_classes=["a"])
    with pytest.raises(ValueError, match=f"joins {names[0]} and letters, which have different"):
        build_seeded_detection_train_loader(data_cfg("DATASETS.TRAIN", (names[0], "letters")))


def test_sets_that_cannot_be_trained_on_say_why(own, data_cfg, monkeypatch):
    own("no_boxes", [[], [box(0, 1)]], thing_classes=["a"])
    with pytest.raises(ValueError, match="no_boxes: No valid data"):
        build_seeded_detection_train_loader(data_cfg("DATASETS.TRAIN", ("no_boxes",)))
    for record in own("no_sizes", [[box()]], thing_classes=["a"]):
        del record["width"]
    with pytest.raises(ValueError, match="DATALOADER.ASPECT_RATIO_GROUPING"):
        build_seeded_detection_train_loader(data_cfg("DATASETS.TRAIN", ("no_sizes",)))
    for record in own("no_annotations", [[box()]]):
        del record["annotations"]
    with pytest.raises(ValueError, match="DATASETS.TRAIN.*annotations"):
        build_seeded_detection_train_loader(data_cfg("DATASETS.TRAIN", ("no_annotations",)))
    own("empty", [])
    with pytest.raises(ValueError, match="'empty'"):
        load_detection_set("empty")


def test_detectron2s_own_sets_can_be_named_and_say_what_to_set(data_cfg):
    assert len(known_classes("coco_2017_train")) == 80
    assert len(known_classes("voc_2007_trainval")) == 20
    assert not is_person_search("coco_2017_val") and is_person_search("prw_test")
    with pytest.raises(ValueError, match="'coco_2017_trian' .*coco_2017"):
        require_registered("coco_2017_trian")
    for name in ("coco_2017_train", "voc_2007_trainval"):
        with pytest.raises(FileNotFoundError, match=f"^{name}: .*set DETECTRON2_DATASETS") as error:
            build_seeded_detection_train_loader(data_cfg("DATASETS.TRAIN", (name,)))
        assert "\n" not in str(error.value)
