import pytest

from kd_search.data import IDMap, get_person_search_dicts
from kd_search.data.person_search.coco_json import load_coco_json
from kd_search.data.person_search.prw import attach_queries


def _dicts(*names):
    return [
        {"file_name": f"/frames/{name}", "image_id": i, "width": 64, "height": 48}
        for i, name in enumerate(names)
    ]


def _attach(tmp_path, text, dicts, id_map, **kwargs):
    path = tmp_path / "query_info.txt"
    path.write_bytes(text.encode())
    return attach_queries(dicts, str(path), id_map, **kwargs)


def test_queries_go_to_their_frames_with_either_line_end_and_with_or_without_extension(tmp_path):
    text = "484 1.5 2 10 20 c2s1_000001\r\n3 4 5 6 7 c1s1_000002.jpg\n\n484 0 0 5 5 c1s1_000002"
    dicts = _attach(tmp_path, text, _dicts("c2s1_000001.jpg", "c1s1_000002.jpg"), IDMap([3, 484]))
    assert dicts[0]["queries"] == [{"query_id": 0, "bbox": [1.5, 2, 11.5, 22], "person_id": 1}]
    assert dicts[1]["queries"] == [
        {"query_id": 1, "bbox": [4, 5, 10, 12], "person_id": 0},
        {"query_id": 2, "bbox": [0, 0, 5, 5], "person_id": 1},
    ]


def test_boxes_are_clipped_to_the_frame(tmp_path):
    dicts = _attach(tmp_path, "3 -4 40 10 20 a", _dicts("a.jpg"), IDMap([3]))
    assert dicts[0]["queries"][0]["bbox"] == [0, 40, 6, 48]
    dicts = _attach(tmp_path, "3 -4 40 10 20 a", _dicts("a.jpg"), IDMap([3]), clip=False)
    assert dicts[0]["queries"][0]["bbox"] == [-4, 40, 6, 60]


def test_string_ids_frames_with_spaces_and_dots(tmp_path):
    dicts = _attach(tmp_path, "7 1 1 5 5 my frame.01", _dicts("my frame.01.jpg"), IDMap(["7"]))
    assert dicts[0]["queries"][0]["person_id"] == 0


def test_a_folder_in_the_name_tells_equal_names_apart(tmp_path):
    dicts = _dicts("day1/a.jpg", "day2/a.jpg")
    _attach(tmp_path, "3 1 1 5 5 day2/a", dicts, IDMap([3]))
    assert "queries" not in dicts[0] and len(dicts[1]["queries"]) == 1
    with pytest.raises(ValueError, match="line 1: 2 frames .*'a.jpg'"):
        _attach(tmp_path, "3 1 1 5 5 a.jpg", dicts, IDMap([3]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("3 1 1 5 a", "expected 'pid x y w h frame'"),
        ("3 1 1 five 5 a", "four finite numbers"),
        ("3 1 1 nan 5 a", "four finite numbers"),
        ("-2 1 1 5 5 a", "needs the id of a person"),
        ("4 1 1 5 5 a", "'4' is not an id of this set"),
        ("bob 1 1 5 5 a", "'bob' is not an id of this set"),
        ("3 1 1 5 5 b", "no frame of this set is named 'b'"),
        ("3 100 1 5 5 a", "the box lies outside of frame a"),
    ],
)
def test_a_bad_line_is_refused_by_number(tmp_path, line, message):
    with pytest.raises(ValueError, match=f"query_info.txt, line 2: .*{message}"):
        _attach(tmp_path, f"3 1 1 5 5 a\n{line}\n", _dicts("a.jpg"), IDMap([3]))


def test_a_query_file_without_queries_or_that_is_missing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="query_info.txt"):
        _attach(tmp_path, "\r\n", _dicts("a.jpg"), IDMap([3]))
    with pytest.raises(FileNotFoundError, match="none.txt"):
        attach_queries([], str(tmp_path / "none.txt"), IDMap([3]))


def test_the_real_prw_query_format_is_read(real_data, tmp_path):
    root = real_data("prw_c6s1")
    lines = (root / "prwmini_query_info.txt").read_text().split("\n")
    frames = {line.split()[5] for line in lines if line.strip()}
    dicts = [{**d, "width": 1920, "height": 1080} for d in _dicts(*(f"{f}.jpg" for f in frames))]
    ids = {int(line.split()[0]) for line in lines if line.strip()}
    attach_queries(dicts, str(root / "prwmini_query_info.txt"), IDMap(ids))
    assert sum(len(d["queries"]) for d in dicts) == sum(bool(line.strip()) for line in lines)


def test_the_real_annotation_files_hold_what_prw_states(real_data):
    root = real_data("prw_c6s1") / "annotations_alignps_json"
    train = load_coco_json(str(root / "train_pid.json"), "frames")
    assert len(train) == 5704
    people = [a["person_id"] for d in train for a in d["annotations"]]
    assert len(people) == 18048 and len(set(people) - {-1}) == 483 and max(people) == 482
    assert {d["camera_id"] for d in train} == {1, 2, 3, 4, 5, 6}


def test_the_prw_subset_holds_what_it_states(real_data, monkeypatch):
    monkeypatch.setenv("KD_SEARCH_PRW_C6", str(real_data("prw_c6s1")))
    train, train_ids = get_person_search_dicts("prw_c6_train")
    assert (len(train), sum(len(d["annotations"]) for d in train), len(train_ids)) == (
        480,
        1056,
        147,
    )
    test, test_ids = get_person_search_dicts("prw_c6_test")
    assert (len(test), sum(len(d["annotations"]) for d in test)) == (323, 843)
    queries = [q for d in test for q in d.get("queries", ())]
    assert sorted(q["query_id"] for q in queries) == list(range(328))
    query_ids = {test_ids.original(q["person_id"]) for q in queries}
    assert len(query_ids) == 77 and not query_ids & set(train_ids.to_list())
