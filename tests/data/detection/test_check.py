"""kd-search check on sets without identities."""

import json

import pytest
from detection_tree import make_tree, register_tiny_objects
from detectron2.data.datasets import register_coco_instances

from kd_search.cli import check
from kd_search.data.detection.check import DetectionSplit, check_detection_split
from kd_search.data.detection.kitti import register_kitti


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("tree"))


def found(report):
    return [(defect.kind, defect.where) for defect in report.defects]


def test_clean_sets_of_every_layout_have_counts_and_no_defect(tree, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tree))
    train, _ = register_tiny_objects(tree, "objects_for_check")
    content = json.loads((tree / "objects" / "train.json").read_text())
    for name, images in ((train, 16), ("ilsvrc_det_train", 17)):
        assert check.main(["--dataset", name]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert f"images {images} " in said and "no defect found" in said
        assert f" boxes {len(content['annotations'])} " in said
    report = check_detection_split(DetectionSplit.from_name(train))
    by_class = [0] * 8
    for annotation in content["annotations"]:
        by_class[annotation["category_id"] - 1] += 1
    counted = [v for k, v in report.counts.items() if k.startswith("class ")]
    assert counted == by_class and report.counts["boxes"] == sum(by_class)
    assert report.counts["classes"] == 8 and report.counts["ignored_boxes"] == 0


def test_ignored_places_count_once_and_not_by_class(tree, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tree))
    for split in ("train", "val"):
        lines = []
        for stem in (tree / f"kitti/ImageSets/{split}.txt").read_text().split():
            lines += (tree / f"kitti/training/label_2/{stem}.txt").read_text().splitlines()
        kinds = [line.split()[0] for line in lines]
        assert check.main(["--dataset", f"kitti_{split}"]) == 0
        assert "no defect found" in capsys.readouterr().out
        counts = check_detection_split(DetectionSplit.from_name(f"kitti_{split}")).counts
        ignored = [k for k in kinds if k in ("Van", "Person_sitting", "DontCare")]
        assert counts["ignored_boxes"] == len(ignored) > 0
        assert counts["class Car"] == kinds.count("Car")
        assert counts["boxes"] == sum(kinds.count(k) for k in ("Car", "Pedestrian", "Cyclist"))


def test_what_is_wrong_is_found(tmp_path, registry):
    root = make_tree(tmp_path) / "kitti"
    register_kitti("bad_train", "train", str(root))
    register_kitti("bad_val", "val", str(root))
    registry += ["bad_train", "bad_val"]
    tail = "1.36 1.69 3.98 -11.46 2.22 18.60 1.58\n"
    label = root / "training/label_2/000003.txt"
    label.write_text(
        f"Car 0.00 0 0 -3 4 20 30 {tail}DontCare -1 -1 -10 50 10 99 20 {tail}"
        f"Car 0.00 0 0 10 10 10 30 {tail}Spaceship 0.00 0 0 1 1 9 9 {tail}"
    )
    (root / "training/image_2/000005.png").unlink()
    torn = root / "training/image_2/000006.png"
    torn.write_bytes(torn.read_bytes()[:300])
    shared = root / "ImageSets/val.txt"
    shared.write_text(shared.read_text() + "000001\n")
    split, partner = (DetectionSplit.from_name(name) for name in ("bad_train", "bad_val"))
    report = check_detection_split(split, partner=partner)
    assert sorted(found(report)) == [
        ("box_empty", "000003.png"),
        ("box_out_of_image", "000003.png"),
        ("box_out_of_image", "000003.png"),
        ("image_in_train_and_test", "000001.png"),
        ("image_missing", "000005.png"),
        ("image_unreadable", "000006.png"),
        ("unknown_class", "000003.png"),
    ]
    assert "'Spaceship' is no class of this set" in str(report)
    assert check_detection_split(split, decode=False).notes == ["images not decoded"]


def test_the_tool_compares_with_the_validation_set_and_ends_with_1_or_2(
    tmp_path, monkeypatch, capsys
):
    root = make_tree(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    listed = root / "kitti/ImageSets/val.txt"
    listed.write_text(listed.read_text() + "000001\n")
    for name in ("kitti_train", "kitti_val"):
        assert check.main(["--dataset", name, "--no-decode"]) == 1
        assert "000001.png: is in kitti_" in capsys.readouterr().out
    assert check.main(["--dataset", "kitti_val", "--test-dataset", "prw_test"]) == 2
    listed.write_text("nonsense\n")
    assert check.main(["--dataset", "kitti_val"]) == 2
    assert "val.txt, line 1: there is no label file" in capsys.readouterr().err
    assert check.main(["--dataset", "kitti_train", "--no-decode"]) == 0
    assert "overlap with kitti_val not checked" in capsys.readouterr().out


def test_an_xml_file_of_another_size_is_found(tmp_path, monkeypatch):
    root = make_tree(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    path = root / "ILSVRC/Annotations/DET/val/ILSVRC2012_val_00000002.xml"
    text = path.read_text().replace("<width>96<", "<width>120<")
    first = text.index("<name>n") + len("<name>")
    path.write_text(text[:first] + "n00000000" + text[first + 9 :])
    report = check_detection_split(DetectionSplit.from_name("ilsvrc_det_val"))
    name = "ILSVRC2012_val_00000002.JPEG"
    assert found(report) == [("unknown_class", name), ("size_mismatch", name)]


def test_real_pictures_of_80_classes_can_be_checked(real_data, registry, capsys):
    root = real_data("coco128")
    registry.append("coco128")
    json_file = root / "annotations" / "instances_train2017.json"
    register_coco_instances("coco128", {}, str(json_file), str(root / "train2017"))
    status = check.main(["--dataset", "coco128"])
    said = " ".join(capsys.readouterr().out.split())
    assert status in (0, 1) and " classes 80 " in said and " class person " in said
    content = json.loads(json_file.read_text())
    boxes = sum(not a["iscrowd"] for a in content["annotations"])
    counts = check_detection_split(DetectionSplit.from_name("coco128"), decode=False).counts
    assert counts["images"] == len(content["images"]) and counts["boxes"] == boxes
