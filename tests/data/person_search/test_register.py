import os

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from kd_search.data import (
    IDMap,
    builtin,
    get_id_map,
    get_person_search_dicts,
    register_person_search_coco,
)


def _register(registry, name, made):
    registry.append(name)
    query_info = None if made.query_info is None else str(made.query_info)
    register_person_search_coco(name, str(made.json_file), str(made.images), query_info)
    return name


def test_registering_reads_nothing_and_loading_fills_the_metadata(little_set, registry):
    made = little_set()
    name = _register(registry, "own_test", made)
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["person"] and metadata.evaluator_type == "person_search"
    assert metadata.image_root == str(made.images)
    made.add_image("a.png", [(30, [0, 0, 9, 9]), (4, [0, 0, 8, 8]), (-1, [0, 0, 7, 7])])
    dicts = DatasetCatalog.get(name)
    assert metadata.person_ids == (4, 30)
    assert [a["person_id"] for a in dicts[0]["annotations"]] == [1, 0, -1]


def test_the_id_map_of_a_test_set_covers_its_queries(little_set, registry):
    made = little_set().add_image("a.png", [(30, [0, 0, 9, 9])]).write_queries("5 0 0 9 9 a")
    name = _register(registry, "own_test", made)
    dicts, id_map = get_person_search_dicts(name)
    assert id_map == IDMap([5, 30]) == get_id_map(name)
    assert dicts[0]["queries"] == [{"query_id": 0, "bbox": [0, 0, 9, 9], "person_id": 0}]
    assert dicts[0]["annotations"][0]["person_id"] == 1


def test_files_made_anew_are_read_anew(little_set, registry):
    made = little_set().add_image("a.png", [(1, [0, 0, 9, 9])])
    name = _register(registry, "own_train", made)
    assert get_id_map(name) == IDMap([1])
    made.add_image("b.png", [(2, [0, 0, 9, 9])])
    assert get_id_map(name) == IDMap([1, 2])


def test_two_training_sets_keep_their_people_apart(little_set, registry):
    a = little_set("a").add_image("a.png", [(1, [0, 0, 9, 9]), (2, [0, 0, 9, 9])])
    b = little_set("b").add_image("b.png", [(1, [0, 0, 9, 9]), (-1, [0, 0, 9, 9])])
    names = (_register(registry, "set_b", b), _register(registry, "set_a", a))
    dicts, id_map = get_person_search_dicts(names)
    assert id_map.to_list() == ["set_a/1", "set_a/2", "set_b/1"]
    assert [[x["person_id"] for x in d["annotations"]] for d in dicts] == [[2, -1], [0, 1]]


def test_unknown_and_foreign_sets_are_refused_by_name(registry):
    with pytest.raises(ValueError, match="'prw_trian' is not registered, .*prw_train"):
        get_person_search_dicts("prw_trian")
    registry.append("foreign")
    DatasetCatalog.register("foreign", lambda: [])
    with pytest.raises(ValueError, match="'foreign'"):
        get_person_search_dicts("foreign")
    with pytest.raises(ValueError, match="DATASETS.TRAIN"):
        get_person_search_dicts(())


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("prw_train", "DETECTRON2_DATASETS"),
        ("prw_test", "DETECTRON2_DATASETS"),
        ("cuhk_sysu_train", "DETECTRON2_DATASETS"),
        ("cuhk_sysu_test", "DETECTRON2_DATASETS"),
        ("kd_generated_train", "KD_SEARCH_GENERATED"),
        ("kd_generated_test", "KD_SEARCH_GENERATED"),
        ("prw_c6_train", "KD_SEARCH_PRW_C6"),
        ("prw_c6_test", "KD_SEARCH_PRW_C6"),
        ("prw_mini_test", "DETECTRON2_DATASETS"),
        ("mot_train", "KD_SEARCH_MOT"),
        ("mot_test", "KD_SEARCH_MOT"),
    ],
)
def test_a_missing_builtin_set_says_in_one_line_what_to_set(name, variable, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for value in (str(tmp_path), None):
        monkeypatch.delenv(variable, raising=False)
        if value is not None:
            monkeypatch.setenv(variable, value)
        with pytest.raises(FileNotFoundError, match=f"^{name}: .*set {variable}") as error:
            DatasetCatalog.get(name)
        assert "\n" not in str(error.value)


def test_prw_is_found_in_its_documented_layout(little_set, monkeypatch, tmp_path):
    made = little_set("prw").add_image("c1s1_000001.png", [(-2, [0, 0, 9, 9]), (479, [0, 0, 9, 9])])
    os.mkdir(made.root / "annotations")
    os.rename(made.json_file, made.root / "annotations" / "test_pid.json")
    os.rename(made.images, made.root / "frames")
    made.write_queries("479 0 0 9 9 c1s1_000001")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    dicts, id_map = get_person_search_dicts("prw_test")
    assert id_map == IDMap([479])
    assert [a["person_id"] for a in dicts[0]["annotations"]] == [-1, 0]
    assert os.path.isfile(dicts[0]["file_name"]) and len(dicts[0]["queries"]) == 1


def test_registering_the_builtin_sets_touches_no_file(monkeypatch):
    names = []
    known = DatasetCatalog.list()
    monkeypatch.setattr(DatasetCatalog, "list", lambda: [])
    monkeypatch.setattr(DatasetCatalog, "register", lambda name, _: names.append(name))
    monkeypatch.setattr(MetadataCatalog, "remove", lambda _: None)
    monkeypatch.setattr("builtins.open", lambda *_, **__: pytest.fail("a file was opened"))
    for check in ("exists", "isfile", "isdir"):
        monkeypatch.setattr(os.path, check, lambda _: pytest.fail("a file was looked for"))
    builtin.register_builtin()
    monkeypatch.undo()
    # 11 person search, 7 detection and 20 re-ID sets.
    assert len(names) == len(set(names)) == 38 and set(names) <= set(known)


def test_sets_that_are_registered_already_are_kept(monkeypatch):
    names = []
    monkeypatch.setattr(DatasetCatalog, "register", lambda name, _: names.append(name))
    builtin.register_builtin()
    assert names == []
