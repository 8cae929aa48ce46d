import os

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from little_release import LittlePRW, cells, put_mat

from kd_search.data import get_person_search_dicts
from kd_search.data.person_search.check import check_split
from kd_search.data.person_search.coco_json import load_coco_json
from kd_search.data.person_search.prw import read_query_info
from kd_search.data.person_search.prw_mat import PRWFiles
from kd_search.data.person_search.register import load_split


@pytest.fixture
def little(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return LittlePRW(tmp_path / "prw")


def test_ids_are_contiguous_over_the_gaps_of_the_release(little):
    little.write()
    dicts, ids = get_person_search_dicts("prw_train")
    # 479 to 482 are missing, 483 and 932 are people of the training set.
    assert ids.to_list() == [478, 483, 932]
    rows = [[a["person_id"] for a in record["annotations"]] for record in dicts]
    assert rows == [[0, -1], [0, 1], [2]]
    assert MetadataCatalog.get("prw_train").person_ids == (478, 483, 932)


def test_each_name_of_the_boxes_is_read_and_boxes_are_clipped(little):
    little.write()
    dicts, _ = get_person_search_dicts("prw_train")
    assert [a["bbox"] for d in dicts for a in d["annotations"]] == [
        [1, 2, 11, 22],
        [20, 2, 29, 32],
        [4, 2, 14, 22],
        [30, 1, 40, 21],
        [0, 2, 6.5, 22.25],
    ]
    unclipped = PRWFiles(str(little.root), "train").load(clip=False)
    assert unclipped.dicts[2]["annotations"][0]["bbox"] == [-3.5, 2, 6.5, 22.25]


def test_the_corrected_boxes_come_first(little):
    little.write()
    old, new = np.array([[5, 1, 1, 9, 9.0]]), np.array([[6, 1, 1, 9, 9.0]])
    path = little.root / "annotations/c1s1_000001.jpg.mat"
    put_mat(path, anno_previous=old, box_new=new)
    assert 6 in PRWFiles(str(little.root), "train").load().id_map


def test_cameras_frames_and_sizes_are_known(little):
    little.write()
    dicts, _ = get_person_search_dicts("prw_test")
    assert [(d["image_id"], d["camera_id"], d["frame_id"]) for d in dicts] == [
        ("c3s1_000001", 3, 1),
        ("c6s2_000026", 6, 26),
        ("c3s1_000051", 3, 51),
    ]
    assert {(d["width"], d["height"]) for d in dicts} == {(64, 48)}
    assert all(os.path.isfile(d["file_name"]) for d in dicts)


def test_the_query_lists_of_prw_and_prw_mini_are_read(little):
    little.write()
    dicts, ids = get_person_search_dicts("prw_test")
    queries = [q for d in dicts for q in d.get("queries", ())]
    assert [(q["query_id"], ids.original(q["person_id"])) for q in queries] == [(0, 479), (1, 933)]
    dicts, ids = get_person_search_dicts("prw_mini_test")
    queries = [q for d in dicts for q in d.get("queries", ())]
    assert [(q["query_id"], ids.original(q["person_id"])) for q in queries] == [(0, 933)]
    assert len(dicts) == 3


def test_frames_without_people_and_with_one_person_are_read(little):
    little.boxes["c1s1_000001"] = ("box_new", [])
    little.boxes["c2s1_000026"] = ("box_new", [[483, 30, 1, 10, 20]])
    loaded = PRWFiles(str(little.write().root), "train").load()
    assert [len(record["annotations"]) for record in loaded.dicts] == [0, 1, 1]


def test_train_and_test_number_people_alike(little):
    little.boxes["c1s1_000001"] = ("box_new", [[933, 1, 2, 10, 20]])
    little.write()
    train, test = (load_split(f"prw_{part}", clip=False) for part in ("train", "test"))
    report = check_split(train, partner=test)
    assert [d.where for d in report.defects if d.kind == "id_in_train_and_test"] == ["id 933"]


def test_boxes_without_area_are_left_out_and_found_by_the_checker(little):
    little.boxes["c1s1_000001"] = ("box_new", [[478, 1, 2, 0, 20], [478, 1, 2, 9, 20]])
    little.write()
    dicts, _ = get_person_search_dicts("prw_train")
    assert len(dicts[0]["annotations"]) == 1
    report = check_split(load_split("prw_train", clip=False))
    assert ("box_empty", "c1s1_000001.jpg") in [(d.kind, d.where) for d in report.defects]


def test_without_the_files_of_the_release_the_json_is_looked_for(little):
    little.write()
    for part in ("train", "test"):
        (little.root / f"frame_{part}.mat").unlink()
    with pytest.raises(FileNotFoundError, match="train_pid.json"):
        get_person_search_dicts("prw_train")


def _frames(root, frames):
    put_mat(root / "frame_train.mat", img_index_train=cells(frames))


def _boxes(root, **content):
    put_mat(root / "annotations/c1s1_000001.jpg.mat", **content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: (r / "frame_train.mat").unlink(), "frame_train.mat: no such file"),
        (
            lambda r: (r / "annotations/c1s1_000001.jpg.mat").unlink(),
            "c1s1_000001.jpg.mat: no such file",
        ),
        (
            lambda r: (r / "frames/c2s1_000026.jpg").unlink(),
            "frame_train.mat: 1 of the 3 images .* the first is .*c2s1_000026.jpg",
        ),
        (
            lambda r: put_mat(r / "frame_train.mat", other=1),
            "frame_train.mat: .*img_index_train.*: other",
        ),
        (lambda r: _frames(r, ["a", "b", "a"]), r"img_index_train\(3\): a is already entry 1"),
        (lambda r: _frames(r, ["a", 3]), r"img_index_train\(2\): expected a string"),
        (lambda r: _frames(r, []), "img_index_train names no frame"),
        (
            lambda r: _boxes(r, boxes=np.ones((1, 5))),
            "000001.jpg.mat: .*box_new.*anno_file.*anno_previous.*: boxes",
        ),
        (lambda r: _boxes(r, box_new=np.ones((2, 4))), r"box_new has shape \(2, 4\)"),
        (
            lambda r: _boxes(r, box_new=np.array([[1, 1, 1, 1, 1], [1, 1, np.nan, 1, 1]])),
            r"box_new\(2,:\) is .*expected five finite",
        ),
        (lambda r: _boxes(r, box_new=np.array([[1.5, 1, 1, 1, 1]])), r"box_new\(1,:\) is .*whole"),
    ],
)
def test_absent_and_broken_files_are_named_with_the_entry(little, change, message):
    little.write()
    change(little.root)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        PRWFiles(str(little.root), "train").load()
    assert "\n" not in str(error.value)


def test_queries_that_do_not_fit_are_named_with_their_line(little):
    little.queries.append("479 1 1 10 20 c1s1_000001")
    little.write()
    with pytest.raises(ValueError, match="query_info.txt, line 3: .*frame"):
        get_person_search_dicts("prw_test")
    (little.root / "query_info.txt").write_bytes(b"\r\n")
    with pytest.raises(ValueError, match="query_info.txt"):
        get_person_search_dicts("prw_test")
    (little.root / "query_info.txt").unlink()
    with pytest.raises(FileNotFoundError, match="query_info.txt"):
        get_person_search_dicts("prw_test")


def test_the_whole_prw_in_json_holds_what_the_paper_says(real_data):
    folder = real_data("prw_c6s1") / "annotations_alignps_json"
    train = load_coco_json(str(folder / "train_pid.json"), "frames")
    test = load_coco_json(str(folder / "test_pid.json"), "frames")
    assert len(train) == 5704 and len(test) == 6112
    assert sum(len(d["annotations"]) for d in train) == 18048
    assert len({a["person_id"] for d in train for a in d["annotations"]} - {-1}) == 483
    assert {d["camera_id"] for d in train} == {d["camera_id"] for d in test} == set(range(1, 7))


def test_the_whole_prw_goes_through_the_files_of_the_release(real_data, tmp_path, monkeypatch):
    """The boxes of the JSON, laid out as the release has them: both loaders agree."""
    folder = real_data("prw_c6s1") / "annotations_alignps_json"
    dicts = load_coco_json(str(folder / "test_pid.json"), "frames", clip=False)[::40]
    with_ids = load_coco_json(str(folder / "test_pid.json"), "frames")[::40]
    frames = [os.path.basename(d["file_name"])[:-4] for d in dicts]
    put_mat(tmp_path / "frame_test.mat", img_index_test=cells(frames))
    for frame, record in zip(frames, dicts):
        rows = [
            [a["person_id"], x0, y0, x1 - x0, y1 - y0]
            for a in record["annotations"]
            for x0, y0, x1, y1 in [a["bbox"]]
        ]
        path = tmp_path / f"annotations/{frame}.jpg.mat"
        put_mat(path, anno_file=np.array(rows, float).reshape(-1, 5))
    sizes = [(d["width"], d["height"]) for d in dicts]
    monkeypatch.setattr("kd_search.data.person_search.prw_mat.read_image_sizes", lambda *_: sizes)
    loaded = PRWFiles(str(tmp_path), "test").load()
    assert len(loaded.dicts) == len(with_ids) == 153
    originals = loaded.id_map.to_list() + [-1]
    for ours, theirs in zip(loaded.dicts, with_ids):
        assert [a["bbox"] for a in ours["annotations"]] == [
            a["bbox"] for a in theirs["annotations"]
        ]
        assert [originals[a["person_id"]] for a in ours["annotations"]] == [
            a["person_id"] for a in theirs["annotations"]
        ]
        assert (ours["camera_id"], ours["frame_id"]) == (theirs["camera_id"], theirs["frame_id"])


def test_the_real_mini_list_has_thirty_queries(real_data):
    queries = read_query_info(str(real_data("prw_c6s1") / "prwmini_query_info.txt"))
    assert len(queries) == 30 and all(q.frame.startswith("c") for q in queries)
