"""ILSVRC DET: lists, classes from the development kit, VOC's XML, and what is wrong with them."""

import json
import re

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from kd_search.data.detection.ilsvrc import load_ilsvrc_det, read_det_classes
from kd_search.data.detection.register import known_classes
from kd_search.data.detection.voc_xml import VOCObject, read_voc_xml
from kd_search.synthetic import ObjectsConfig, generate_objects, write_ilsvrc_layout

MAP = "n02672831 1 accordion\nn02691156 2 airplane\nn02219486 3 ant\n"


class LittleILSVRC:
    """Writes images, XML files, lists and classes of an own ILSVRC DET."""

    def __init__(self, root):
        self.root = root
        (root / "devkit/data").mkdir(parents=True)
        (root / "devkit/data/map_det.txt").write_text(MAP)
        (root / "ImageSets/DET").mkdir(parents=True)

    def add(self, split, image, *objects, size=(50, 40), xml=None):
        """``objects``: (wnid, xmin, ymin, xmax, ymax)."""
        picture = self.root / f"Data/DET/{split}/{image}.JPEG"
        picture.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(picture)
        path = self.xml(split, image)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(xml or voc(objects, size))
        return self

    def xml(self, split, image):
        return self.root / f"Annotations/DET/{split}/{image}.xml"

    def list(self, name, text):
        (self.root / f"ImageSets/DET/{name}.txt").write_text(text)
        return self


def voc(objects, size=(50, 40)):
    body = "".join(
        f"<object>\n<name>{wnid}</name><bndbox><xmin>{x0}</xmin><xmax>{x1}</xmax>"
        f"<ymin>{y0}</ymin><ymax>{y1}</ymax></bndbox></object>\n"
        for wnid, x0, y0, x1, y1 in objects
    )
    width, height = size
    return (
        f"<annotation>\n<size><width>{width}</width><height>{height}</height></size>\n"
        f"{body}</annotation>\n"
    )


@pytest.fixture
def little(tmp_path):
    return LittleILSVRC(tmp_path / "ILSVRC")


def boxes(record):
    return [(a["category_id"], tuple(a["bbox"])) for a in record["annotations"]]


def test_boxes_count_pixels_from_one_and_hold_the_last(little):
    little.add("val", "a", ("n02691156", 1, 2, 50, 40), ("n02672831", 3, 3, 3, 3))
    little.list("val", "a 1\n")
    (record,) = load_ilsvrc_det(str(little.root), "val")
    assert boxes(record) == [(1, (0, 1, 50, 40)), (0, (2, 2, 3, 3))]
    assert (record["width"], record["height"], record["image_id"]) == (50, 40, 1)
    assert record["file_name"].endswith("Data/DET/val/a.JPEG")


def test_another_first_pixel_and_coordinates_before_the_image(little):
    little.add("val", "a", ("n02691156", 0, 0, 49, 39)).list("val", "a 1\n")
    assert boxes(load_ilsvrc_det(str(little.root), "val")[0]) == [(1, (0, 0, 49, 39))]
    zero = load_ilsvrc_det(str(little.root), "val", first_pixel=0)
    assert boxes(zero[0]) == [(1, (0, 0, 50, 40))]
    raw = load_ilsvrc_det(str(little.root), "val", strict=False)
    assert boxes(raw[0]) == [(1, (-1, -1, 49, 39))]


def test_training_images_without_xml_hold_nothing_but_validation_images_need_one(little):
    for split in ("train", "val"):
        little.add(split, "f/a", ("n02219486", 1, 1, 9, 9)).add(split, "f/b")
        little.list(split, "f/a 1\nf/b 2\n")
        little.xml(split, "f/b").unlink()
    train = load_ilsvrc_det(str(little.root), "train")
    assert [boxes(record) for record in train] == [[(2, (0, 0, 9, 9))], []]
    assert (train[1]["width"], train[1]["height"]) == (50, 40)
    with pytest.raises(FileNotFoundError, match=r"f/b\.xml"):
        load_ilsvrc_det(str(little.root), "val")
    little.xml("train", "f/a").unlink()
    with pytest.raises(FileNotFoundError, match="Annotations/DET/train: .*no XML file"):
        load_ilsvrc_det(str(little.root), "train")


def test_lists_by_class_are_joined_where_there_is_no_list_of_all(little):
    for name in "abc":
        little.add("train", name, ("n02219486", 1, 1, 9, 9))
    little.list("train_10", "c 1\na -1\n").list("train_2", "b 0\na 1\n").list("trainer", "x y z\n")
    names = [d["file_name"][-6] for d in load_ilsvrc_det(str(little.root), "train")]
    assert names == ["b", "a", "c"]
    little.list("train", "c 1\n")
    assert len(load_ilsvrc_det(str(little.root), "train")) == 1


def test_classes_come_from_the_development_kit(little):
    assert read_det_classes(str(little.root))[0] == ("n02672831", "accordion")
    path = little.root / "devkit/data/map_det.txt"
    path.write_text("n02672831 1 accordion\nn02691156 2 domestic cat\n")
    assert read_det_classes(str(little.root))[1] == ("n02691156", "domestic cat")
    for text, words in (
        ("n02672831 1 a\nn02691156 3 b\n", r"line 2: expected '<WNID> 2 <name>'"),
        ("accordion\n", "line 1: expected"),
        ("n02672831 1 a\nn02672831 2 b\n", "a WNID twice"),
        ("\n", "names no class"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"map_det\.txt.*{words}"):
            read_det_classes(str(little.root))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"map_det\.txt: .*development kit") as error:
        read_det_classes(str(little.root))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\n", "line 1: expected '<image> <index>'"),
        ("a 1\n\nb two\n", "line 3: expected"),
        ("a 1\na 2\n", "line 2: a is listed twice"),
        ("../../secret 1\n", "lies outside of the data set"),
        ("/etc/passwd 1\n", "lies outside of the data set"),
        ("\n", "names no image"),
    ],
)
def test_a_bad_list_is_named_with_its_line(little, text, words):
    little.add("val", "a").list("val", text)
    with pytest.raises(ValueError, match=rf"val\.txt.*{re.escape(words)}"):
        load_ilsvrc_det(str(little.root), "val")


def test_an_unknown_class_and_a_missing_image_are_named(little):
    little.add("val", "a", ("n02672831", 1, 1, 9, 9), ("n99999999", 1, 1, 9, 9)).list("val", "a 1")
    with pytest.raises(ValueError, match=r"a\.xml, line 5: 'n99999999' .*map_det\.txt"):
        load_ilsvrc_det(str(little.root), "val")
    raw = load_ilsvrc_det(str(little.root), "val", strict=False)
    assert [a["category_id"] for a in raw[0]["annotations"]] == [0, -1]
    little.add("val", "a")
    (little.root / "Data/DET/val/a.JPEG").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.JPEG"):
        load_ilsvrc_det(str(little.root), "val")


# The XML ----------------------------------------------------------------------------------------


def test_xml_is_read_with_the_lines_of_its_objects(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text('<?xml version="1.0"?>\n' + voc([("dog", 1, 2, 3.5, 4)]))
    found = read_voc_xml(str(path))
    assert (found.width, found.height) == (50, 40)
    assert found.objects == (VOCObject("dog", (1.0, 2.0, 3.5, 4.0), 4),)


BOMB = (
    '<?xml version="1.0"?>\n<!DOCTYPE a [<!ENTITY x "lol"><!ENTITY y "&x;&x;&x;&x;&x;">]>\n'
    "<annotation><size><width>1</width><height>1</height></size>&y;</annotation>"
)
OUTSIDE = '<!DOCTYPE a SYSTEM "file:///etc/passwd">\n<annotation></annotation>'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "line 2: has a document type declaration, which is refused"),
        (OUTSIDE, "line 1: has a document type declaration"),
        ("<annotation>", "line 1: not an XML file"),
        ("", "not an XML file"),
        ("<other/>", "expected an <annotation>, got <other>"),
        ("<annotation>\n</annotation>", "line 1: <annotation> has no <size>"),
        (voc([]).replace("<height>40</height>", ""), "line 2: <size> has no <height>"),
        (voc([("d", 1, 1, 2, 2)]).replace("<name>d</name>", ""), "line 3: <object> has no <name>"),
        (voc([("d", 1, 1, "far", 2)]), "line 4: <xmax> 'far' is not a finite number"),
        (voc([("d", 1, 1, "nan", 2)]), "<xmax> 'nan' is not a finite number"),
    ],
)
def test_what_is_wrong_with_an_xml_file_is_named_with_its_line(tmp_path, text, words):
    path = tmp_path / "a.xml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"a\.xml.*{re.escape(words)}") as error:
        read_voc_xml(str(path))
    assert "\n" not in str(error.value)


# Registered -------------------------------------------------------------------------------------


def test_the_builtin_sets_say_what_to_set_and_read_their_folder(little, monkeypatch, tmp_path):
    for name in ("ilsvrc_det_train", "ilsvrc_det_val"):
        monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
        with pytest.raises(
            FileNotFoundError, match=rf"^{name}: .*set DETECTRON2_DATASETS"
        ) as error:
            DatasetCatalog.get(name)
        assert "\n" not in str(error.value)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    little.add("val", "a", ("n02691156", 1, 2, 50, 40)).list("val", "a 1\n")
    assert known_classes("ilsvrc_det_val") == ["accordion", "airplane", "ant"]
    assert len(DatasetCatalog.get("ilsvrc_det_val")) == 1
    assert MetadataCatalog.get("ilsvrc_det_val").thing_classes == ["accordion", "airplane", "ant"]
    (little.root / "devkit/data/map_det.txt").write_text("n02691156 1 airplane\n")
    DatasetCatalog.get("ilsvrc_det_val")
    assert MetadataCatalog.get("ilsvrc_det_val").thing_classes == ["airplane"]


def test_the_generated_set_comes_back_from_its_ilsvrc_layout(tmp_path):
    config = ObjectsConfig(num_train_images=5, num_test_images=3, width=96, height=80, max_size=60)
    generate_objects(tmp_path / "set", config, seed=2, progress=False)
    write_ilsvrc_layout(tmp_path / "set", tmp_path / "ILSVRC")
    for split, listed in (("train", "train"), ("test", "val")):
        dicts = load_ilsvrc_det(str(tmp_path / "ILSVRC"), listed)
        content = json.loads((tmp_path / "set" / f"{split}.json").read_text())
        if split == "train":
            assert dicts.pop(0)["annotations"] == []
        assert len(dicts) == len(content["images"])
        for record, image in zip(dicts, content["images"]):
            expected = [
                (a["category_id"] - 1, (x, y, x + w, y + h))
                for a in content["annotations"]
                if a["image_id"] == image["id"]
                for x, y, w, h in (a["bbox"],)
            ]
            assert boxes(record) == expected
            original = tmp_path / "set" / split / "images" / image["file_name"]
            with open(record["file_name"], "rb") as copy:
                assert copy.read() == original.read_bytes()
