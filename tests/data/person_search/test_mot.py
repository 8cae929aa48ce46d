import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from little_release import put_image, put_sequence

from kd_search.data import get_person_search_dicts, register_motchallenge
from kd_search.data.person_search.check import check_split
from kd_search.data.person_search.mot import MOTFiles, parse_motchallenge_entry
from kd_search.data.person_search.register import load_split

#: frame, id, x, y, w, h, flag, class, visibility
ROWS = [
    (1, 5, 3, 4, 10, 20, 1, 1, 0.5),
    (2, 5, 4, 4, 10, 20, 1, 1, 0.9),
    (4, 5, 6, 4, 10, 20, 1, 1, 1),
    (1, 6, 30, 4, 10, 20, 1, 1, 1),
    (2, 6, 30, 4, 10, 20, 1, 1, 0.1),
    (1, 7, 1, 1, 5, 5, 0, 1, 1),
    (1, 8, 2, 1, 5, 5, 0, 8, 1),
    (1, 9, 2, 1, 5, 5, 1, 3, 1),
    (1, 10, 2, 1, 5, 5, 1, 7, 1),
    (9, 5, 2, 1, 5, 5, 1, 1, 1),
]


@pytest.fixture
def root(tmp_path):
    """MOT17-04 with four of nine frames, MOT17-02 with two."""
    put_sequence(tmp_path / "MOT17-04-FRCNN", ROWS, [1, 2, 3, 4], length=9)
    rows = [(1, 5, 3, 4, 10, 20, 1, 1, 1), (2, 5, -4, 4, 10, 20, 1, 1, 1)]
    put_sequence(tmp_path / "MOT17-02-SDP", rows, [1, 2])
    return tmp_path


def test_sequences_are_cameras_and_ids_belong_to_them(root):
    loaded = MOTFiles(str(root)).load()
    assert loaded.id_map.to_list() == ["MOT17-02/5", "MOT17-04/5", "MOT17-04/6"]
    assert [(d["image_id"], d["camera_id"], d["frame_id"]) for d in loaded.dicts] == [
        ("MOT17-02/000001", 0, 1),
        ("MOT17-02/000002", 0, 2),
        ("MOT17-04/000001", 1, 1),
        ("MOT17-04/000002", 1, 2),
        ("MOT17-04/000003", 1, 3),
        ("MOT17-04/000004", 1, 4),
    ]
    assert loaded.metadata["camera_names"] == {0: "MOT17-02", 1: "MOT17-04"}
    assert {(d["width"], d["height"]) for d in loaded.dicts} == {(64, 48)}


def test_coordinates_count_from_zero_and_boxes_are_clipped(root):
    files = MOTFiles(str(root), sequences=("MOT17-02",))
    boxes = [d["annotations"][0]["bbox"] for d in files.load().dicts]
    assert boxes == [[2, 3, 12, 23], [0, 3, 5, 23]]
    unclipped = files.load(clip=False).dicts[1]["annotations"][0]["bbox"]
    assert unclipped == [-5, 3, 5, 23]


def _kinds(loaded):
    """(original id or None, crowd) of the boxes of each frame."""
    ids = loaded.id_map.to_list() + [None]
    return {
        d["image_id"]: [(ids[a["person_id"]], a["iscrowd"]) for a in d["annotations"]]
        for d in loaded.dicts
    }


def test_flags_classes_and_visibility_decide_what_a_box_is(root):
    loaded = MOTFiles(str(root), sequences=("MOT17-04-FRCNN",)).load()
    assert _kinds(loaded) == {
        "MOT17-04/000001": [
            ("MOT17-04/5", 0),
            ("MOT17-04/6", 0),
            (None, 1),
            (None, 1),
            (None, 1),
        ],
        "MOT17-04/000002": [("MOT17-04/5", 0), (None, 1)],
        "MOT17-04/000003": [],
        "MOT17-04/000004": [("MOT17-04/5", 0)],
    }
    assert loaded.notes == [
        "5 frames of seqinfo.ini are not on disk and are left out",
        "1 boxes are less visible than 0.3 and ignored",
        "1 boxes are flagged 0 and are ignored regions",
        "2 boxes show people of other classes and are ignored regions",
        "1 boxes are of other classes and are left out",
        "1 boxes are in frames that are not on disk and are left out",
    ]


def test_filters_can_be_changed(root):
    options = {"sequences": ("MOT17-04",), "classes": (1, 7), "min_visibility": 0.05}
    kinds = _kinds(MOTFiles(str(root), **options).load())
    assert kinds["MOT17-04/000002"] == [("MOT17-04/5", 0), ("MOT17-04/6", 0)]
    assert ("MOT17-04/10", 0) in kinds["MOT17-04/000001"]
    thinned = MOTFiles(str(root), sequences=("MOT17-04",), frame_step=3).load()
    assert [d["frame_id"] for d in thinned.dicts] == [1, 4]


def test_copies_for_other_detectors_are_taken_once(root):
    for detector in ("DPM", "SDP"):
        put_sequence(root / f"MOT17-04-{detector}", ROWS, [1, 2])
    put_sequence(root / "MOT17-02-DPM", [], [1, 2])
    loaded = MOTFiles(str(root)).load()
    assert len(loaded.dicts) == 6 and "FRCNN" in loaded.dicts[-1]["file_name"]
    assert "SDP" in loaded.dicts[0]["file_name"]
    assert loaded.notes[0] == "3 copies of sequences for other detectors are left out"
    chosen = MOTFiles(str(root), sequences=("MOT17-04-DPM",)).load()
    assert "MOT17-04-DPM" in chosen.dicts[0]["file_name"] and len(chosen.dicts) == 2


def test_the_train_folder_below_is_found(root, tmp_path):
    (tmp_path / "MOT17").mkdir()
    for folder in list(root.glob("MOT17-*")):
        (tmp_path / "MOT17/train").mkdir(exist_ok=True)
        folder.rename(tmp_path / "MOT17/train" / folder.name)
    assert len(MOTFiles(str(tmp_path / "MOT17")).load().dicts) == 6


def test_the_first_box_that_can_be_seen_and_has_a_match_is_the_query(root):
    loaded = MOTFiles(str(root), queries=True, gallery_gap=2, query_visibility=0.6).load()
    queries = [(d["image_id"], q) for d in loaded.dicts for q in d.get("queries", ())]
    # 5 is hardly visible in frame 1; from frame 2 on, only frame 4 is two or more away. 6 is seen
    # once, and 5 of the other sequence again only in the next frame.
    row = loaded.id_map.row("MOT17-04/5")
    assert queries == [
        ("MOT17-04/000002", {"query_id": 0, "bbox": [3, 3, 13, 23], "person_id": row})
    ]
    assert "2 people in a sequence have no query" in loaded.notes
    gallery = loaded.galleries["gap2"]
    names = [loaded.dicts[i]["image_id"] for i in gallery["images"]]
    assert names == ["MOT17-02/000001", "MOT17-02/000002", "MOT17-04/000004"]
    assert gallery["offsets"].tolist() == [0, 3] and gallery["query_ids"].tolist() == [0]
    none = [np.nan] * 4
    np.testing.assert_array_equal(gallery["boxes"], np.array([none, none, [5, 3, 15, 23]]))


def test_frames_that_are_apart_anyway_need_no_gallery_list(root):
    loaded = MOTFiles(str(root), queries=True, gallery_gap=3, frame_step=3).load()
    assert not loaded.galleries
    loaded = MOTFiles(str(root), queries=True, gallery_gap=1).load()
    assert not loaded.galleries


def test_galleries_agree_with_a_plain_search(tmp_path):
    rng = np.random.default_rng(1)
    for name in ("A", "B"):
        rows = [
            (frame, person, *rng.integers(1, 20, 4), 1, 1, rng.choice([0.1, 0.5, 0.9]))
            for frame in range(1, 13)
            for person in range(1, 5)
            if rng.random() < 0.5
        ]
        put_sequence(tmp_path / name, rows, range(1, 13))
    loaded = MOTFiles(str(tmp_path), queries=True, gallery_gap=4).load()
    gallery = loaded.galleries["gap4"]
    queries = {q["query_id"]: (q, d) for d in loaded.dicts for q in d.get("queries", ())}
    assert len(queries) >= 4 and sorted(queries) == gallery["query_ids"].tolist()
    entry = 0
    for query_id in gallery["query_ids"]:
        query, own = queries[query_id]
        for i, record in enumerate(loaded.dicts):
            near = abs(record["frame_id"] - own["frame_id"]) < 4
            if record["camera_id"] == own["camera_id"] and near:
                continue
            assert gallery["images"][entry] == i
            boxes = [
                a["bbox"]
                for a in record["annotations"]
                if a["person_id"] == query["person_id"] and not a["iscrowd"]
            ]
            expected = boxes[0] if boxes else [np.nan] * 4
            np.testing.assert_array_equal(gallery["boxes"][entry], expected)
            entry += 1
    assert entry == len(gallery["images"]) == gallery["offsets"][-1]


def test_a_query_file_replaces_the_rule(root):
    (root / "query_info.txt").write_text("MOT17-04/5 3 4 10 20 MOT17-04-FRCNN/img1/000002\n")
    loaded = MOTFiles(str(root), queries=True).load()
    assert not loaded.galleries
    assert loaded.dicts[3]["queries"][0]["bbox"] == [3, 4, 13, 24]


def test_old_ground_truth_and_missing_seqinfo_are_read(tmp_path):
    rows = [(1, 2, 3, 4, 10, 20, 1, -1, -1, -1), (2, -1, 3, 4, 10, 20, 1, -1, -1, -1)]
    put_sequence(tmp_path / "TUD", rows, [1, 2])
    (tmp_path / "TUD/seqinfo.ini").unlink()
    put_image(tmp_path / "TUD/img1/000002.jpg", (30, 31))
    loaded = MOTFiles(str(tmp_path)).load()
    assert _kinds(loaded) == {"TUD/000001": [("TUD/2", 0)], "TUD/000002": [(None, 0)]}
    assert [(d["width"], d["height"]) for d in loaded.dicts] == [(64, 48), (30, 31)]


def test_ids_can_be_shared_by_sequences_that_say_so(tmp_path):
    rows = [(1, 5, 3, 4, 10, 20, 1, 1, 1)]
    info = ("", "[kd_search]", "camera_id=7", "shared_ids=yes")
    put_sequence(tmp_path / "A", rows, [1], info=info)
    put_sequence(tmp_path / "B", rows, [1], info=(*info[:2], "camera_id=3", info[3]))
    loaded = MOTFiles(str(tmp_path), queries=True).load()
    assert loaded.id_map.to_list() == [5]
    assert [d["camera_id"] for d in loaded.dicts] == [7, 3]
    # The match is in the other sequence, however near its frame number.
    assert [q["query_id"] for d in loaded.dicts for q in d["queries"]] == [0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.rename(r.with_name("gone")), "no sequence there or in train/ below"),
        (lambda r: (r / "A/gt/gt.txt").unlink(), "A/gt/gt.txt: no such file"),
        (lambda r: (r / "A/gt/gt.txt").write_text("1,2,3,4,5,6,x\n"), "A/gt/gt.txt: .*'x'"),
        (lambda r: (r / "A/gt/gt.txt").write_text("1,2,3\n"), "A/gt/gt.txt: 3 columns, expected"),
        (
            lambda r: (r / "A/gt/gt.txt").write_text("1,2,3,4,5,6,1,1,1\n1,2,3,4,5,6,1,1\n"),
            "A/gt/gt.txt: .*row",
        ),
        (
            lambda r: (r / "A/gt/gt.txt").write_text("0,2,3,4,5,6,1,1,1\n"),
            "A/gt/gt.txt: entry 1 is .*frames count from 1",
        ),
        (lambda r: (r / "A/gt/gt.txt").write_text("1,2,3,4,nan,6,1,1,1\n"), "gt.txt: entry 1 is"),
        (lambda r: (r / "A/seqinfo.ini").write_text("name=A\n"), "A/seqinfo.ini: "),
        (
            lambda r: (r / "A/seqinfo.ini").write_text("[Sequence]\nseqLength=many\n"),
            "A/seqinfo.ini: .*many",
        ),
        (lambda r: put_image(r / "A/img1/000001.jpg", (9, 9)), "seqinfo.ini .* 64 x 48, .* 9 x 9"),
        (lambda r: put_image(r / "A/img1/first.jpg"), "first.jpg: the name is not the number"),
        (lambda r: put_image(r / "A/img1/1.png"), "frame 1 is also"),
        (lambda r: (r / "A/img1").rename(r / "A/img2"), "A/img1: no such folder"),
    ],
)
def test_absent_and_broken_files_are_named(tmp_path, change, message):
    root = tmp_path / "root"
    put_sequence(root / "A", [(1, 2, 3, 4, 10, 20, 1, 1, 1)], [1])
    change(root)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        MOTFiles(str(root)).load()
    assert "\n" not in str(error.value)


def test_what_cannot_work_is_refused(root):
    with pytest.raises(ValueError, match="'MOT16-01' .*: MOT17-02, MOT17-04"):
        MOTFiles(str(root), sequences=("MOT16-01",)).load()
    with pytest.raises(ValueError, match="0.8 .*50 .*query_visibility or gallery_gap"):
        MOTFiles(str(root), queries=True, gallery_gap=50).load()
    with pytest.raises(ValueError, match="frame_step"):
        MOTFiles(str(root), frame_step=0)
    with pytest.raises(ValueError, match="min_visibility"):
        MOTFiles(str(root), min_visibility=30)
    for folder in root.iterdir():
        for image in folder.glob("img1/*"):
            image.unlink()
    with pytest.raises(ValueError, match="2 sequences"):
        MOTFiles(str(root)).load()


def test_a_folder_is_registered_by_name_and_from_strings(root, registry):
    registry += ["own_mot_train", "own_mot_test"]
    register_motchallenge("own_mot_train", str(root), sequences=("MOT17-02",))
    assert len(get_person_search_dicts("own_mot_train")[0]) == 2
    entry = ["own_mot_test", str(root), "queries=yes", "sequences=MOT17-04,", "classes=1,7"]
    name, folder, options = parse_motchallenge_entry([*entry, "gallery_gap=2", "frame_step=1"])
    register_motchallenge(name, folder, **options)
    get_person_search_dicts("own_mot_test")
    assert list(MetadataCatalog.get("own_mot_test").search_galleries) == ["gap2"]
    split = load_split("own_mot_test", clip=False)
    assert split.id_space == "motchallenge"
    report = check_split(split, partner=load_split("own_mot_train", clip=False))
    assert report.counts["gap2_queries"] == 1 and report.counts["crowd_boxes"] == 3
    assert not any(d.kind.endswith("train_and_test") for d in report.defects)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (["name"], "must be .name, folder. and options"),
        (["name", "folder", 3], "must be .name, folder. and options"),
        (["name", "folder", "gap=3"], "'gap=3' must be option=value, with one of"),
        (["name", "folder", "queries"], "'queries' must be option=value"),
        (["name", "folder", "queries=perhaps"], "queries=perhaps: not a value of this option"),
        (["name", "folder", "classes=one"], "classes=one: not a value"),
    ],
)
def test_other_strings_are_refused(entry, message):
    with pytest.raises(ValueError, match=message):
        parse_motchallenge_entry(entry)


def test_the_real_sequences_hold_what_they_state(real_data):
    root = str(real_data("mot17_mini"))
    loaded = MOTFiles(root, min_visibility=0).load()
    boxes, people, frames = {}, {}, {}
    for record in loaded.dicts:
        sequence = record["image_id"][:8]
        frames[sequence] = frames.get(sequence, 0) + 1
        for annotation in record["annotations"]:
            if not annotation["iscrowd"]:
                boxes[sequence] = boxes.get(sequence, 0) + 1
                people.setdefault(sequence, set()).add(annotation["person_id"])
    assert frames == {"MOT17-02": 4, "MOT17-04": 8}
    assert boxes == {"MOT17-02": 88, "MOT17-04": 336}
    assert {k: len(v) for k, v in people.items()} == {"MOT17-02": 22, "MOT17-04": 42}
    test = MOTFiles(root, queries=True, gallery_gap=3).load()
    assert sum(len(d.get("queries", ())) for d in test.dicts) == 25
    report = check_split(MOTFiles(root, queries=True, gallery_gap=3).load(clip=False))
    assert "query_without_match" not in report.by_kind() and report.counts["gap3_matches"] == 97
