import json
import os

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from kd_search.cli import check, convert
from kd_search.data import register_person_search_coco
from kd_search.data.person_search.check import check_split
from kd_search.data.person_search.register import SplitFiles, load_split


def _split(made):
    query_info = None if made.query_info is None else str(made.query_info)
    return SplitFiles(str(made.json_file), str(made.images), query_info).load(clip=False)


def _found(report):
    return [(defect.kind, defect.where) for defect in report.defects]


@pytest.fixture
def clean(little_set):
    """Two people, each in two images, and one query of each."""

    def make(name="clean", first=1, prefix=""):
        made = little_set(name)
        for i in range(3):
            people = [(first, [0, 0, 10, 20]), (first + 1, [20, 0, 44, 48]), (-1, [12, 0, 5, 9])]
            made.add_image(f"{prefix}c1s1_{i}.png", people)
        return made

    return make


def test_a_clean_set_has_counts_and_no_defect(clean):
    made = clean().write_queries("1 0 0 10 20 c1s1_0", "2 20 0 44 48 c1s1_1")
    report = check_split(_split(made))
    assert report.ok and report.defects == []
    assert report.counts == {
        "images": 3,
        "images_without_people": 0,
        "cameras": 1,
        "boxes": 9,
        "labelled_boxes": 6,
        "unlabelled_boxes": 3,
        "crowd_boxes": 0,
        "identities": 2,
        "queries": 2,
        "query_identities": 2,
    }
    assert "no defect found" in str(report)


@pytest.mark.parametrize(
    ("bbox", "kind"),
    [
        ([-1, 0, 10, 10], "box_out_of_image"),
        ([0, -3, 10, 10], "box_out_of_image"),
        ([55, 0, 10, 10], "box_out_of_image"),
        ([0, 40, 10, 10], "box_out_of_image"),
        ([5, 5, 0, 10], "box_empty"),
        ([5, 5, 10, -2], "box_empty"),
        ([64, 0, 10, 10], "box_empty"),
        ([-20, 0, 10, 10], "box_empty"),
    ],
)
def test_boxes_outside_of_the_image_or_without_area_are_found(clean, bbox, kind):
    made = clean().add_image("bad.png", [(-1, bbox)])
    assert _found(check_split(_split(made))) == [(kind, "bad.png")]


def test_rounding_at_the_border_is_no_defect(clean):
    made = clean().add_image("a.png", [(-1, [-1e-3, 0, 64.002, 48.001])])
    assert check_split(_split(made)).ok


def test_an_id_twice_in_an_image_and_an_id_in_one_image_only_are_found(clean):
    made = clean().add_image("bad.png", [(9, [0, 0, 9, 9]), (9, [9, 9, 9, 9])])
    report = check_split(_split(made))
    assert _found(report) == [("id_twice_in_image", "bad.png"), ("id_in_one_image", "id 9")]
    assert "id 9 is on 2 boxes" in str(report) and "is only in bad.png" in str(report)


def test_several_unlabelled_people_are_no_defect(clean):
    made = clean().add_image("a.png", [(-1, [0, 0, 9, 9]), (-1, [9, 9, 9, 9])])
    assert check_split(_split(made)).ok


def test_missing_unreadable_and_wrongly_sized_images_are_found(clean):
    made = clean()
    for name in ("gone.png", "torn.png", "size.png"):
        made.add_image(name)
    (made.images / "gone.png").unlink()
    (made.images / "torn.png").write_bytes((made.images / "torn.png").read_bytes()[:200])
    made.content["images"][5]["width"] = 65
    split = _split(made.write())
    report = check_split(split)
    assert _found(report) == [
        ("image_missing", "gone.png"),
        ("image_unreadable", "torn.png"),
        ("size_mismatch", "size.png"),
    ]
    assert "the image is 64 x 48, its entry has 65 x 48" in str(report)
    unread = check_split(split, decode=False)
    assert unread.ok and unread.notes == ["images not decoded"]


def test_queries_without_match_annotation_or_sound_box_are_found(clean):
    made = clean().add_image("d.png", [(3, [0, 0, 30, 30])])
    made.write_queries("1 0 0 10 20 c1s1_0", "3 0 0 30 30 d", "2 -6 0 6 20 c1s1_0", "1 0 0 0 5 d")
    found = _found(check_split(_split(made)))
    assert found == [
        ("id_in_one_image", "id 3"),
        ("query_empty", "query 2 (id 2 in c1s1_0.png)"),
        ("query_not_annotated", "query 2 (id 2 in c1s1_0.png)"),
        ("query_without_match", "query 1 (id 3 in d.png)"),
        ("query_empty", "query 3 (id 1 in d.png)"),
        ("query_not_annotated", "query 3 (id 1 in d.png)"),
    ]


def test_an_image_outside_of_the_gallery_is_no_match(clean):
    made = clean().write_queries("1 0 0 10 20 c1s1_0")
    for image in made.content["images"]:
        image["in_gallery"] = image["id"] == 1
    assert [kind for kind, _ in _found(check_split(_split(made.write())))] == [
        "query_without_match"
    ]


def test_ids_and_images_on_both_sides_are_found(clean):
    train, test = clean("a"), clean("b", first=2, prefix="test_")
    report = check_split(_split(train), partner=_split(test))
    assert _found(report) == [("id_in_train_and_test", "id 2")]
    same = check_split(_split(train), partner=_split(train))
    assert same.by_kind() == {"id_in_train_and_test": 2, "image_in_train_and_test": 3}
    assert check_split(_split(train), partner=_split(clean("c", first=7))).ok


def test_ids_of_different_numberings_are_not_compared(clean):
    train, test = _split(clean("a")), _split(clean("b", prefix="test_"))
    train.id_space, test.name, test.id_space = "x relabelled", "x_test", "x"
    report = check_split(train, partner=test)
    assert report.ok and len(report.notes) == 1 and "not compared with x_test" in report.notes[0]


def test_a_set_registered_elsewhere_can_be_checked(clean, registry):
    split = _split(clean())
    registry.append("elsewhere")
    DatasetCatalog.register("elsewhere", lambda: split.dicts)
    MetadataCatalog.get("elsewhere").set(person_ids=tuple(split.id_map.to_list()))
    report = check_split(load_split("elsewhere"))
    assert report.ok and report.counts["boxes"] == 9


def test_the_tool_ends_with_0_1_or_2(clean, capsys, tmp_path):
    made = clean()
    args = ["--json", str(made.json_file), "--images", str(made.images)]
    assert check.main(args) == 0
    assert "no defect found" in capsys.readouterr().out
    assert check.main([*args, "--test-json", str(made.json_file)]) == 1
    assert "5 defects" in capsys.readouterr().out
    made.json_file.write_text("{")
    assert check.main(args) == 2
    said = capsys.readouterr()
    assert said.err.startswith("check: ") and said.err.count("\n") == 1
    assert "people.json" in said.err and said.out == ""


@pytest.mark.parametrize(
    "args",
    [
        ["--dataset", "nobody"],
        ["--dataset", "prw_c6_train"],
        ["--json", "none.json", "--images", "."],
        ["--json", "none.json", "--images", "no/folder"],
    ],
)
def test_unusable_input_ends_with_2_and_one_line(args, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KD_SEARCH_PRW_C6", raising=False)
    assert check.main(args) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "args",
    [[], ["--json", "a"], ["--dataset", "a", "--images", "b"], ["--json", "a", "--dataset", "b"]],
)
def test_options_that_do_not_fit_together_end_with_2(args, capsys):
    with pytest.raises(SystemExit) as stop:
        check.main(args)
    assert stop.value.code == 2


def test_a_test_set_that_is_not_there_yet_is_noted(clean, registry, capsys):
    made = clean()
    for name, json_file in (("own_train", str(made.json_file)), ("own_test", "/no/test.json")):
        register_person_search_coco(name, json_file, str(made.images))
        registry.append(name)
    assert check.main(["--dataset", "own_train", "--no-decode"]) == 0
    assert "overlap with own_test not checked: /no/test.json" in capsys.readouterr().out


def test_the_partner_of_a_registered_set_is_found_by_its_name(clean, registry, capsys):
    made, other = clean("a"), clean("b", first=2, prefix="test_")
    for name, split in (("own_train", made), ("own_test", other)):
        register_person_search_coco(name, str(split.json_file), str(split.images))
        registry.append(name)
    for name in ("own_train", "own_test"):
        assert check.main(["--dataset", name]) == 1
        assert "id 2: is in own_" in capsys.readouterr().out
    assert check.main(["--dataset", "own_train", "--test-dataset", "own_train"]) == 1
    assert "image_in_train_and_test" in capsys.readouterr().out


def test_the_json_report_holds_counts_and_defects(clean, tmp_path):
    made = clean().add_image("bad.png", [(9, [0, 0, 90, 9])])
    args = ["--json", str(made.json_file), "--images", str(made.images)]
    assert check.main([*args, "--json-report", str(tmp_path / "report.json")]) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["ok"] is False and report["counts"]["images"] == 4
    assert report["defects_by_kind"] == {"box_out_of_image": 1, "id_in_one_image": 1}
    assert report["defects"][0]["where"] == "bad.png"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clean", "report.json"]


def test_the_defects_of_the_prw_subset_are_found(real_data, monkeypatch):
    monkeypatch.setenv("KD_SEARCH_PRW_C6", str(real_data("prw_c6s1")))
    train, test = (load_split(f"prw_c6_{part}", clip=False) for part in ("train", "test"))
    report = check_split(train, partner=test, decode=False)
    kinds = {"box_out_of_image": 5, "id_twice_in_image": 1, "id_in_one_image": 7}
    assert report.by_kind() == kinds
    assert ("id_twice_in_image", "c6s1_000476.jpg") in _found(report)
    assert report.counts["identities"] == 147
    assert check_split(test, decode=False).by_kind() == {"id_in_one_image": 3}


def test_identities_in_a_track_id_are_a_defect_and_convert_writes_them(clean, capsys, tmp_path):
    made = clean()
    content = json.loads(made.json_file.read_text())
    for annotation in content["annotations"]:
        person = annotation.pop("person_id")
        if person >= 0:
            annotation["track_id"] = person
    made.json_file.write_text(json.dumps(content))
    files = ["--json", str(made.json_file), "--images", str(made.images)]
    assert check.main(files) == 1
    printed = capsys.readouterr().out
    assert "no_person_id" in printed and "6 boxes have a track_id" in printed
    output = tmp_path / "converted"
    argv = [*files, "--id-key", "track_id", "--format", "coco", "--output", str(output)]
    assert convert.main(argv) == 0
    assert "9 boxes, 2 ids" in capsys.readouterr().out
    (written,) = output.rglob("*.json")
    name = json.loads(written.read_text())["images"][0]["file_name"]
    (image,) = output.rglob(os.path.basename(name))
    images = str(image)[: -len(name)]
    assert check.main(["--json", str(written), "--images", images]) == 0
    # In videos, tracks of the same number are different people.
    for image in content["images"]:
        image["video_id"] = int(image["file_name"][-5] == "2")
    made.json_file.write_text(json.dumps(content))
    split = SplitFiles(str(made.json_file), str(made.images), id_key="track_id").load()
    assert split.id_map.to_list() == ["0/1", "0/2", "1/1", "1/2"]
    # A file with person_id may have both.
    content["annotations"][0]["person_id"] = 5
    made.json_file.write_text(json.dumps(content))
    assert check_split(_split(made)).by_kind() == {"id_in_one_image": 1}


def test_a_key_that_no_annotation_has_is_named(clean, capsys, tmp_path):
    made = clean()
    argv = ["--json", str(made.json_file), "--images", str(made.images), "--format", "coco"]
    output = tmp_path / "converted"
    assert convert.main([*argv, "--id-key", "instance", "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert made.json_file.name in error and "instance" in error and error.count("\n") == 1
    assert not output.exists()
