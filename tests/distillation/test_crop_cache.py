"""Teacher outputs that are computed once are those that would be computed again."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from tiny import tiny_cfg
from tiny_reid import reid_cfg

import kd_search.distillation  # noqa: F401  registers the Distiller
from kd_search.data import (
    PersonSearchDatasetMapper,
    get_person_search_dicts,
    register_person_search_coco,
)
from kd_search.data.synthesis import PRESETS, generate_dataset

TERMS = ["IdentityProbabilityTerm", "PairRelationTerm", "TripletRelationTerm"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("generated")
    generate_dataset(root, PRESETS["tiny"], seed=0, progress=False)
    register_person_search_coco(
        "crop_cache_train", str(root / "train.json"), str(root / "train" / "images")
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
    assert plain.reid_teacher.cache is None and cached.reid_teacher.cache is not None
    computed = []
    original = cached.reid_teacher.model.crop_features
    cached.reid_teacher.model.crop_features = lambda x: computed.append(len(x)) or original(x)
    expected, found = epoch_of_losses(plain, dataset), epoch_of_losses(cached, dataset)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0
    # Nothing but shifted people is computed any more.
    assert (sum(computed) > 0) == shifts


def test_a_cache_is_used_again_and_a_torn_one_made_anew(tmp_path, dataset, caplog):
    save_teacher(tmp_path, 1)
    first = distiller(tmp_path, dataset, tmp_path / "cache").reid_teacher.cache
    (folder,) = (tmp_path / "cache").iterdir()
    features = folder / "features.npy"
    written = features.stat().st_mtime_ns
    expected = np.array(first.features)
    distiller(tmp_path, dataset, tmp_path / "cache")
    assert features.stat().st_mtime_ns == written
    content = features.read_bytes()
    for harmed in (content[:-40], content[:-1] + bytes([content[-1] ^ 1]), b""):
        features.write_bytes(harmed)
        with caplog.at_level("INFO", "kd_search.distillation.crop_cache"):
            again = distiller(tmp_path, dataset, tmp_path / "cache").reid_teacher.cache
        assert np.array_equal(np.array(again.features), expected)
        assert "is not as it was written" in caplog.text
        caplog.clear()
    (folder / "index.json").write_text("{")
    with caplog.at_level("INFO", "kd_search.distillation.crop_cache"):
        distiller(tmp_path, dataset, tmp_path / "cache")
    assert "is torn" in caplog.text


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
