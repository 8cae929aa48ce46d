from collections import Counter

import pytest
import torch
from detectron2.data.samplers import distributed_sampler

from kd_search.data.reid import build_reid_test_loader, load_tracklets, register_reid_set
from kd_search.data.reid.samples import Tracklet
from kd_search.data.reid.test_loader import Entry, list_entries


def _sample(number, role, length=1, **more):
    names = [f"{number}/{f}.png" for f in range(length)]
    return {"sample_id": number, "file_names": names, "boxes": None, "role": role, **more}


@pytest.fixture
def tested(tmp_path, write_images, registry):
    """A registered set: two queries, of which one is in the gallery, and four others."""
    lengths = {"a": 1, "b": 10, "c": 3, "d": 1, "e": 20, "f": 9}
    roles = {"a": "query", "b": "both"}
    tracklets = []
    for number, (name, length) in enumerate(lengths.items()):
        files = [f"{name}{frame:02d}.png" for frame in range(length)]
        folder = write_images(tmp_path / name, files)
        paths = tuple(str(folder / file) for file in files)
        person = None if name == "f" else number % 2
        tracklets.append(Tracklet(paths, person, number, roles.get(name, "gallery"), frame_id=7))
    registry.append("tested")
    register_reid_set("tested", lambda: load_tracklets(tracklets, "here"))
    return "tested"


@pytest.fixture
def make_cfg(data_cfg):
    def make(*overrides):
        cfg = data_cfg("REID_DATA.SIZE", [32, 16], "REID_DATA.TEST.BATCH_SIZE", 2)
        cfg.merge_from_list(list(overrides))
        return cfg

    return make


def test_images_need_one_entry_whatever_the_setting():
    samples = [_sample(0, "query"), _sample(1, "gallery"), _sample(2, "both")]
    for setting in ("image-to-image", "video-to-video"):
        views = tuple(setting.split("-to-")[:1])
        assert list_entries(samples, [setting]) == [Entry(i, (0,), views) for i in range(3)]
    every = list_entries(
        samples, ["image-to-image", "image-to-video", "video-to-image", "video-to-video"]
    )
    assert every == [Entry(i, (0,), ("image", "video")) for i in range(3)]


def test_entries_of_the_settings_of_vkd():
    samples = [_sample(0, "query", 16), _sample(1, "gallery", 3)]
    chunks = tuple(range(0, 16, 2))
    short = (0, 1, 2, 2, 2, 2, 2, 2)
    assert list_entries(samples, ["image-to-video"]) == [
        Entry(0, (0,), ("image",)),
        Entry(1, short, ("video",)),
    ]
    assert list_entries(samples, ["image-to-video", "video-to-video"]) == [
        Entry(0, (0,), ("image",)),
        Entry(0, chunks, ("video",)),
        Entry(1, short, ("video",)),
    ]
    assert list_entries(samples, ["video-to-image"]) == [
        Entry(0, chunks, ("video",)),
        Entry(1, (0,), ("image",)),
    ]
    all_images = list_entries(samples, ["image-to-image"], gallery_images="all")
    assert [entry.frames for entry in all_images] == [(0,), (0,), (1,), (2,)]
    assert list_entries(samples, ["video-to-video"], num_frames=0)[0].frames == tuple(range(16))


def test_a_query_has_its_own_still_and_the_gallery_none():
    samples = [_sample(0, "query", 2, still="s.png"), _sample(1, "both", 2, still="t.png")]
    entries = list_entries(samples, ["image-to-image"])
    assert entries == [
        Entry(0, (), ("image",)),
        Entry(1, (), ("image",)),
        Entry(1, (0,), ("image",)),
    ]


def test_settings_and_sets_that_cannot_be_tested_are_refused():
    samples = [_sample(0, "query"), _sample(1, "gallery")]
    with pytest.raises(ValueError, match="REID_DATA.TEST.SETTINGS.*'i2v'"):
        list_entries(samples, ["i2v"])
    with pytest.raises(ValueError, match="REID_DATA.TEST.SETTINGS"):
        list_entries(samples, [])
    with pytest.raises(ValueError, match="no query"):
        list_entries(samples[1:], ["image-to-image"])
    with pytest.raises(ValueError, match="no gallery"):
        list_entries(samples[:1], ["image-to-image"])


def test_every_sample_once_in_batches_of_equal_length(tested, make_cfg):
    loader = build_reid_test_loader(make_cfg(), tested)
    batches = list(loader)
    assert len(batches) == len(loader)
    assert sorted(s["sample_id"] for batch in batches for s in batch) == list(range(6))
    for batch in batches:
        assert len({s["frames"].shape for s in batch}) == 1 and len(batch) <= 2
        torch.stack([s["frames"] for s in batch])
    found = {s["sample_id"]: s for batch in batches for s in batch}
    assert [len(found[i]["frames"]) for i in range(6)] == [1, 8, 8, 1, 8, 8]
    assert found[0]["role"] == "query" and found[5]["person_id"] == -1
    assert found[2]["camera_id"] == 2 and found[2]["frame_id"] == 7
    assert found[4]["views"] == ("video",)
    ends = [name[-6:-4] for name in found[4]["file_names"]]
    assert ends == ["00", "03", "06", "09", "12", "15", "18", "19"]


def test_images_and_videos_of_the_queries(tested, make_cfg):
    cfg = make_cfg("REID_DATA.TEST.SETTINGS", ["image-to-video", "video-to-video"])
    found = Counter()
    for batch in build_reid_test_loader(cfg, tested):
        for sample in batch:
            found[sample["sample_id"], sample["views"], len(sample["frames"])] += 1
    assert found[0, ("image", "video"), 1] == 1
    assert found[1, ("image",), 1] == found[1, ("video",), 8] == 1
    assert sum(found.values()) == 7


def test_the_ranks_share_the_set(tested, make_cfg, monkeypatch):
    seen = []
    for rank in range(3):
        monkeypatch.setattr(distributed_sampler.comm, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed_sampler.comm, "get_world_size", lambda: 3)
        batches = list(build_reid_test_loader(make_cfg(), tested))
        assert batches
        seen += [s["sample_id"] for batch in batches for s in batch]
    assert sorted(seen) == list(range(6))


def test_pixels_are_not_augmented_and_the_same_each_time(tested, make_cfg):
    def frames():
        batches = build_reid_test_loader(make_cfg(), tested)
        return torch.cat([s["frames"] for batch in batches for s in batch])

    assert torch.equal(frames(), frames())


def test_errors_name_the_set(tested, make_cfg):
    with pytest.raises(ValueError, match="tested: REID_DATA.TEST.SETTINGS.*'x'"):
        build_reid_test_loader(make_cfg("REID_DATA.TEST.SETTINGS", ["x"]), tested)
    with pytest.raises(ValueError, match="REID_DATA.TEST.BATCH_SIZE 0"):
        build_reid_test_loader(make_cfg("REID_DATA.TEST.BATCH_SIZE", 0), tested)
