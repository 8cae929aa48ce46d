import json
from collections import Counter

import numpy as np
import pytest
from scipy.io import savemat

from kd_search.data.reid import load_atrw, load_duke_video, load_mars, load_veri
from kd_search.data.reid.mars import read_queries, read_tracks

# MARS -------------------------------------------------------------------------------------------


@pytest.fixture
def mars(tmp_path):
    info = tmp_path / "mars" / "info"
    info.mkdir(parents=True)
    names = {"train": [], "test": []}
    tracks = {"train": [], "test": []}

    def add(split, person, camera, frames):
        text = "00-1" if person < 0 else f"{person:04d}"
        first = len(names[split]) + 1
        number = len(tracks[split]) + 1
        names[split] += [f"{text}C{camera}T{number:04d}F{f + 1:03d}.jpg" for f in range(frames)]
        tracks[split].append([first, len(names[split]), person, camera])

    for person, camera, frames in ((1, 1, 3), (1, 2, 2), (5, 6, 1)):
        add("train", person, camera, frames)
    for person, camera, frames in ((-1, 1, 2), (0, 3, 4), (2, 1, 3), (2, 4, 2), (9, 2, 1)):
        add("test", person, camera, frames)
    for split in names:
        (info / f"{split}_name.txt").write_text("\r\n".join(names[split]) + "\r\n")
        table = np.array(tracks[split], np.int32)
        savemat(info / f"tracks_{split}_info.mat", {f"track_{split}_info": table})
    savemat(info / "query_IDX.mat", {"query_IDX": np.array([[3, 5]], np.uint16)})
    return info.parent


def test_mars_training_tracklets(mars):
    loaded = load_mars(str(mars), "train")
    assert loaded.id_map.to_list() == [1, 5]
    first = loaded.samples[0]
    assert first["file_names"][0] == str(mars / "bbox_train" / "0001" / "0001C1T0001F001.jpg")
    assert [len(s["file_names"]) for s in loaded.samples] == [3, 2, 1]
    assert [s["camera_id"] for s in loaded.samples] == [1, 2, 6]


def test_mars_leaves_junk_out_and_searches_queries_too(mars):
    loaded = load_mars(str(mars), "test")
    assert loaded.notes == ["1 junk tracklets are left out"]
    found = [(s["person_id"], s["role"], len(s["file_names"])) for s in loaded.samples]
    assert found == [(-1, "gallery", 4), (0, "both", 3), (0, "gallery", 2), (1, "both", 1)]
    assert loaded.samples[0]["file_names"][0].endswith("bbox_test/0000/0000C3T0002F001.jpg")


def test_mars_lists_that_do_not_fit_are_refused(mars):
    names = mars / "info" / "test_name.txt"
    lines = names.read_text().split()
    names.write_text("\n".join(lines[:-1]))
    with pytest.raises(ValueError, match="test_name.txt: 11 .*track 5 .*tracks_test_info.mat"):
        load_mars(str(mars), "test")
    names.write_text("\n".join(lines[1:] + lines[:1]))
    with pytest.raises(ValueError, match="test_name.txt: lines 3 to 6: 0002C1T0003F001.jpg"):
        load_mars(str(mars), "test")
    names.unlink()
    with pytest.raises(FileNotFoundError, match="test_name.txt"):
        load_mars(str(mars), "test")
    savemat(mars / "info" / "query_IDX.mat", {"query_IDX": np.array([[6]])})
    with pytest.raises(ValueError, match="query_IDX.mat.* 5"):
        load_mars(str(mars), "test")
    table = np.array([[3, 2, 1, 1]])
    savemat(mars / "info" / "tracks_train_info.mat", {"track_train_info": table})
    with pytest.raises(ValueError, match=r"row 1 .*\[3, 2, 1, 1\]"):
        load_mars(str(mars), "train")


def test_real_mars_lists_have_the_published_numbers(real_data, tmp_path):
    info = str(real_data("mars_annotations") / "mars_info")
    train, test = read_tracks(info, "train"), read_tracks(info, "test")
    assert len(train) == 8298 and len(test) == 12180
    assert len(np.unique(train[:, 2])) == 625 and train[-1, 1] == 509914
    # 636 with distractors and junk.
    assert len(np.unique(test[test[:, 2] > 0, 2])) == 634 and test[-1, 1] == 681089
    queries = read_queries(info, len(test))
    assert len(queries) == 1980 and (test[queries, 2] > 0).all()
    # 140 queries have no match in another camera but among the queries.
    others = np.delete(test, queries, axis=0)
    alone = [
        not ((others[:, 2] == person) & (others[:, 3] != camera)).any()
        for person, camera in test[queries, 2:]
    ]
    assert sum(alone) == 140
    with pytest.raises(FileNotFoundError, match="mars_info/train_name.txt"):
        load_mars(str(tmp_path), "train", info=info)


def test_real_mars_tracks_with_names_made_for_them(real_data, tmp_path):
    info = real_data("mars_annotations") / "mars_info"
    for name in ("tracks_test_info.mat", "query_IDX.mat"):
        (tmp_path / name).write_bytes((info / name).read_bytes())
    names = [""] * 681089
    for number, (first, last, person, camera) in enumerate(read_tracks(str(info), "test").tolist()):
        text = "00-1" if person < 0 else f"{person:04d}"
        for line in range(first, last + 1):
            names[line - 1] = f"{text}C{camera}T{number % 10000:04d}F{line - first + 1:03d}.jpg"
    assert all(names)
    (tmp_path / "test_name.txt").write_text("\n".join(names))
    loaded = load_mars("images", "test", info=str(tmp_path))
    roles = Counter(s["role"] for s in loaded.samples)
    assert roles == {"both": 1980, "gallery": 12180 - 870 - 1980}
    assert len(loaded.id_map) == 634
    assert sum(s["person_id"] < 0 for s in loaded.samples) == 3248


# DukeMTMC-VideoReID -----------------------------------------------------------------------------


def _duke(root, write_images, style="{0:04d}_C{1}_F{2:04d}_X{3}.jpg"):
    for folder, person, tracklet, camera in (
        *(("train", 3, "0001", 1), ("train", 3, "0002", 5), ("train", 8, "0001", 2)),
        *(("query", 4, "0001", 1), ("gallery", 4, "0002", 2), ("gallery", 6, "0001", 7)),
    ):
        names = [style.format(person, camera, f, 100 + 12 * f) for f in (10, 2, 1)]
        write_images(root / folder / f"{person:04d}" / tracklet, names, (4, 8))
    return str(root)


@pytest.mark.parametrize("style", ["{0:04d}_C{1}_F{2:04d}_X{3}.jpg", "{0:04d}C{1}F{2:04d}X{3}.jpg"])
def test_duke_folders(tmp_path, write_images, style):
    root = _duke(tmp_path / "duke", write_images, style)
    train = load_duke_video(root, "train")
    assert train.id_map.to_list() == [3, 8]
    assert [s["camera_id"] for s in train.samples] == [1, 5, 2]
    # In the order of frames.
    ends = [name.rsplit("/", 1)[1] for name in train.samples[0]["file_names"]]
    assert ends == [style.format(3, 1, f, 100 + 12 * f) for f in (1, 2, 10)]
    assert train.samples[0]["frame_id"] == 112
    test = load_duke_video(root, "test")
    assert [(s["role"], s["person_id"]) for s in test.samples] == [
        ("query", 0),
        ("gallery", 0),
        ("gallery", 1),
    ]


def test_duke_folders_that_do_not_fit_are_refused(tmp_path, write_images):
    root = tmp_path / "DukeMTMC-VideoReID"
    _duke(root, write_images)
    assert len(load_duke_video(str(tmp_path), "train").samples) == 3
    write_images(root / "train" / "0003" / "0001", ["0003_C2_F0001_X1.jpg"])
    with pytest.raises(ValueError, match=r"0001: .*cameras \[1, 2\]"):
        load_duke_video(str(root), "train")
    write_images(root / "train" / "0003" / "0001", ["0004_C1_F0001_X1.jpg"])
    with pytest.raises(ValueError, match="0004_C1_F0001_X1.jpg .*0003"):
        load_duke_video(str(root), "train")
    (root / "train" / "0001" / "0009").mkdir(parents=True)
    with pytest.raises(ValueError, match="0009: "):
        load_duke_video(str(root), "train")
    with pytest.raises(FileNotFoundError, match="query: .*do so"):
        load_duke_video(str(tmp_path / "train"), "test", hint="do so")


# VeRi-776 ---------------------------------------------------------------------------------------


@pytest.fixture
def veri(tmp_path):
    root = tmp_path / "veri"
    root.mkdir()
    (root / "name_train.txt").write_text(
        "0001_c002_00016460_1.jpg\n0001_c002_00016450_0.jpg\n0004_c001_00000001_0.jpg\n"
        "0001_c003_00000002_0.jpg\n"
    )
    (root / "name_query.txt").write_text("0002_c002_00030640_5.jpg\n0005_c001_00000009_0.jpg\n")
    (root / "name_test.txt").write_text(
        "0002_c002_00030600_0.jpg\n0002_c002_00030605_1.jpg\n0002_c003_00000100_0.jpg\n"
    )
    (root / "test_track.txt").write_text(
        "0002_c002_00030600.jpg 0002_c002_00030600_0.jpg 0002_c002_00030605_1.jpg \n"
        "0002_c002_00050000_0.jpg 0002_c002_00050000_0.jpg 0002_c002_00050005_1.jpg\n"
        "0002_c003_00000100_0.jpg 0002_c003_00000105_1.jpg\n"
        "0005_c001_00000009.jpg 0005_c001_00000009_0.jpg\n"
    )
    return root


def test_veri_training_tracklets_are_vehicles_in_cameras(veri):
    loaded = load_veri(str(veri), "train")
    assert loaded.id_map.to_list() == [1, 4] and loaded.metadata["input_size"] == (224, 224)
    assert [(s["person_id"], s["camera_id"], len(s["file_names"])) for s in loaded.samples] == [
        (0, 2, 2),
        (0, 3, 1),
        (1, 1, 1),
    ]
    first = loaded.samples[0]["file_names"]
    assert first == sorted(first) and first[0] == str(
        veri / "image_train" / "0001_c002_00016450_0.jpg"
    )
    images = load_veri(str(veri), "train", tracklets=False).samples
    assert [len(s["file_names"]) for s in images] == [1] * 4
    assert [s["tracklet_id"] for s in images] == [0, 0, 1, 2]


def test_veri_queries_are_the_first_track_of_their_vehicle_and_camera(veri):
    loaded = load_veri(str(veri), "test")
    query, other, *gallery = loaded.samples
    assert query["role"] == other["role"] == "query"
    assert [name.rsplit("/")[-1] for name in query["file_names"]] == [
        "0002_c002_00030600_0.jpg",
        "0002_c002_00030605_1.jpg",
    ]
    assert query["still"] == str(veri / "image_query" / "0002_c002_00030640_5.jpg")
    # Titles of tracks are no images, whether they are named like one or not.
    assert [len(s["file_names"]) for s in gallery] == [2, 2, 2, 1]
    assert loaded.metadata["gallery_images"] == "all"
    images = load_veri(str(veri), "test", tracklets=False).samples
    assert Counter(s["role"] for s in images) == {"query": 2, "gallery": 3}


def test_veri_lists_that_do_not_fit_are_refused(veri):
    tracks = (veri / "test_track.txt").read_text()
    (veri / "test_track.txt").write_text("\n".join(tracks.splitlines()[2:]))
    with pytest.raises(ValueError, match="no track of vehicle 2 in camera 2 .*name_query"):
        load_veri(str(veri), "test")
    (veri / "test_track.txt").write_text("0002_c002_00030600_0.jpg 0003_c002_00030600_0.jpg\n")
    with pytest.raises(ValueError, match="test_track.txt: track 1"):
        load_veri(str(veri), "test")
    (veri / "name_train.txt").write_text("car.jpg\n")
    with pytest.raises(ValueError, match="name_train.txt: 'car.jpg'"):
        load_veri(str(veri), "train")
    (veri / "name_train.txt").unlink()
    with pytest.raises(FileNotFoundError, match="name_train.txt"):
        load_veri(str(veri), "train")


# ATRW -------------------------------------------------------------------------------------------


@pytest.fixture
def atrw(tmp_path, write_images):
    root = tmp_path / "atrw"
    (root / "atrw_anno_reid_train").mkdir(parents=True)
    (root / "atrw_anno_reid_train" / "reid_list_train.csv").write_text(
        "25,001712.jpg\r\n3,000002.jpg\r\n25,000005.jpg\r\n"
    )
    entries = [
        {"query": "sing", "entityid": 199, "frame": [23, 4, 657], "imgid": 0},
        {"query": "multi", "entityid": 7, "frame": [1, 1, 10], "imgid": 12},
        {"query": "sing", "entityid": 199, "frame": [23, 4, 651], "imgid": 67},
        {"query": "multi", "entityid": 7, "frame": [1, 0, 41], "imgid": 4315},
    ]
    (root / "gt_test_plain.json").write_text(json.dumps(entries))
    write_images(root / "atrw_reid_test" / "test", ["0012.jpg"])
    return root


def test_atrw_training_images_know_neither_camera_nor_tracklet(atrw):
    loaded = load_atrw(str(atrw), "train")
    assert loaded.id_map.to_list() == [3, 25]
    assert [s["person_id"] for s in loaded.samples] == [1, 0, 1]
    assert {s["camera_id"] for s in loaded.samples} == {-1}
    assert len({s["tracklet_id"] for s in loaded.samples}) == 3
    assert loaded.samples[0]["file_names"] == [str(atrw / "atrw_reid_train/train/001712.jpg")]


def test_atrw_test_images_are_searched_among_all_others(atrw):
    loaded = load_atrw(str(atrw), "test")
    assert {s["role"] for s in loaded.samples} == {"both"}
    assert loaded.metadata["junk_rule"] == "frames" and loaded.metadata["junk_frames"] == 3
    found = [(s["file_names"][0][-8:], s["camera_id"], s["frame_id"]) for s in loaded.samples]
    # Names as they are on disk, or else with six figures; cameras are pairs of video and camera.
    assert found == [
        ("4315.jpg", 0, 41),
        ("0012.jpg", 1, 10),
        ("0067.jpg", 2, 651),
        ("0000.jpg", 2, 657),
    ]
    tracklets = load_atrw(str(atrw), "test", tracklets=True).samples
    assert [len(s["file_names"]) for s in tracklets] == [1, 1, 2]


def test_atrw_lists_that_do_not_fit_are_refused(atrw):
    path = atrw / "gt_test_plain.json"
    path.write_text('[{"imgid": 1, "entityid": 2, "frame": [1, 2]}]')
    with pytest.raises(ValueError, match=r"gt_test_plain.json: \[0\]\.frame .*found \[1, 2\]"):
        load_atrw(str(atrw), "test")
    path.write_text("{")
    with pytest.raises(ValueError, match="gt_test_plain.json"):
        load_atrw(str(atrw), "test")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="gt_test_plain.json.*fetch it"):
        load_atrw(str(atrw), "test", hint="fetch it")
    (atrw / "atrw_anno_reid_train" / "reid_list_train.csv").write_text("1,a.jpg\nb.jpg\n")
    with pytest.raises(ValueError, match="reid_list_train.csv: line 2"):
        load_atrw(str(atrw), "train")
