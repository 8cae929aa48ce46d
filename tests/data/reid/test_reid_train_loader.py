import multiprocessing
from collections import Counter
from itertools import islice

import pytest
import torch
from detectron2.utils import comm
from PIL import Image

from kd_search.data import ImageError
from kd_search.data.reid import build_reid_train_loader, load_market1501_split
from kd_search.data.reid.train_loader import ReIDTrainLoader, ViewSettings
from kd_search.data.sampling.unreadable import TooManySkippedImagesError


@pytest.fixture
def samples(crops):
    """Four people with at least two crops in each of three cameras, one frame a sample."""
    return load_market1501_split(str(crops), "train", test_share=0.3).samples


@pytest.fixture
def tracklets(crops):
    """The same people with their crops of a camera as one tracklet."""
    singles = load_market1501_split(str(crops), "train", test_share=0.3).samples
    joined = {}
    for single in singles:
        key = single["person_id"], single["camera_id"]
        sample = joined.setdefault(key, {**single, "file_names": [], "sample_id": len(joined)})
        sample["file_names"] = sample["file_names"] + single["file_names"]
        sample["tracklet_id"] = sample["sample_id"]
    return list(joined.values())


@pytest.fixture
def reid_cfg(data_cfg):
    def make(*overrides):
        cfg = data_cfg("REID_DATA.SIZE", [32, 16], "REID_DATA.IDS_PER_BATCH", 2, "REID_DATA.PAD", 2)
        cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", 6, *overrides])
        return cfg

    return make


def _take(loader, count):
    return list(islice(iter(loader), count))


def _same(a, b):
    return len(a) == len(b) and all(
        len(batch) == len(other)
        and all(
            x["file_names"] == y["file_names"] and torch.equal(x["frames"], y["frames"])
            for x, y in zip(batch, other)
        )
        for batch, other in zip(a, b)
    )


def test_a_batch_is_p_times_k_samples(samples, reid_cfg):
    batch = _take(build_reid_train_loader(reid_cfg(), samples=samples), 1)[0]
    assert len(batch) == 6
    ids = [sample["person_id"] for sample in batch]
    assert ids[:3] == ids[:1] * 3 and ids[3:] == ids[3:4] * 3 and ids[0] != ids[3]
    for sample in batch:
        assert sample["frames"].shape == (1, 3, 32, 16) and sample["frames"].dtype == torch.uint8
        assert sample["role"] == "train" and sample["camera_id"] in (1, 2, 3)
        original = samples[sample["sample_id"]]
        assert sample["file_names"] == original["file_names"]
        assert sample["tracklet_id"] == original["tracklet_id"]


@pytest.mark.parametrize("start", [1, 5])
def test_starting_later_gives_the_pixels_of_a_straight_run(samples, reid_cfg, start):
    straight = _take(build_reid_train_loader(reid_cfg(), samples=samples), start + 3)
    later = _take(build_reid_train_loader(reid_cfg(), start, samples=samples), 3)
    assert _same(later, straight[start:]) and not _same(straight[:3], straight[start:])
    other = _take(build_reid_train_loader(reid_cfg("SEED", 6), samples=samples), 3)
    assert not _same(other, straight[:3])


def test_one_crop_is_augmented_anew_each_time(samples, reid_cfg):
    batches = _take(build_reid_train_loader(reid_cfg(), samples=samples), 12)
    pixels = {}
    for sample in (s for batch in batches for s in batch):
        pixels.setdefault(sample["sample_id"], set()).add(sample["frames"].numpy().tobytes())
    assert max(len(versions) for versions in pixels.values()) > 2


def test_workers_change_no_pixel(tracklets, reid_cfg):
    views = ("REID_DATA.VIEWS.NUM", 3, "REID_DATA.VIEWS.SOURCE", "cameras")
    alone = _take(build_reid_train_loader(reid_cfg(*views), 2, samples=tracklets), 4)
    cfg = reid_cfg(*views, "DATALOADER.NUM_WORKERS", 2)
    assert _same(_take(build_reid_train_loader(cfg, 2, samples=tracklets), 4), alone)
    assert not multiprocessing.active_children()


def test_ranks_share_the_batches_of_one_process(samples, reid_cfg, monkeypatch):
    alone = _take(build_reid_train_loader(reid_cfg(), samples=samples), 4)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(_take(build_reid_train_loader(reid_cfg(), samples=samples), 4))
    assert all(len({s["person_id"] for s in batch}) == 1 for part in parts for batch in part)
    assert _same([a + b for a, b in zip(*parts)], alone)
    monkeypatch.setattr(comm, "get_world_size", lambda: 4)
    with pytest.raises(ValueError, match="REID_DATA.IDS_PER_BATCH 2 .*4 ranks"):
        build_reid_train_loader(reid_cfg(), samples=samples)


def test_views_over_cameras(tracklets, reid_cfg):
    cfg = reid_cfg("REID_DATA.VIEWS.NUM", 3, "REID_DATA.VIEWS.SOURCE", "cameras")
    for batch in _take(build_reid_train_loader(cfg, samples=tracklets), 4):
        for sample in batch:
            assert sample["frames"].shape == (3, 3, 32, 16)
            assert sorted(sample["camera_ids"].tolist()) == [1, 2, 3]
            assert sample["camera_id"] == sample["tracklet_id"] == -1
            for name, camera in zip(sample["file_names"], sample["camera_ids"].tolist()):
                assert f"_c{camera}s" in name
            person = tracklets[sample["sample_id"]]["file_names"][0].rsplit("/")[-1][:4]
            assert all(f"/{person}_" in name for name in sample["file_names"])


def test_views_of_one_tracklet(tracklets, reid_cfg):
    cfg = reid_cfg("REID_DATA.VIEWS.NUM", 4)
    for sample in _take(build_reid_train_loader(cfg, samples=tracklets), 1)[0]:
        own = tracklets[sample["sample_id"]]
        assert set(sample["file_names"]) <= set(own["file_names"])
        assert sample["camera_id"] == own["camera_id"]
        assert sample["tracklet_id"] == own["tracklet_id"]


def test_each_frame_is_augmented_by_itself(samples, reid_cfg):
    cfg = reid_cfg("REID_DATA.VIEWS.NUM", 4)
    sample = _take(build_reid_train_loader(cfg, samples=samples), 1)[0][0]
    # A tracklet of a single frame: the same image four times.
    assert len(set(sample["file_names"])) == 1
    assert len({frame.numpy().tobytes() for frame in sample["frames"]}) > 1


def _tear(path):
    Image.open(path).verify()
    content = open(path, "rb").read()
    with open(path, "wb") as stream:
        stream.write(content[: len(content) // 2])


def test_an_unreadable_crop_stops_or_is_replaced_by_another_of_the_person(samples, reid_cfg):
    person = next(s for s in samples if s["person_id"] == 2)
    _tear(person["file_names"][0])
    with pytest.raises(ImageError, match=r"_01\.png"):
        _take(build_reid_train_loader(reid_cfg(), samples=samples), 30)
    cfg = reid_cfg("INPUT.ON_IMAGE_ERROR", "skip", "INPUT.MAX_SKIPPED_FRACTION", 1.0)
    loader = build_reid_train_loader(cfg, samples=samples)
    batches = _take(loader, 30)
    lost = [s for batch in batches for s in batch if "skipped_images" in s]
    assert lost and loader.skips.num_skipped == len(lost)
    for sample in lost:
        assert sample["skipped_images"] == person["file_names"] != sample["file_names"]
        assert sample["person_id"] == 2 and "/" in sample["file_names"][0]
        number = person["file_names"][0].rsplit("/")[-1][:4]
        assert f"/{number}_" in sample["file_names"][0]
    assert all(Counter(s["person_id"] for s in b).most_common()[0][1] == 3 for b in batches)
    cfg.INPUT.MAX_SKIPPED_FRACTION = 0.0
    with pytest.raises(TooManySkippedImagesError, match="INPUT.MAX_SKIPPED_FRACTION"):
        _take(build_reid_train_loader(cfg, samples=samples), 30)


def test_a_person_without_a_readable_crop_ends_it(samples, reid_cfg):
    for sample in samples:
        if sample["person_id"] == 0:
            _tear(sample["file_names"][0])
    cfg = reid_cfg("INPUT.ON_IMAGE_ERROR", "skip", "INPUT.MAX_SKIPPED_FRACTION", 1.0)
    with pytest.raises(ImageError, match=r"3 images .*\.png"):
        _take(build_reid_train_loader(cfg, samples=samples), 20)


def test_what_does_not_fit_is_named(samples, reid_cfg):
    with pytest.raises(ValueError, match="SOLVER.IMS_PER_BATCH 6 .*REID_DATA.IDS_PER_BATCH 4"):
        build_reid_train_loader(reid_cfg("REID_DATA.IDS_PER_BATCH", 4), samples=samples)
    with pytest.raises(ValueError, match="INPUT.ON_IMAGE_ERROR 'pass'"):
        build_reid_train_loader(reid_cfg("INPUT.ON_IMAGE_ERROR", "pass"), samples=samples)
    with pytest.raises(ValueError, match="REID_DATA.VIEWS.NUM 0"):
        ViewSettings(0)
    with pytest.raises(ValueError, match="REID_DATA.VIEWS.SOURCE 'x'"):
        ViewSettings(1, "x")
    with pytest.raises(ValueError, match="REID_DATA.IDS_PER_BATCH.* 4"):
        build_reid_train_loader(reid_cfg("REID_DATA.IDS_PER_BATCH", 6), samples=samples)


def test_the_loader_leaves_the_generators_of_the_training_alone(samples, reid_cfg):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = torch.rand(1)
    _take(build_reid_train_loader(reid_cfg(), samples=samples), 2)
    assert torch.equal(torch.cat([first, torch.rand(1)]), expected)


def test_a_mapper_of_ones_own(samples):
    loader = ReIDTrainLoader(
        samples,
        mapper=lambda name, box: torch.zeros(3, 1, 1),
        ids_per_batch=1,
        samples_per_id=2,
        seed=0,
    )
    assert _take(loader, 1)[0][0]["frames"].shape == (1, 3, 1, 1)
