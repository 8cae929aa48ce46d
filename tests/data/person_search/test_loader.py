import logging
import multiprocessing
import pickle
from itertools import islice

import pytest
import torch
from detectron2.data import transforms as T
from detectron2.utils import comm

from kd_search.data import (
    ImageError,
    PersonSearchDatasetMapper,
    build_person_search_table_loader,
    build_person_search_test_loader,
    build_person_search_train_loader,
    register_person_search_coco,
)
from kd_search.data.person_search.coco_json import load_coco_json
from kd_search.data.person_search.loader import PersonSearchTrainLoader, training_dicts
from kd_search.data.sampling.unreadable import SkipCounter, TooManySkippedImagesError


def _dicts(made):
    return load_coco_json(str(made.json_file), str(made.images))


def _take(loader, count):
    return list(islice(iter(loader), count))


def _same(a, b):
    """Bit-equal batches, down to the augmented pixels."""
    return len(a) == len(b) and all(
        x["file_name"] == y["file_name"]
        and torch.equal(x["image"], y["image"])
        and torch.equal(x["instances"].gt_boxes.tensor, y["instances"].gt_boxes.tensor)
        and torch.equal(x["instances"].gt_person_ids, y["instances"].gt_person_ids)
        for batch, other in zip(a, b)
        for x, y in zip(batch, other)
    )


@pytest.fixture
def tear(street):
    """``tear(numbers)`` cuts these images of the street in half."""

    def tear_images(*numbers):
        for number in numbers:
            path = street.images / f"{number}.png"
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return _dicts(street)

    return tear_images


def _skipping(dicts, *, fraction=1.0, **kwargs):
    settings = {"batch_size": 2, "seed": 3, "skip_bad_images": True, **kwargs}
    mapper = PersonSearchDatasetMapper(augmentations=[T.RandomFlip()])
    return PersonSearchTrainLoader(dicts, mapper=mapper, max_skipped_fraction=fraction, **settings)


def test_batches_hold_what_the_model_takes(street, data_cfg):
    batch = _take(build_person_search_train_loader(data_cfg(), dataset=_dicts(street)), 1)[0]
    assert isinstance(batch, list) and len(batch) == 2
    assert {"image", "height", "width", "file_name", "image_id", "instances"} <= set(batch[0])
    assert batch[0]["instances"].has("gt_person_ids")


@pytest.mark.parametrize("start", [1, 6])
def test_starting_later_gives_the_pixels_of_a_straight_run(street, data_cfg, start):
    cfg, dicts = data_cfg(), _dicts(street)
    straight = _take(build_person_search_train_loader(cfg, dataset=dicts), start + 4)
    later = _take(build_person_search_train_loader(cfg, start_iter=start, dataset=dicts), 4)
    assert _same(later, straight[start:])
    assert not _same(straight[:4], straight[start:])


def test_workers_change_no_pixel(street, data_cfg):
    dicts = _dicts(street)
    alone = _take(build_person_search_train_loader(data_cfg(), 3, dataset=dicts), 8)
    cfg = data_cfg("DATALOADER.NUM_WORKERS", 2)
    assert _same(_take(build_person_search_train_loader(cfg, 3, dataset=dicts), 8), alone)


def test_the_random_state_of_the_training_changes_nothing_and_is_left_alone(street, data_cfg):
    loader = build_person_search_train_loader(data_cfg(), dataset=_dicts(street))
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = _take(loader, 5)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(2)
    assert _same(_take(loader, 5), first)


def test_ranks_share_the_batch_of_a_single_process(street):
    def batches(size, **ranks):
        return _take(_skipping(_dicts(street), batch_size=size, **ranks), 6)

    joint = batches(4)
    shares = [batches(4, rank=rank, world_size=2) for rank in (0, 1)]
    assert _same([a + b for a, b in zip(*shares)], joint)


def test_another_seed_gives_another_order(street, data_cfg):
    dicts = _dicts(street)
    runs = [
        _take(build_person_search_train_loader(data_cfg("SEED", seed), dataset=dicts), 6)
        for seed in (1, 2)
    ]
    assert not _same(*runs)


def test_a_negative_seed_is_drawn_jointly(street, data_cfg, monkeypatch):
    monkeypatch.setattr(comm, "shared_random_seed", lambda: 77)
    dicts = _dicts(street)
    drawn = build_person_search_train_loader(data_cfg("SEED", -1), dataset=dicts)
    fixed = build_person_search_train_loader(data_cfg("SEED", 77), dataset=dicts)
    assert _same(_take(drawn, 3), _take(fixed, 3))


def test_tall_and_wide_images_are_not_mixed_if_grouped(street, data_cfg):
    def mixed(grouping):
        cfg = data_cfg("DATALOADER.ASPECT_RATIO_GROUPING", grouping)
        batches = _take(build_person_search_train_loader(cfg, dataset=_dicts(street)), 30)
        return any(len({s["width"] > s["height"] for s in batch}) > 1 for batch in batches)

    assert not mixed(True) and mixed(False)


def test_images_without_people_are_left_out_if_asked(street, data_cfg):
    def names(keep_empty):
        cfg = data_cfg("DATALOADER.FILTER_EMPTY_ANNOTATIONS", not keep_empty)
        batches = _take(build_person_search_train_loader(cfg, dataset=_dicts(street)), 30)
        return {s["image_id"] for batch in batches for s in batch}

    assert names(False) == set(range(1, 8)) and names(True) == set(range(1, 9))


def test_crowds_alone_are_no_people(street, data_cfg):
    dicts = _dicts(street)
    crowd = {**dicts[0]["annotations"][0], "iscrowd": 1}
    dicts[0]["annotations"].append(crowd)
    dicts[7]["annotations"] = [crowd]
    assert [d["image_id"] for d in training_dicts(data_cfg(), dicts)] == list(range(1, 8))


def test_an_image_is_augmented_anew_in_every_epoch(street, data_cfg):
    cfg = data_cfg("SOLVER.IMS_PER_BATCH", 1)
    loader = build_person_search_train_loader(cfg, dataset=_dicts(street)[:1])
    seen = {sample["image"].numpy().tobytes() for (sample,) in _take(loader, 20)}
    # Mirrored or not, in three sizes.
    assert len(seen) == 6


def test_the_sets_of_the_config_are_joined(little_set, registry, data_cfg):
    for name in ("one", "two"):
        made = little_set(name).add_image(f"{name}.png", [(5, [0, 0, 20, 20])])
        register_person_search_coco(name, str(made.json_file), str(made.images))
        registry.append(name)
    loader = build_person_search_train_loader(data_cfg("DATASETS.TRAIN", ("one", "two")))
    found = {
        (s["file_name"][-7:], s["instances"].gt_person_ids.item())
        for batch in _take(loader, 2)
        for s in batch
    }
    assert found == {("one.png", 0), ("two.png", 1)}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_stops_training_naming_the_file(tear, data_cfg, workers):
    cfg, dicts = data_cfg("DATALOADER.NUM_WORKERS", workers), tear(3)
    with pytest.raises(ImageError, match=r"3\.png: cannot be decoded"):
        _take(build_person_search_train_loader(cfg, dataset=dicts), 10)


def test_skipped_images_are_replaced_counted_and_warned_of(tear, caplog):
    loader = _skipping(tear(3, 6))
    with caplog.at_level(logging.WARNING):
        batches = _take(loader, 40)
    assert all(len(batch) == 2 for batch in batches)
    skipped = [n for batch in batches for s in batch for n in s.get("skipped_images", ())]
    assert {n[-5:] for n in skipped} == {"3.png", "6.png"}
    assert loader.skips.num_skipped == len(skipped) == caplog.text.count("Skipped unreadable image")
    assert loader.skips.num_drawn == 80 + len(skipped)
    assert all(len({s["width"] > s["height"] for s in batch}) == 1 for batch in batches)


def test_replacements_do_not_depend_on_workers_or_start(tear):
    dicts = tear(0, 1, 3)
    straight = _take(_skipping(dicts), 16)
    assert _same(_take(_skipping(dicts, num_workers=2), 16), straight)
    assert _same(_take(_skipping(dicts, start_iter=7), 9), straight[7:])


def test_images_without_fault_are_the_same_whether_or_not_others_are_torn(street, tear):
    whole = _take(_skipping(_dicts(street)), 12)
    torn = _take(_skipping(tear(4)), 12)
    for batch, other in zip(whole, torn):
        for a, b in zip(batch, other):
            assert _same([[a]], [[b]]) != ("skipped_images" in b)


def test_training_stops_when_too_many_images_are_skipped(tear):
    dicts = tear(3)
    with pytest.raises(TooManySkippedImagesError, match=r"INPUT.MAX_SKIPPED_FRACTION.*3\.png"):
        _take(_skipping(dicts, fraction=0.1), 40)
    assert len(_take(_skipping(dicts, fraction=0.2), 40)) == 40


def test_the_allowance_of_a_rank_is_that_of_its_share_of_the_images(street):
    alone, rank = (_skipping(_dicts(street), rank=0, world_size=size) for size in (1, 2))
    assert (alone.skips.expected, rank.skips.expected) == (8, 4)


def test_a_bad_image_among_the_first_is_judged_by_the_epoch():
    counter = SkipCounter(0.01, expected=200)
    counter.count(1, ["a.jpg"])
    counter.count(1, ["b.jpg"])
    with pytest.raises(TooManySkippedImagesError, match="3 of 3 images"):
        counter.count(1, ["c.jpg"])


@pytest.mark.parametrize("workers", [0, 2])
def test_only_bad_images_end_in_an_error_and_not_in_a_hang(tear, workers):
    dicts = tear(*range(8))
    with pytest.raises(ImageError, match="8 images .*png"):
        _take(_skipping(dicts, num_workers=workers), 1)


def test_a_draw_gives_up_after_ten_bad_images(little_set):
    made = little_set()
    for i in range(30):
        made.add_image(f"{i}.png", [(1, [0, 0, 9, 9])])
        (made.images / f"{i}.png").write_bytes(b"torn")
    with pytest.raises(ImageError, match="^10 images .*png"):
        _take(_skipping(_dicts(made)), 1)


def test_no_worker_outlives_an_error(tear):
    running = set(multiprocessing.active_children())
    batches = iter(_skipping(tear(*range(8)), num_workers=2))
    with pytest.raises(ImageError):
        next(batches)
    assert set(multiprocessing.active_children()) == running


def test_a_bad_image_alone_in_its_shape_is_replaced_by_another_shape(street, tear):
    dicts = [d for d in tear(2) if d["image_id"] != 6]
    batches = _take(_skipping(dicts, batch_size=1), 20)
    replaced = [s for (s,) in batches if "skipped_images" in s]
    assert replaced and all(s["width"] > s["height"] for s in replaced)


def test_a_wrong_size_is_never_skipped(street):
    dicts = _dicts(street)
    for record in dicts:
        record["height"] += 1
    with pytest.raises(ValueError, match="Mismatched image shape.*png"):
        _take(_skipping(dicts), 1)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("INPUT.ON_IMAGE_ERROR", "ignore", "INPUT.ON_IMAGE_ERROR 'ignore'"),
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "SAMPLER_TRAIN"),
    ],
)
def test_unknown_settings_are_refused_naming_the_key(street, data_cfg, key, value, message):
    with pytest.raises(ValueError, match=message):
        build_person_search_train_loader(data_cfg(key, value), dataset=_dicts(street))


def test_a_set_without_people_is_refused(little_set, data_cfg):
    dicts = _dicts(little_set().add_image("a.png"))
    with pytest.raises(ValueError, match="DATASETS.TRAIN"):
        build_person_search_train_loader(data_cfg(), dataset=dicts)


def test_the_loader_can_be_sent_to_spawned_workers(street, data_cfg):
    loader = build_person_search_train_loader(data_cfg(), dataset=_dicts(street))
    assert pickle.dumps(loader.dataset)


@pytest.fixture
def registered(street, registry):
    street.write_queries("10 2 3 10 20 0", "11 2 3 10 20 1")
    register_person_search_coco(
        "street_set", str(street.json_file), str(street.images), str(street.query_info)
    )
    registry.append("street_set")
    return "street_set"


@pytest.mark.parametrize("workers", [0, 2])
def test_the_test_loader_gives_each_image_once_with_its_queries(registered, data_cfg, workers):
    cfg = data_cfg("DATALOADER.NUM_WORKERS", workers)
    batches = list(build_person_search_test_loader(cfg, registered))
    assert [len(batch) for batch in batches] == [1] * 8
    assert [batch[0]["image_id"] for batch in batches] == list(range(1, 9))
    assert [batch[0].get("query_ids") for batch in batches] == [[0], [1]] + [None] * 6
    assert not any("instances" in s or "gallery_boxes" in s for (s,) in batches)


def test_the_test_loader_gives_true_boxes_if_the_config_asks(registered, data_cfg):
    cfg = data_cfg("TEST.PERSON_SEARCH.USE_GT_BOXES", True)
    counts = [len(s["gallery_boxes"]) for (s,) in build_person_search_test_loader(cfg, registered)]
    assert counts == [2] * 7 + [0]


def test_the_test_loader_never_skips(registered, tear, data_cfg):
    tear(3)
    cfg = data_cfg("INPUT.ON_IMAGE_ERROR", "skip")
    with pytest.raises(ImageError, match=r"3\.png"):
        list(build_person_search_test_loader(cfg, registered))


def test_the_table_loader_gives_each_image_with_people_once_and_unaltered(registered, data_cfg):
    loader = build_person_search_table_loader(data_cfg(), registered)
    samples = [s for (s,) in loader]
    assert len(loader) == 7 and [s["image_id"] for s in samples] == list(range(1, 8))
    again = [s for (s,) in build_person_search_table_loader(data_cfg(), (registered,))]
    assert _same([samples], [again])
    instances = samples[0]["instances"]
    assert samples[0]["image"].shape == (3, 24, 32) and instances.image_size == (24, 32)
    assert instances.gt_boxes.tensor.tolist() == [[1, 1.5, 6, 11.5], [15, 2.5, 21, 17.5]]
    assert [s["instances"].gt_person_ids.tolist() for s in samples] == [
        [i % 4, -1] for i in range(7)
    ]


def test_the_table_loader_leaves_unreadable_images_out_if_asked(registered, tear, data_cfg):
    tear(3)
    with pytest.raises(ImageError, match=r"3\.png"):
        list(build_person_search_table_loader(data_cfg(), registered))
    skip = ("INPUT.ON_IMAGE_ERROR", "skip", "INPUT.MAX_SKIPPED_FRACTION")
    loader = build_person_search_table_loader(data_cfg(*skip, 0.2), registered)
    assert [s["image_id"] for (s,) in loader] == [1, 2, 3, 5, 6, 7]
    with pytest.raises(TooManySkippedImagesError):
        list(build_person_search_table_loader(data_cfg(*skip, 0.1), registered))


def test_ranks_split_the_test_set(registered, data_cfg, monkeypatch):
    seen = []
    for rank in range(3):
        for module in ("detectron2.data.samplers.distributed_sampler.comm",):
            monkeypatch.setattr(f"{module}.get_rank", lambda rank=rank: rank)
            monkeypatch.setattr(f"{module}.get_world_size", lambda: 3)
        loader = build_person_search_test_loader(data_cfg(), registered)
        seen += [s["image_id"] for (s,) in loader]
    assert sorted(seen) == list(range(1, 9))
