"""KITTI's label files: which types become what, splits, and what is wrong with a file."""

import json
import os
import re

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from kd_search.data.detection.kitti import KITTI_CLASSES, kitti_split, load_kitti, register_kitti
from kd_search.data.detection.objects import OBJECT_CLASSES
from kd_search.data.detection.register import load_detection_set
from kd_search.synthetic import ObjectsConfig, generate_objects, write_kitti_layout
from kd_search.synthetic.objects_layouts import KITTI_MIN_VISIBLE, KITTI_TYPES

CAR, PEDESTRIAN, CYCLIST = range(3)
#: Lines as KITTI has them.
LINE = "{} 0.00 0 -1.59 {} 1.36 1.69 3.98 -11.46 2.22 18.60 1.58"


class LittleKITTI:
    """Writes images and label files of an own KITTI; lists only where asked for."""

    def __init__(self, root):
        self.root = root
        self.images = root / "training" / "image_2"
        self.labels = root / "training" / "label_2"
        for folder in (self.images, self.labels, root / "ImageSets"):
            folder.mkdir(parents=True)

    def add(self, stem, *lines, size=(60, 40)):
        pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(self.images / f"{stem}.png")
        (self.labels / f"{stem}.txt").write_text("".join(f"{line}\n" for line in lines))
        return self

    def list(self, split, *stems):
        (self.root / "ImageSets" / f"{split}.txt").write_text("\n".join(stems))
        return self


@pytest.fixture
def little(tmp_path):
    return LittleKITTI(tmp_path / "kitti")


def line(kind, box="10.00 5.00 30.50 25.25"):
    return LINE.format(kind, box)


def boxes(dicts):
    return [
        (a["category_id"], a["iscrowd"], tuple(a["bbox"])) for d in dicts for a in d["annotations"]
    ]


def test_classes_are_read_as_they_are_written(little):
    little.add("000007", line("Car"), line("Pedestrian", "0 0 9 20"), line("Cyclist", "1 2 3 4"))
    (record,) = load_kitti(str(little.root), "train")
    assert record["file_name"] == str(little.images / "000007.png")
    assert (record["image_id"], record["width"], record["height"]) == (7, 60, 40)
    assert boxes([record]) == [
        (CAR, 0, (10.0, 5.0, 30.5, 25.25)),
        (PEDESTRIAN, 0, (0.0, 0.0, 9.0, 20.0)),
        (CYCLIST, 0, (1.0, 2.0, 3.0, 4.0)),
    ]
    assert {a["bbox_mode"] for a in record["annotations"]} == {BoxMode.XYXY_ABS}


def test_look_alikes_are_ignored_and_others_are_background(little):
    kinds = ("Van", "Person_sitting", "Truck", "Tram", "Misc", "DontCare")
    little.add("000000", *map(line, kinds))
    found = boxes(load_kitti(str(little.root), "train"))
    assert [(category, crowd) for category, crowd, _ in found] == [
        (CAR, 1),
        (PEDESTRIAN, 1),
        (CAR, 1),
        (PEDESTRIAN, 1),
        (CYCLIST, 1),
    ]


def test_vans_are_cars_where_asked_for(little):
    little.add("000000", line("Van"))
    found = boxes(load_kitti(str(little.root), "train", van_is_car=True))
    assert [(category, crowd) for category, crowd, _ in found] == [(CAR, 0)]


def test_boxes_are_clipped_and_empty_ones_left_out_unless_asked_otherwise(little):
    little.add(
        "000000", line("Car", "-2 5 61 41"), line("Car", "9 9 9 20"), line("Car", "70 0 80 9")
    )
    assert boxes(load_kitti(str(little.root), "train")) == [(CAR, 0, (0.0, 5.0, 60.0, 40.0))]
    assert len(boxes(load_kitti(str(little.root), "train", strict=False))) == 3


def test_an_image_without_labels_stays(little):
    little.add("000000")
    assert load_kitti(str(little.root), "train")[0]["annotations"] == []


def test_without_lists_the_first_half_is_for_training(little):
    for number in (4, 0, 2, 1, 3):
        little.add(f"{number:06d}")
    assert kitti_split(str(little.root), "train") == ["000000", "000001", "000002"]
    assert kitti_split(str(little.root), "val") == ["000003", "000004"]
    with pytest.raises(ValueError, match="'train' .*'val'.*'test'"):
        kitti_split(str(little.root), "test")


def test_lists_say_what_is_in_a_split(little):
    little.add("000000").add("000001").add("000002").list("train", "000002", "", "000000")
    assert kitti_split(str(little.root), "train") == ["000002", "000000"]
    with pytest.raises(FileNotFoundError, match=r"val\.txt"):
        kitti_split(str(little.root), "val")
    little.list("val", "000001", "000009")
    with pytest.raises(ValueError, match=r"val\.txt, line 2: .*'000009'"):
        kitti_split(str(little.root), "val")
    little.list("val", "000001", "000000", "000001")
    with pytest.raises(ValueError, match=r"val\.txt, line 3: 000001"):
        kitti_split(str(little.root), "val")
    little.list("val")
    with pytest.raises(ValueError, match=r"val\.txt"):
        kitti_split(str(little.root), "val")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("Car 0.00 0 -1.59 1 2 3", "expected a type and 14 numbers, got 7 values"),
        (line("Car") + " 0.99", "got 16 values"),
        (line("Car", "1 2 three 4"), "expected numbers after the type"),
        (line("Car", "1 2 inf 4"), "must be finite"),
        (line("Spaceship"), "KITTI has no type 'Spaceship'"),
    ],
)
def test_a_bad_line_is_named_with_its_file(little, bad, words):
    little.add("000000", line("Car"), "", bad)
    with pytest.raises(ValueError, match=rf"000000\.txt, line 3: .*{re.escape(words)}") as error:
        load_kitti(str(little.root), "train")
    assert "\n" not in str(error.value)


def test_a_missing_or_broken_image_is_named(little):
    little.add("000000")
    (little.images / "000000.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"000000\.png"):
        load_kitti(str(little.root), "train")
    (little.images / "000000.png").unlink()
    with pytest.raises(ValueError, match=r"000000\.png"):
        load_kitti(str(little.root), "train")
    assert load_kitti(str(little.root), "train", strict=False)[0]["width"] == 0


def test_the_builtin_sets_say_what_to_set_and_read_their_folder(little, monkeypatch, tmp_path):
    for name in ("kitti_train", "kitti_val"):
        assert MetadataCatalog.get(name).thing_classes == list(KITTI_CLASSES)
        assert MetadataCatalog.get(name).evaluator_type == "coco"
        monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
        with pytest.raises(
            FileNotFoundError, match=rf"^{name}: .*set DETECTRON2_DATASETS"
        ) as error:
            DatasetCatalog.get(name)
        assert "\n" not in str(error.value)
    little.add("000000", line("Car")).add("000001", line("Van"))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert boxes(DatasetCatalog.get("kitti_train"))[0][:2] == (CAR, 0)
    assert boxes(DatasetCatalog.get("kitti_val"))[0][:2] == (CAR, 1)


def test_a_set_with_vans_as_cars_can_be_registered(little, registry):
    little.add("000000", line("Van"))
    registry.append("vans")
    register_kitti("vans", "train", str(little.root), van_is_car=True)
    assert boxes(load_detection_set("vans"))[0][:2] == (CAR, 0)


def test_the_generated_set_comes_back_from_its_kitti_layout(tmp_path):
    config = ObjectsConfig(num_train_images=7, num_test_images=3, width=96, height=80, max_size=60)
    generate_objects(tmp_path / "set", config, seed=2, progress=False)
    write_kitti_layout(tmp_path / "set", tmp_path / "kitti")
    seen = set()
    for split, listed in (("train", "train"), ("test", "val")):
        dicts = load_kitti(str(tmp_path / "kitti"), listed)
        content = json.loads((tmp_path / "set" / f"{split}.json").read_text())
        assert len(dicts) == len(content["images"])
        for record, image in zip(dicts, content["images"]):
            expected = []
            for annotation in content["annotations"]:
                if annotation["image_id"] != image["id"]:
                    continue
                x, y, w, h = annotation["bbox"]
                kind = KITTI_TYPES[OBJECT_CLASSES[annotation["category_id"] - 1]]
                if annotation["visible"] < KITTI_MIN_VISIBLE:
                    kind = "DontCare"
                seen.add(kind)
                meant = {
                    "Car": [(CAR, 0)],
                    "Pedestrian": [(PEDESTRIAN, 0)],
                    "Cyclist": [(CYCLIST, 0)],
                    "Van": [(CAR, 1)],
                    "Person_sitting": [(PEDESTRIAN, 1)],
                    "DontCare": [(CAR, 1), (PEDESTRIAN, 1), (CYCLIST, 1)],
                }.get(kind, [])
                expected += [(c, crowd, (x, y, x + w, y + h)) for c, crowd in meant]
            assert boxes([record]) == expected
            original = Image.open(tmp_path / "set" / split / "images" / image["file_name"])
            with Image.open(record["file_name"]) as copy:
                assert np.array_equal(np.asarray(copy), np.asarray(original.convert("RGB")))
    assert "DontCare" in seen and len(seen) >= 6
    with pytest.raises(ValueError, match="exists"):
        write_kitti_layout(tmp_path / "set", tmp_path / "kitti")
    with pytest.raises(FileNotFoundError, match="no generated data set"):
        write_kitti_layout(tmp_path / "kitti", tmp_path / "other")
    assert sorted(os.listdir(tmp_path)) == ["kitti", "set"]
