import copy
import json
import os
from pathlib import Path

import pytest
from detectron2.structures import BoxMode

from kd_search.data import IDMap
from kd_search.data.person_search.coco_json import load_coco_json


def _load(made, **kwargs):
    return load_coco_json(str(made.json_file), str(made.images), **kwargs)


def test_dicts_hold_what_detectron2_and_person_search_need(little_set):
    made = little_set().add_image("a.png", [(7, [1, 2, 10, 20])], camera_id=3, frame_id=44)
    assert _load(made) == [
        {
            "file_name": os.path.join(str(made.images), "a.png"),
            "image_id": 1,
            "height": 48,
            "width": 64,
            "camera_id": 3,
            "frame_id": 44,
            "in_gallery": True,
            "annotations": [
                {
                    "bbox": [1.0, 2.0, 11.0, 22.0],
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": 0,
                    "iscrowd": 0,
                    "person_id": 0,
                }
            ],
        }
    ]


def test_camera_and_frame_come_from_prw_names_where_the_file_does_not_say(little_set):
    made = little_set().add_image("c6s1_000451.png").add_image("cats_3.png")
    made.add_image("c2s3_000007.png", camera_id=9)
    found = [(d["camera_id"], d["frame_id"]) for d in _load(made)]
    assert found == [(6, 451), (-1, -1), (9, 7)]


@pytest.mark.parametrize("unlabelled", [-1, -2, None, float("nan")])
def test_unlabelled_people_get_row_minus_one(little_set, unlabelled):
    made = little_set().add_image("a.png", [(unlabelled, [1, 2, 10, 20]), (4, [1, 2, 9, 9])])
    assert [a["person_id"] for a in _load(made)[0]["annotations"]] == [-1, 0]


def test_an_annotation_without_person_id_is_unlabelled(little_set):
    made = little_set().add_image("a.png", [(3, [1, 2, 10, 20])])
    del made.content["annotations"][0]["person_id"]
    assert _load(made.write())[0]["annotations"][0]["person_id"] == -1


def test_ids_may_be_strings_or_whole_floats(little_set):
    text = little_set("a").add_image("a.png", [("bob", [1, 2, 10, 20]), ("al", [1, 2, 9, 9])])
    assert [a["person_id"] for a in _load(text)[0]["annotations"]] == [1, 0]
    floats = little_set("b").add_image("a.png", [(3.0, [1, 2, 10, 20]), (2, [1, 2, 9, 9])])
    assert [a["person_id"] for a in _load(floats)[0]["annotations"]] == [1, 0]


def test_ids_outside_of_a_given_map_are_unlabelled(little_set):
    made = little_set().add_image("a.png", [(3, [1, 2, 10, 20]), (9, [1, 2, 9, 9])])
    dicts = _load(made, id_map=IDMap([1, 9]))
    assert [a["person_id"] for a in dicts[0]["annotations"]] == [-1, 1]


def test_boxes_are_clipped_to_the_image_and_empty_ones_left_out_with_a_warning(little_set, caplog):
    people = [(1, [-5, -6, 20, 20]), (2, [60, 40, 20, 20]), (3, [70, 0, 5, 5]), (4, [5, 5, 0, 9])]
    made = little_set().add_image("a.png", people)
    annotations = _load(made)[0]["annotations"]
    assert [a["bbox"] for a in annotations] == [[0, 0, 15, 14], [60, 40, 64, 48]]
    assert [a["person_id"] for a in annotations] == [0, 1]
    assert "left out 2 boxes" in caplog.text
    raw = _load(made, clip=False)[0]["annotations"]
    assert [a["bbox"] for a in raw][0] == [-5, -6, 15, 14] and len(raw) == 4


def test_only_people_are_read_from_a_file_with_several_categories(little_set):
    made = little_set().add_image("a.png", [(1, [0, 0, 9, 9]), (2, [0, 0, 8, 8])])
    made.content["categories"] = [{"id": 1, "name": "Person"}, {"id": 2, "name": "dog"}]
    made.content["annotations"][1]["category_id"] = 2
    dicts = _load(made.write())
    assert [a["bbox"] for a in dicts[0]["annotations"]] == [[0, 0, 9, 9]]
    assert [a["person_id"] for a in dicts[0]["annotations"]] == [0]


def test_backslashes_and_other_alphabets_in_names_find_their_files(little_set):
    made = little_set().add_image("straße 街.png")
    made.content["images"][0]["file_name"] = "..\\images\\straße 街.png"
    assert os.path.isfile(_load(made.write())[0]["file_name"])


def _without(entry, key):
    return lambda content: content[entry][1].pop(key)


def _with(entry, key, value):
    return lambda content: content[entry][1].update({key: value})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without("images", "width"), r"images\[1\]\.width is missing"),
        (_without("images", "file_name"), r"images\[1\]\.file_name is missing"),
        (_without("annotations", "bbox"), r"annotations\[1\]\.bbox is missing"),
        (_without("annotations", "image_id"), r"annotations\[1\]\.image_id is missing"),
        (_with("annotations", "image_id", 99), r"annotations\[1\]: image_id 99 is the id of no"),
        (_with("annotations", "image_id", [1]), r"annotations\[1\]\.image_id .*found \[1\]"),
        (_with("annotations", "bbox", [1, 2, 3]), r"annotations\[1\]\.bbox .*found \[1, 2, 3\]"),
        (
            _with("annotations", "bbox", [1, 2, 3, None]),
            r"annotations\[1\]\.bbox\[3\] .*found None",
        ),
        (_with("annotations", "bbox", [1, 2, 3, float("inf")]), r"annotations\[1\]\.bbox\[3\]"),
        (_with("annotations", "bbox", [1, 2, 3, 10**400]), r"annotations\[1\]\.bbox\[3\]"),
        (_with("annotations", "iscrowd", "no"), r"annotations\[1\]\.iscrowd .*found 'no'"),
        (_with("annotations", "person_id", 1.5), r"annotations\[1\]\.person_id .*found 1\.5"),
        (_with("annotations", "person_id", "x"), r"mix numbers and strings"),
        (_with("images", "id", 1), r"images\[1\]: id 1 is already that of images\[0\]"),
        (_with("images", "id", 10**30), r"images\[1\]\.id .*64-bit"),
        (_with("images", "file_name", "a.png"), r"images\[1\]: file_name 'a.png' is already"),
        (_with("images", "height", 0), r"images\[1\]\.height .*found 0"),
        (_with("images", "width", "64"), r"images\[1\]\.width .*found '64'"),
        (_with("images", "camera_id", "left"), r"images\[1\]\.camera_id .*found 'left'"),
        (_with("images", "in_gallery", "no"), r"images\[1\]\.in_gallery .*found 'no'"),
        (lambda c: c.pop("images"), r"images is missing"),
        (lambda c: c.update(annotations={}), r"annotations .*found a dict"),
        (lambda c: c["images"].append(3), r"images\[2\] .*found 3"),
        (
            lambda c: c.update(categories=[{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]),
            r"none of the categories \('cat', 'dog'\) is named 'person'",
        ),
    ],
)
def test_a_wrong_structure_is_refused_naming_file_and_entry(little_set, spoil, message):
    made = little_set().add_image("a.png", [(1, [0, 0, 9, 9])])
    made.add_image("b.png", [(2, [0, 0, 9, 9])])
    before = copy.deepcopy(made.content)
    assert len(_load(made)) == 2
    spoil(made.content)
    assert made.content != before
    with pytest.raises(ValueError, match=rf"people\.json: .*{message}"):
        _load(made.write())


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", "[" * 100_000])
def test_a_file_that_is_not_such_json_is_refused_by_name(tmp_path, text):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ValueError, match="bad.json: "):
        load_coco_json(str(tmp_path / "bad.json"), str(tmp_path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.json"):
        load_coco_json(str(tmp_path / "none.json"), str(tmp_path))


def test_the_example_of_the_documentation_is_read(little_set):
    page = Path(__file__).resolve().parents[3] / "docs" / "datasets.md"
    made = little_set()
    made.content = json.loads(page.read_text(encoding="utf-8").split("```json")[1].split("```")[0])
    dicts = _load(made.write())
    assert [d["camera_id"] for d in dicts] == [0, 1]
    assert [[a["person_id"] for a in d["annotations"]] for d in dicts] == [[0], [0, -1]]
