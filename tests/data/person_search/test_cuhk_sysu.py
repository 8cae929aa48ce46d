import logging

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from little_release import LittleCUHK, cells, people, protocol, put_mat, struct

from kd_search.data import get_person_search_dicts
from kd_search.data.person_search import cuhk_sysu
from kd_search.data.person_search.check import check_split
from kd_search.data.person_search.cuhk_sysu import CUHKSYSUFiles
from kd_search.data.person_search.register import load_split
from kd_search.data.person_search.search_protocol import read_search_protocol


@pytest.fixture
def little(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return LittleCUHK(tmp_path / "cuhk_sysu")


def _load(little, split):
    return CUHKSYSUFiles(str(little.root), split).load()


def _people(loaded):
    """Boxes and original ids of each image."""
    ids = loaded.id_map.to_list() + [None]
    return {
        record["image_id"]: [(a["bbox"], ids[a["person_id"]]) for a in record["annotations"]]
        for record in loaded.dicts
    }


def test_training_identities_are_the_rows_of_train_mat(little):
    loaded = _load(little.write(), "train")
    assert _people(loaded) == {
        "s1.jpg": [([1, 2, 11, 22], 0), ([20, 2, 29, 32], None)],
        "s2.jpg": [([5, 5, 15, 25], 0)],
        "s3.jpg": [([6, 6, 16, 26], 1)],
    }
    assert loaded.metadata["person_names"] == ("p20", "p3")
    assert not loaded.galleries
    assert loaded.notes == ["1 boxes without area are left out"]


def test_test_identities_are_those_of_the_protocol(little):
    loaded = _load(little.write(), "test")
    # In the order of pool.mat; the third person of s4.jpg is nobody's match.
    assert list(_people(loaded).items()) == [
        ("s5.jpg", [([2, 2, 10, 18], "p7"), ([22, 2, 30, 18], "p5")]),
        ("s4.jpg", [([1, 1, 9, 17], "p7"), ([20, 1, 28, 17], "p5"), ([40, 1, 48, 17], None)]),
        ("s6.jpg", [([3, 3, 11, 19], None)]),
    ]
    first = loaded.dicts[0]
    assert {k: v for k, v in first.items() if k not in ("annotations", "file_name")} == {
        "image_id": "s5.jpg",
        "height": 48,
        "width": 64,
        "camera_id": -1,
        "frame_id": -1,
        "in_gallery": True,
        "queries": [{"query_id": 1, "bbox": [22, 2, 30, 18], "person_id": loaded.id_map.row("p5")}],
    }
    assert loaded.dicts[1]["queries"] == [
        {"query_id": 0, "bbox": [1, 1, 9, 17], "person_id": loaded.id_map.row("p7")}
    ]


def test_galleries_are_in_the_metadata_by_size_and_subset(little):
    # Entries as in the release's oddest galleries: an image twice, and the query's own.
    rows = little.galleries[50]
    more = [("s6.jpg", None), ("s6.jpg", [3, 3, 8, 16]), ("s4.jpg", None)]
    little.galleries[1000] = [(*rows[0][:3], rows[0][3] + more), rows[1]]
    little.subsets = {("Occlusion", "Occlusion1"): [rows[1]], ("Resolution", "Test_Size"): rows}
    little.write()
    dicts, _ = get_person_search_dicts("cuhk_sysu_test")
    galleries = MetadataCatalog.get("cuhk_sysu_test").search_galleries
    assert list(galleries) == ["G50", "G1000", "occlusion", "resolution"] and len(galleries) == 4
    names = [record["image_id"] for record in dicts]
    large = galleries["G1000"]
    assert {key: value.dtype.name for key, value in large.items()} == {
        "query_ids": "int64",
        "offsets": "int64",
        "images": "int64",
        "boxes": "float64",
    }
    assert large["query_ids"].tolist() == [0, 1] and large["offsets"].tolist() == [0, 5, 7]
    assert [names[i] for i in large["images"][:5]] == ["s5.jpg"] + ["s6.jpg"] * 3 + ["s4.jpg"]
    none = [np.nan] * 4
    expected = [[2, 2, 10, 18], none, none, [3, 3, 11, 19], none, [20, 1, 28, 17], none]
    np.testing.assert_array_equal(large["boxes"], np.array(expected))
    assert galleries["occlusion"]["query_ids"].tolist() == [1]
    assert galleries["G50"]["offsets"].tolist() == [0, 2, 4]
    with pytest.raises(KeyError):
        galleries["G100"]


def test_a_gallery_is_read_when_it_is_asked_for_and_its_arrays_are_ones_own(little):
    little.galleries[100] = [(*row[:3], row[3] * 2) for row in little.galleries[50]]
    little.write()
    loaded = _load(little, "test")
    path = little.root / "annotation/test/train_test/TestG100.mat"
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(FileNotFoundError, match="TestG100.mat"):
        loaded.galleries["G100"]
    path.write_bytes(content)
    first = loaded.galleries["G100"]
    path.unlink()
    first["images"][:] = -1
    assert (loaded.galleries["G100"]["images"] >= 0).all()


def test_the_set_is_found_by_name_in_either_form(little, tmp_path):
    little.write()
    assert len(get_person_search_dicts("cuhk_sysu_train")[1]) == 2
    get_person_search_dicts("cuhk_sysu_test")
    assert "search_galleries" in MetadataCatalog.get("cuhk_sysu_test").as_dict()
    # Without Images.mat, the converted JSON is looked for; galleries of before do not stay.
    (little.root / "annotation/Images.mat").unlink()
    folder = little.root / "annotations"
    folder.mkdir()
    entry = '{"id": 1, "file_name": "s1.jpg", "width": 64, "height": 48}'
    people_json = '{"image_id": 1, "bbox": [1, 2, 3, 4], "person_id": 3}'
    (folder / "test.json").write_text(f'{{"images": [{entry}], "annotations": [{people_json}]}}')
    (little.root / "query_info.txt").write_text("3 1 2 3 4 s1")
    assert len(get_person_search_dicts("cuhk_sysu_test")[0]) == 1
    assert "search_galleries" not in MetadataCatalog.get("cuhk_sysu_test").as_dict()


def test_the_smallest_gallery_file_says_who_is_who(little):
    rows = little.galleries.pop(50)
    little.galleries[100] = [rows[0]]
    little.galleries[500] = [rows[0]]
    loaded = _load(little.write(), "test")
    assert loaded.id_map.to_list() == ["p7"] and list(loaded.galleries) == ["G100", "G500"]
    assert loaded.notes == [
        "without TestG50.mat, TestG1000.mat, TestG2000.mat, TestG4000.mat: these galleries are "
        "absent",
        "queries and identities are those of TestG100.mat",
        "without Occlusion.mat: this gallery is absent",
        "without Resolution.mat: this gallery is absent",
    ]


def test_what_is_left_out_is_logged(little, caplog):
    little.write()
    with caplog.at_level(logging.INFO, logger="kd_search"):
        get_person_search_dicts("cuhk_sysu_train")
    assert "cuhk_sysu_train: 1 boxes without area are left out" in caplog.text


def test_a_query_that_only_a_subset_has_belongs_to_it_alone(little):
    new = ("p9", "s6.jpg", [3, 3, 8, 16], [("s4.jpg", [40, 1, 8, 16]), ("s5.jpg", None)])
    little.subsets = {("Occlusion", "Occlusion1"): [little.galleries[50][0], new]}
    loaded = _load(little.write(), "test")
    assert loaded.dicts[2]["queries"] == [
        {
            "query_id": 2,
            "bbox": [3, 3, 11, 19],
            "person_id": loaded.id_map.row("p9"),
            "subset": "occlusion",
        }
    ]
    assert loaded.galleries["occlusion"]["query_ids"].tolist() == [0, 2]
    assert "1 queries are in a subset only" in loaded.notes


def test_odd_boxes_with_an_identity_are_counted(little):
    gallery = little.galleries[50]
    gallery[0][3].insert(0, ("s6.jpg", [3, 3, 8, 15]))
    gallery[1][3].insert(0, ("s4.jpg", [1, 1, 8, 16]))
    little.train[1][1].append(("s5.jpg", [2, 2, 8, 16]))
    little.write()
    loaded = _load(little, "test")
    assert _people(loaded)["s6.jpg"] == [([3, 3, 11, 19], None)]
    assert _people(loaded)["s4.jpg"][0] == ([1, 1, 9, 17], "p5")
    notes = [note.split("; the first is ")[0] for note in loaded.notes[-2:]]
    assert notes == [
        "1 boxes with an identity are not among the boxes of Images.mat and are ignored",
        "1 boxes with an identity replace another identity of the same box",
    ]
    assert "TestG50(1).Gallery(1)" in loaded.notes[-2]
    assert (
        "1 boxes with an identity are in images of the other split"
        in _load(little, "train").notes[-1]
    )


def test_the_first_of_equal_boxes_gets_the_identity(little):
    little.boxes["s6.jpg"] = [[9, 9, 8, 16], [3, 3, 8, 16], [3, 3, 8, 16]]
    little.galleries[50][0][3][1] = ("s6.jpg", [3, 3, 8, 16])
    loaded = _load(little.write(), "test")
    assert [person for _, person in _people(loaded)["s6.jpg"]] == [None, "p7", None]


def _drop(root, name):
    next(root.rglob(name)).unlink()


@pytest.mark.parametrize(
    ("split", "change", "message"),
    [
        ("train", lambda c: _drop(c.root, "pool.mat"), "pool.mat: no such file"),
        ("train", lambda c: _drop(c.root, "Train.mat"), "Train.mat: no such file"),
        ("test", lambda c: _drop(c.root, "TestG50.mat"), "train_test.*: no TestG<size>.mat"),
        (
            "test",
            lambda c: _drop(c.root, "s6.jpg"),
            "pool.mat: 1 of the 3 images that it names do not exist; the first is .*s6.jpg",
        ),
        (
            "train",
            lambda c: put_mat(c.root / "annotation/Images.mat", Img=cells(["a"])),
            r"Images.mat: Img\(1\): expected one struct with imname, box",
        ),
        (
            "train",
            lambda c: put_mat(c.root / "annotation/Images.mat", Person=people([])),
            "Images.mat: .*Img.*: Person",
        ),
        (
            "train",
            lambda c: put_mat(
                c.root / "annotation/Images.mat",
                Img=struct([("s1.jpg", struct([(np.ones((1, 3)),)], "idlocate"))], "imname", "box"),
            ),
            r"Images.mat: Img\(1\).box\(1\).idlocate: expected 4 numbers",
        ),
        (
            "train",
            lambda c: put_mat(
                c.root / "annotation/test/train_test/Train.mat",
                Train=cells([people([("p1", [("s77.jpg", [1, 1, 2, 2])])])]),
            ),
            r"Train.mat: Train\(1\): image s77.jpg is not in Images.mat",
        ),
        (
            "train",
            lambda c: put_mat(
                c.root / "annotation/test/train_test/Train.mat",
                Train=cells([people([("p1", [])]), people([("p1", [])])]),
            ),
            r"Train.mat: Train\(2\): p1 is already entry 1",
        ),
        (
            "test",
            lambda c: put_mat(c.root / "annotation/pool.mat", pool=cells(["s5.jpg", "s5.jpg"])),
            r"pool.mat: pool\(2\): s5.jpg is already entry 1",
        ),
        (
            "test",
            lambda c: put_mat(c.root / "annotation/pool.mat", pool=cells(["s9.jpg"])),
            r"pool.mat: pool\(1\): s9.jpg is not in Images.mat",
        ),
        (
            "test",
            lambda c: put_mat(c.root / "annotation/pool.mat", pool=cells([])),
            "pool.mat: pool names no image",
        ),
        ("test", lambda c: c.put_gallery("TestG50", protocol([])), "TestG50: holds no query"),
        (
            "test",
            lambda c: c.put_gallery("TestG50", protocol([("p1", "s1.jpg", [1, 2, 10, 20], [])])),
            r"TestG50\(1\).Query: image s1.jpg is not in pool.mat",
        ),
        (
            "test",
            lambda c: c.put_gallery("TestG50", protocol([("p1", "s6.jpg", [1, 2, 0, 20], [])])),
            r"TestG50\(1\).Query: the box .* has no area",
        ),
        (
            "test",
            lambda c: c.put_gallery("TestG50", protocol([("p1", "s6.jpg", [3, 3, 8, 16], [])] * 2)),
            r"TestG50\(2\).Query: the same box as .*TestG50\(1\).Query",
        ),
    ],
)
def test_absent_and_broken_files_are_named_with_the_entry(little, split, change, message):
    little.write()
    change(little)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        _load(little, split)
    assert "\n" not in str(error.value)


def test_an_image_that_is_listed_twice_is_refused(little):
    little.write()
    box = struct([(np.ones((1, 4)),)], "idlocate")
    rows = [("s1.jpg", box), ("s2.jpg", box), ("s1.jpg", box)]
    put_mat(little.root / "annotation/Images.mat", Img=struct(rows, "imname", "box"))
    with pytest.raises(ValueError, match=r"Img\(3\).imname: s1.jpg"):
        _load(little, "train")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            ("p7", "s4.jpg", [1, 1, 8, 16], [("s5.jpg", None), ("s1.jpg", None)]),
            r"TestG100\(1\).Gallery\(2\): image s1.jpg is not in the set; 1 entries",
        ),
        (
            ("p7", "s4.jpg", [1, 1, 8, 15], [("s5.jpg", None)]),
            r"TestG100\(1\).Query: box .* in s4.jpg is no query of the set",
        ),
    ],
)
def test_a_gallery_that_does_not_fit_the_set_is_refused_with_the_entry(little, row, message):
    little.galleries[100] = [row]
    loaded = _load(little.write(), "test")
    with pytest.raises(ValueError, match=message):
        loaded.galleries["G100"]


def test_queries_without_a_match_and_matches_without_area_are_counted(little, caplog):
    little.galleries[100] = [
        (*little.galleries[50][0][:3], [("s6.jpg", None)]),
        (*little.galleries[50][1][:3], [("s6.jpg", [3, 3, 0, 16])]),
    ]
    loaded = _load(little.write(), "test")
    with caplog.at_level(logging.WARNING, logger="kd_search"):
        loaded.galleries["G100"]
    assert "1 of 2 queries have no match in their gallery, the first is" in caplog.text
    assert "1 boxes of the gallery have no area" in caplog.text


def test_the_checker_counts_galleries_and_compares_with_person_mat(little):
    little.galleries[100] = [
        (*little.galleries[50][0][:3], [("s6.jpg", None), ("s6.jpg", None), ("s4.jpg", None)]),
        (*little.galleries[50][1][:3], [("s6.jpg", None), ("s4.jpg", [20, 1, 8, 16])]),
    ]
    little.write()
    person = people([("p7", [("s4.jpg", [1, 1, 8, 16])]), ("p8", [("s4.jpg", [40, 1, 8, 16])])])
    put_mat(little.root / "annotation/Person.mat", Person=person)
    report = check_split(load_split("cuhk_sysu_test", clip=False))
    assert {k: v for k, v in report.counts.items() if k.startswith("G100")} == {
        "G100_entries": 5,
        "G100_late_matches": 1,
        "G100_matches": 1,
        "G100_queries": 2,
        "G100_queries_with_own_image": 1,
        "G100_repeated_images": 1,
    }
    assert [(d.kind, d.where) for d in report.defects if "G100" in d.message] == [
        ("query_without_match", "query 0 (s4.jpg)")
    ]
    assert any("Person.mat has 1 of the unlabelled boxes, of 1 people" in n for n in report.notes)
    train = check_split(load_split("cuhk_sysu_train", clip=False))
    assert [defect.kind for defect in train.defects if "s2.jpg" in defect.where] == ["box_empty"]


def test_the_real_protocol_makes_a_test_set(real_data, tmp_path, monkeypatch):
    """TestG100.mat of the release, with lists that are made from it: the others are not public."""
    path = real_data("cuhk_sysu_mini") / "annotation/test/train_test/TestG100.mat"
    read = read_search_protocol(str(path), "TestG100")
    boxes = {name.decode(): {} for name in np.unique(read.entry_images)}
    pairs = list(zip(read.query_images, read.query_boxes.tolist()))
    pairs += [
        (read.entry_images[entry].decode(), box)
        for entry, box in zip(read.match_entries, read.match_boxes.tolist())
    ]
    for image, box in pairs:
        boxes.setdefault(image, {})[tuple(box)] = None
    monkeypatch.setattr(cuhk_sysu, "read_images", lambda _: {k: list(v) for k, v in boxes.items()})
    monkeypatch.setattr(cuhk_sysu, "read_pool", lambda _: list(boxes))
    monkeypatch.setattr(cuhk_sysu, "read_image_sizes", lambda paths, _: [(800, 600)] * len(paths))
    folder = tmp_path / "annotation/test/train_test"
    folder.mkdir(parents=True)
    (folder / "TestG100.mat").symlink_to(path)
    loaded = CUHKSYSUFiles(str(tmp_path), "test").load()
    assert len(loaded.dicts) == 6978 and len(loaded.id_map) == 2900
    queries = [q for record in loaded.dicts for q in record.get("queries", ())]
    assert sorted(q["query_id"] for q in queries) == list(range(2900))
    gallery = loaded.galleries["G100"]
    assert len(gallery["images"]) == 290000
    assert np.isfinite(gallery["boxes"]).all(axis=1).sum() == 5447
    # Every query and every match labels its box, but where two people share one.
    labelled = sum(a["person_id"] >= 0 for r in loaded.dicts for a in r["annotations"])
    assert labelled == sum(map(len, boxes.values()))
