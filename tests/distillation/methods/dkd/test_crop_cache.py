"""Teacher outputs that are computed once are those that would be computed again."""

import json
import shutil

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from PIL import Image
from tiny import tiny_cfg
from tiny_reid import reid_cfg

import kd_search.distillation  # noqa: F401  registers the Distiller
from kd_search.data import (
    PersonSearchDatasetMapper,
    get_person_search_dicts,
    register_person_search_coco,
)
from kd_search.data.io.image import read_image
from kd_search.distillation.methods.dkd import crop_cache
from kd_search.synthetic import PRESETS, generate_dataset

TERMS = ["IdentityProbabilityTerm", "PairRelationTerm", "TripletRelationTerm"]


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    root = tmp_path_factory.mktemp("generated")
    generate_dataset(root, PRESETS["tiny"], seed=0, progress=False)
    return root


@pytest.fixture(scope="module")
def dataset(generated):
    register_person_search_coco(
        "crop_cache_train", str(generated / "train.json"), str(generated / "train" / "images")
    )
    return "crop_cache_train"


def save_teacher(folder, seed):
    cfg = reid_cfg("MODEL.REID_NETWORK.NUM_IDS", 6, "REID_DATA.SIZE", [64, 32])
    torch.manual_seed(seed)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "teacher.pth")
    (folder / "teacher.yaml").write_text(cfg.dump())


def distiller(folder, dataset, cache_dir, *overrides):
    cfg = tiny_cfg(
        "fpn",
        *("MODEL.META_ARCHITECTURE", "Distiller", "DISTILLATION.TERMS", TERMS),
        *("DISTILLATION.REID_TEACHER.CONFIG_FILE", str(folder / "teacher.yaml")),
        *("DISTILLATION.REID_TEACHER.WEIGHTS", str(folder / "teacher.pth")),
        *("DISTILLATION.REID_TEACHER.CACHE_DIR", str(cache_dir), "DATASETS.TRAIN", (dataset,)),
        *("DISTILLATION.DKD.PROJECTION", True, *overrides),
    )
    torch.manual_seed(0)
    return build_model(cfg).train()


def cache_of(*args):
    """The cache of the teacher of :func:`distiller`."""
    return distiller(*args).companions["ReIDTeacher"].cache


def epoch_of_losses(model, dataset):
    """Losses of every image, as it is and mirrored."""
    losses = []
    for flip in ([], [T.HFlipTransform(320)]):
        mapper = PersonSearchDatasetMapper(True, augmentations=flip, with_original=True)
        for record in get_person_search_dicts(dataset)[0]:
            torch.manual_seed(7)
            with EventStorage(), torch.no_grad():
                found = model([mapper(record)])
            losses.append([float(found[name]) for name in sorted(found)])
    return np.array(losses)


@pytest.mark.parametrize("shifts", [False, True])
def test_a_cached_epoch_equals_an_uncached_one(tmp_path, dataset, shifts):
    save_teacher(tmp_path, 1)
    sia = ("DISTILLATION.SIA.FEATURE_LEVEL", shifts)
    plain = distiller(tmp_path, dataset, "", *sia)
    cached = distiller(tmp_path, dataset, tmp_path / "cache", *sia)
    teacher = cached.companions["ReIDTeacher"]
    assert plain.companions["ReIDTeacher"].cache is None and teacher.cache is not None
    computed = []
    original = teacher.model.crop_features
    teacher.model.crop_features = lambda x: computed.append(len(x)) or original(x)
    expected, found = epoch_of_losses(plain, dataset), epoch_of_losses(cached, dataset)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0
    # Nothing but shifted people is computed any more.
    assert (sum(computed) > 0) == shifts


def test_a_cache_is_used_again_and_a_corrupt_one_is_built_again(tmp_path, dataset, caplog):
    save_teacher(tmp_path, 1)
    first = cache_of(tmp_path, dataset, tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    features = folder / "features.npy"
    written = features.stat().st_mtime_ns
    expected = np.array(first.features)
    distiller(tmp_path, dataset, tmp_path / "cache")
    assert features.stat().st_mtime_ns == written
    content = features.read_bytes()
    for harmed in (content[:-40], content[:-1] + bytes([content[-1] ^ 1]), b""):
        features.write_bytes(harmed)
        with caplog.at_level("INFO", "kd_search.distillation.methods.dkd.crop_cache"):
            again = cache_of(tmp_path, dataset, tmp_path / "cache")
        assert np.array_equal(np.array(again.features), expected)
        assert str(features) in caplog.text
        caplog.clear()
    (folder / "index.json").write_text("{")
    with caplog.at_level("INFO", "kd_search.distillation.methods.dkd.crop_cache"):
        distiller(tmp_path, dataset, tmp_path / "cache")
    assert str(folder) in caplog.text
    assert json.loads((folder / "index.json").read_text())["sha256"]


def test_an_interrupted_build_starts_again(tmp_path, dataset, monkeypatch):
    save_teacher(tmp_path, 1)
    expected = np.array(cache_of(tmp_path, dataset, tmp_path / "whole").features)
    calls, features = [], crop_cache.cut_crops

    def stop_half_way(*args, **kwargs):
        calls.append(args)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return features(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(crop_cache, "cut_crops", stop_half_way)
        with pytest.raises(KeyboardInterrupt):
            distiller(tmp_path, dataset, tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    assert not list(folder.iterdir())
    again = cache_of(tmp_path, dataset, tmp_path / "cache")
    assert np.array_equal(np.array(again.features), expected)
    assert {p.name for p in folder.iterdir()} == {"index.json", "features.npy"}


def test_a_cache_of_another_teacher_is_built_again(tmp_path, dataset, caplog):
    """Features of another teacher under this one's name: copied by hand, or a clash of names."""
    folders = {}
    for seed in (1, 2):
        save_teacher(tmp_path, seed)
        cache = cache_of(tmp_path, dataset, tmp_path / f"cache{seed}")
        (folders[seed],) = (tmp_path / f"cache{seed}").iterdir()
    expected = np.array(cache.features)
    for name in ("index.json", "features.npy"):
        (folders[2] / name).write_bytes((folders[1] / name).read_bytes())
    assert not np.allclose(np.load(folders[2] / "features.npy"), expected, rtol=1e-2)
    with caplog.at_level("INFO", "kd_search.distillation.methods.dkd.crop_cache"):
        again = cache_of(tmp_path, dataset, tmp_path / "cache2")
    assert str(folders[2] / "index.json") in caplog.text
    assert np.array_equal(np.array(again.features), expected)


@pytest.fixture
def copied_set(tmp_path, generated):
    """``copied_set(name, change)``: the same images and annotations elsewhere, then changed."""
    names = []

    def make(name, change=lambda content: None):
        root = tmp_path / name
        shutil.copytree(generated, root)
        content = json.loads((root / "train.json").read_text())
        change(content)
        (root / "train.json").write_text(json.dumps(content))
        register_person_search_coco(name, str(root / "train.json"), str(root / "train" / "images"))
        names.append(name)
        return name

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_a_set_that_was_moved_keeps_its_cache(tmp_path, dataset, copied_set):
    save_teacher(tmp_path, 1)
    cache = cache_of(tmp_path, dataset, tmp_path / "cache")
    moved = copied_set("crop_cache_moved")
    found = cache_of(tmp_path, moved, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    here, there = (get_person_search_dicts(name)[0] for name in (dataset, moved))
    for a, b in zip(here, there):
        assert a["file_name"] != b["file_name"]
        places = torch.arange(len(a["annotations"]))
        features = [c.read(x["file_name"], places, True) for c, x in ((cache, a), (found, b))]
        assert torch.equal(*features)


def test_a_changed_box_is_computed_again(tmp_path, dataset, copied_set):
    save_teacher(tmp_path, 1)
    before = np.array(cache_of(tmp_path, dataset, tmp_path / "cache").features)

    def narrower(content):
        content["annotations"][0]["bbox"][2] *= 0.5

    changed = copied_set("crop_cache_changed", narrower)
    after = np.array(cache_of(tmp_path, changed, tmp_path / "cache").features)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    differ = (np.abs(after - before) > 1e-4).any(axis=(1, 2))
    assert differ.sum() == 1


def test_an_image_that_was_replaced_under_its_name_is_computed_again(tmp_path, dataset, copied_set):
    save_teacher(tmp_path, 1)
    before = np.array(cache_of(tmp_path, dataset, tmp_path / "cache").features)
    changed = copied_set("crop_cache_replaced")
    record = get_person_search_dicts(changed)[0][0]
    image = read_image(record["file_name"], "RGB")
    Image.fromarray(255 - image).save(record["file_name"])
    after = np.array(cache_of(tmp_path, changed, tmp_path / "cache").features)
    differ = (np.abs(after - before) > 1e-4).any(axis=(1, 2))
    assert differ.sum() == len(record["annotations"]) > 0


def test_another_teacher_or_crop_has_another_cache(tmp_path, dataset):
    save_teacher(tmp_path, 1)
    cache = tmp_path / "cache"
    distiller(tmp_path, dataset, cache)
    save_teacher(tmp_path, 2)
    distiller(tmp_path, dataset, cache)
    assert len(list(cache.iterdir())) == 2
    distiller(tmp_path, dataset, cache, "DISTILLATION.REID_TEACHER.MIRROR_CROPS", False)
    assert len(list(cache.iterdir())) == 3
    opts = ["REID_DATA.SIZE", [32, 16]]
    distiller(tmp_path, dataset, cache, "DISTILLATION.REID_TEACHER.OPTS", opts)
    assert len(list(cache.iterdir())) == 4
