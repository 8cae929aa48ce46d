"""kd-search generate and the registered sets kd_generated_*."""

import os

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from kd_search.cli import generate as tool
from kd_search.data.generated import register_generated


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated") / "tiny"
    assert tool.main(["--preset", "tiny", "--output", str(folder), "--seed", "3"]) == 0
    return str(folder)


def test_the_tool_keeps_refuses_and_overwrites(root, capsys):
    base = ["--preset", "tiny", "--output", root]
    assert tool.main([*base, "--seed", "3"]) == 0
    assert capsys.readouterr().out.startswith("kept ")
    assert tool.main([*base, "--seed", "4"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--overwrite" in error and root in error


def test_the_tool_names_a_bad_option_in_one_line(tmp_path, capsys):
    output = str(tmp_path / "set")
    assert tool.main(["--preset", "tiny", "--output", output, "--num-cameras", "1"]) == 2
    assert capsys.readouterr().err.strip().endswith("num_cameras must be at least 2")
    assert not os.path.exists(output)


def test_people_grow_with_the_image():
    args = tool.parse_args(["--height", "384", "--width", "640", "--num-train-ids", "9"])
    config = tool.build_config(args)
    assert (config.scene.width, config.scene.height) == (640, 384)
    assert (config.scene.min_person_height, config.scene.max_person_height) == (90, 260)
    assert config.num_train_ids == 9


def test_registered_sets_hold_the_generated_people_and_queries(root):
    register_generated(root, prefix="kd_generated_under_test")
    train = DatasetCatalog.get("kd_generated_under_test_train")
    test = DatasetCatalog.get("kd_generated_under_test_test")
    assert len(train) == 12 and len(test) == 8
    assert MetadataCatalog.get("kd_generated_under_test_train").person_ids == tuple(range(1, 7))
    assert MetadataCatalog.get("kd_generated_under_test_test").person_ids == tuple(range(7, 11))
    assert not any(record.get("queries") for record in train)
    queries = [(record, query) for record in test for query in record.get("queries", [])]
    assert sorted(query["query_id"] for _, query in queries) == list(range(len(queries)))
    for record, query in queries:
        match = [a for a in record["annotations"] if a["person_id"] == query["person_id"]]
        assert len(match) == 1 and list(match[0]["bbox"]) == list(query["bbox"])
    for record in train + test:
        assert os.path.isfile(record["file_name"])
        assert record["camera_id"] in (1, 2) and record["frame_id"] > 0


def test_a_missing_set_is_noticed_when_used_and_not_before(tmp_path):
    missing = str(tmp_path / "nowhere")
    register_generated(missing, prefix="kd_generated_missing")
    with pytest.raises(FileNotFoundError, match="kd-search generate --kind") as caught:
        DatasetCatalog.get("kd_generated_missing_train")
    assert missing in str(caught.value) and "\n" not in str(caught.value)


def test_the_folder_comes_from_the_environment_at_first_use(root, monkeypatch):
    register_generated(prefix="kd_generated_from_environment")
    monkeypatch.setenv("KD_SEARCH_GENERATED", root)
    assert len(DatasetCatalog.get("kd_generated_from_environment_test")) == 8
