from collections import Counter, defaultdict

import pytest
from detectron2.data import MetadataCatalog

from kd_search.data.reid import (
    get_reid_id_map,
    get_reid_samples,
    load_market1501,
    load_market1501_split,
    register_market1501,
    register_market1501_split,
    register_named_parts,
)
from kd_search.data.reid.market1501 import (
    choose_queries,
    group_tracklets,
    parse_crop_name,
    split_ids,
)


def _name(number, camera=1, sequence=1, frame=100, detection=1):
    text = "-1" if number < 0 else f"{number:04d}"
    return f"{text}_c{camera}s{sequence}_{frame:06d}_{detection:02d}.jpg"


@pytest.fixture
def market(tmp_path, write_images):
    root = tmp_path / "market"
    train = [_name(n, c, frame=f) for n in (2, 7, 10) for c in (1, 3) for f in (100, 225, 900)]
    write_images(root / "bounding_box_train", train)
    write_images(root / "query", [_name(5, 1), _name(5, 2), _name(6, 4)])
    gallery = [_name(5, 3), _name(5, 3, frame=200), _name(6, 1), _name(-1, 1), _name(0, 2)]
    write_images(root / "bounding_box_test", gallery + [_name(0, 2, frame=101)])
    (root / "bounding_box_train" / "Thumbs.db").write_bytes(b"not an image")
    return root


def test_names_are_taken_apart():
    name = parse_crop_name("0002_c6s3_000451_03.jpg", "here")
    assert (name.number, name.camera_id, name.sequence, name.frame, name.detection) == (
        *(2, 6, 3),
        *(451, 3),
    )
    assert parse_crop_name("-1_c1s1_000401_03.jpg", "here").number == -1
    duke = parse_crop_name("0003_c8_f0044158.jpg", "here")
    assert (duke.number, duke.camera_id, duke.frame) == (3, 8, 44158)
    with pytest.raises(ValueError, match="here: cat.jpg .*0002_c1s1"):
        parse_crop_name("cat.jpg", "here")


def test_training_crops_are_samples_of_one_frame(market):
    loaded = load_market1501(str(market), "train")
    assert loaded.id_map.to_list() == [2, 7, 10] and len(loaded.samples) == 18
    first = loaded.samples[0]
    assert first["file_names"] == [str(market / "bounding_box_train" / _name(2))]
    assert first["person_id"] == 0 and first["camera_id"] == 1 and first["role"] == "train"
    assert first["boxes"] is None and loaded.metadata["input_size"] == (256, 128)
    assert [s["sample_id"] for s in loaded.samples] == list(range(18))
    # Frames 100 and 225 are one tracklet, 900 is another.
    assert [s["tracklet_id"] for s in loaded.samples[:6]] == [0, 0, 1, 2, 2, 3]


def test_junk_is_left_out_and_distractors_are_nobody(market):
    loaded = load_market1501(str(market), "test")
    assert loaded.notes == ["1 junk crops of bounding_box_test are left out"]
    assert loaded.id_map.to_list() == [5, 6]
    roles = Counter((s["role"], s["person_id"]) for s in loaded.samples)
    assert roles == {("query", 0): 2, ("query", 1): 1, ("gallery", 0): 2, ("gallery", 1): 1} | {
        ("gallery", -1): 2
    }


def test_tracklets_follow_from_the_names(market):
    train = load_market1501(str(market), "train", tracklets=True)
    assert [len(s["file_names"]) for s in train.samples] == [2, 1] * 6
    test = load_market1501(str(market), "test", tracklets=True)
    # Distractors are many people: their crops are never joined.
    assert sorted(len(s["file_names"]) for s in test.samples if s["person_id"] < 0) == [1, 1]
    assert max(len(s["file_names"]) for s in test.samples) == 2


def test_a_gap_of_more_than_125_frames_ends_a_tracklet():
    def lengths(*frames):
        names = [parse_crop_name(_name(1, frame=f), "") for f in frames]
        return [len(group) for group in group_tracklets(names)]

    assert lengths(0, 125, 250) == [3] and lengths(0, 126) == [1, 1]
    assert lengths(300, 0, 100) == [2, 1]


def test_the_archives_own_folder_is_found(market, tmp_path):
    outer = tmp_path / "outer"
    outer.mkdir()
    market.rename(outer / "Market-1501-v15.09.15")
    assert len(load_market1501(str(outer), "train").samples) == 18


def test_what_is_wrong_is_named(market, tmp_path):
    with pytest.raises(FileNotFoundError, match="bounding_box_train: .*set X"):
        load_market1501(str(tmp_path / "nowhere"), "train", hint="set X")
    with pytest.raises(ValueError, match="'val'"):
        load_market1501(str(market), "val")
    (market / "query" / "me.png").write_bytes(b"")
    with pytest.raises(ValueError, match="query: me.png"):
        load_market1501(str(market), "test")


def test_a_registered_set_is_read_when_it_is_used(tmp_path, write_images, registry):
    registry.append("my_market")
    register_market1501("my_market", str(tmp_path / "later"), "train")
    with pytest.raises(FileNotFoundError, match="later"):
        get_reid_samples("my_market")
    write_images(tmp_path / "later" / "bounding_box_train", [_name(3), _name(4)])
    assert get_reid_id_map("my_market").to_list() == [3, 4]
    write_images(tmp_path / "later" / "bounding_box_train", [_name(9)])
    assert get_reid_id_map("my_market").to_list() == [3, 4, 9]
    metadata = MetadataCatalog.get("my_market")
    assert metadata.person_ids == (3, 4, 9) and metadata.evaluator_type == "reid"


# Split of one folder ----------------------------------------------------------------------------


def test_ids_are_split_by_lot_and_share():
    train, test = split_ids(range(100, 400), 1 / 3, 0)
    assert len(test) == 100 and sorted(train + test) == list(range(100, 400))
    assert train == sorted(train) and test == sorted(test)
    assert split_ids(list(range(399, 99, -1)) * 2, 1 / 3, 0) == (train, test)
    other = split_ids(range(100, 400), 1 / 3, 1)[1]
    assert 15 < len(set(test) & set(other)) < 60
    # By the digests alone: the same with every version of every library.
    assert split_ids(range(10), 0.3, 0)[1] == [0, 4, 6]


def test_a_split_has_somebody_on_both_sides():
    for share in (0.01, 0.99):
        train, test = split_ids([1, 2], share)
        assert len(train) == len(test) == 1 and set(train + test) == {1, 2}
    for ids, share, message in (([1, 1], 0.5, "1 identities cannot"), ([1, 2], 1, "share 1")):
        with pytest.raises(ValueError, match=message):
            split_ids(ids, share)


def test_one_query_a_camera_of_people_with_two_cameras():
    items = [(p, c, f"{p}/{c}/{n}") for p in (1, 2) for c in (1, 2, 3)[: p + 1] for n in range(4)]
    items += [(3, 1, "alone/a"), (3, 1, "alone/b")]
    queries = choose_queries(items)
    assert Counter(q.split("/")[0] for q in queries) == {"1": 2, "2": 3}
    assert choose_queries(items[::-1]) == queries != choose_queries(items, seed=1)


def test_the_split_of_a_folder(crops):
    parts = {s: load_market1501_split(str(crops), s) for s in ("train", "test")}
    train, test = (parts[s].id_map.to_list() for s in ("train", "test"))
    assert len(test) == 2 and sorted(train + test) == [1, 2, 3, 4, 5, 6]
    files = [f for part in parts.values() for s in part.samples for f in s["file_names"]]
    assert sorted(files) == sorted(str(path) for path in crops.iterdir())
    assert {s["role"] for s in parts["train"].samples} == {"train"}
    queries = [s for s in parts["test"].samples if s["role"] == "query"]
    places = [(s["person_id"], s["camera_id"]) for s in queries]
    assert sorted(places) == [(p, c) for p in (0, 1) for c in (1, 2, 3)]
    assert {s["role"] for s in parts["test"].samples} == {"query", "gallery"}


def test_tracklets_that_are_queries_are_searched_too(crops):
    test = load_market1501_split(str(crops), "test", tracklets=True)
    # Shots of a camera are 200 frames apart: each crop is a tracklet.
    assert Counter(s["role"] for s in test.samples)["both"] == 6
    assert not any(s["role"] == "query" for s in test.samples)


def test_registered_splits_and_the_variable(crops, registry, monkeypatch):
    registry += ["mine_train", "mine_test"]
    register_market1501_split("mine", str(crops), seed=3)
    assert len(get_reid_id_map("mine_train")) == 4 and len(get_reid_id_map("mine_test")) == 2
    monkeypatch.setenv("KD_SEARCH_MARKET_CROPS", str(crops))
    assert len(get_reid_id_map("market1501_split_tracklets_train")) == 4
    monkeypatch.delenv("KD_SEARCH_MARKET_CROPS")
    with pytest.raises(FileNotFoundError, match="split_train: .*set KD_SEARCH_MARKET_CROPS"):
        get_reid_samples("market1501_split_train")


def test_several_sets_are_joined_with_ids_apart(crops, registry):
    registry += ["a_train", "a_test", "b_train", "b_test"]
    for prefix in ("a", "b"):
        register_market1501_split(prefix, str(crops))
    alone, ids = get_reid_samples("a_train")
    joint, both = get_reid_samples(["a_train", "b_train"])
    assert len(joint) == 2 * len(alone) and len(both) == 2 * len(ids)
    assert both.to_list()[0] == f"a_train/{ids.original(0)}"
    assert [s["sample_id"] for s in joint] == list(range(len(joint)))
    names = defaultdict(set)
    for sample in joint:
        names[sample["tracklet_id"]].add((sample["person_id"], sample["camera_id"]))
        original = both.original(sample["person_id"]).split("/")[1]
        assert f"/{int(original):04d}_" in sample["file_names"][0]
    assert all(len(places) == 1 for places in names.values())
    with pytest.raises(ValueError, match="'prw_train' .*'prw_train_crops'"):
        get_reid_samples(["a_train", "prw_train"])
    with pytest.raises(ValueError, match="'a_trian' .*a_train"):
        get_reid_samples("a_trian")


# Real crops -------------------------------------------------------------------------------------


def test_real_crops_have_the_published_numbers(real_data):
    folder = str(real_data("market1501_train") / "bounding_box_train")
    parts = [load_market1501_split(folder, split) for split in ("train", "test")]
    samples = [s for part in parts for s in part.samples]
    cameras = Counter(s["camera_id"] for s in samples)
    assert [cameras[c] for c in range(1, 7)] == [2017, 1709, 2707, 920, 2338, 3245]
    train, test = (set(part.id_map.to_list()) for part in parts)
    assert len(train) == 501 and len(test) == 250 and not train & test


def test_real_tracklets_are_5668(real_data):
    folder = str(real_data("market1501_train") / "bounding_box_train")
    parts = [load_market1501_split(folder, s, tracklets=True) for s in ("train", "test")]
    samples = [s for part in parts for s in part.samples]
    assert len(samples) == 5668
    assert sum(len(s["file_names"]) for s in samples) == 12936
    # Each query has a match in another camera.
    cameras = defaultdict(set)
    for sample in parts[1].samples:
        cameras[sample["person_id"]].add(sample["camera_id"])
    assert all(len(cameras[s["person_id"]]) > 1 for s in parts[1].samples if s["role"] == "both")


@pytest.mark.parametrize("tracklets", [True, False])
def test_a_fifth_of_the_identities_is_held_out_with_queries(tmp_path, write_images, tracklets):
    folder = tmp_path / "crops"
    names = [_name(n, c, frame=f) for n in range(1, 16) for c in (1, 2) for f in (5, 6, 900)]
    write_images(folder, names)
    prefix = f"held_out_{tracklets}"
    register_market1501_split(prefix, str(folder), tracklets=tracklets, replace=True)
    register_named_parts([f"{prefix}_train{part}" for part in ("_fit", "_val", "", "_other")])
    whole, whole_ids = get_reid_samples(f"{prefix}_train")
    fit, fit_ids = get_reid_samples(f"{prefix}_train_fit")
    val, val_ids = get_reid_samples(f"{prefix}_train_val")
    assert (len(fit_ids.to_list()), len(val_ids.to_list())) == (8, 2)
    assert sorted(fit_ids.to_list() + val_ids.to_list()) == whole_ids.to_list()
    files = [tuple(s["file_names"]) for s in whole]
    assert sorted(tuple(s["file_names"]) for s in fit + val) == sorted(files)
    assert {s["role"] for s in fit} == {"train"}
    role = "both" if tracklets else "query"
    queries = Counter((s["person_id"], s["camera_id"]) for s in val if s["role"] == role)
    assert queries == {(p, c): 1 for p in (0, 1) for c in (1, 2)}
    assert {s["role"] for s in val} == {role, "gallery"}
    metadata = MetadataCatalog.get(f"{prefix}_train_val")
    assert metadata.junk_rule == "camera" and metadata.input_size == (256, 128)
    # Samples of one tracklet stay together.
    assert len({s["tracklet_id"] for s in val}) == 8


def test_identities_of_one_camera_cannot_be_held_out(tmp_path, write_images):
    folder = tmp_path / "crops"
    write_images(folder, [_name(n, 1, frame=f) for n in range(1, 16) for f in (5, 900)])
    register_market1501_split("one_camera", str(folder), replace=True)
    register_named_parts(["one_camera_train_val"])
    with pytest.raises(ValueError, match="one_camera_train.*two cameras"):
        get_reid_samples("one_camera_train_val")
