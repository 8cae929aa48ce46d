"""Re-ID sets and networks in configs, and their training from the command line on."""

import contextlib
import json
import os
import signal

import pytest
import torch
from detectron2.data import DatasetCatalog

from kd_search.data import register_person_search_coco
from kd_search.data.reid import register_market1501_split
from kd_search.engine import PersonSearchTrainer, build_config
from kd_search.engine.task import best_metric, train_task

TINY = [
    *("MODEL.META_ARCHITECTURE", "ReIDNetwork", "MODEL.DEVICE", "cpu"),
    *("MODEL.BACKBONE.NAME", "build_width_resnet_backbone", "MODEL.BACKBONE.FREEZE_AT", "0"),
    *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.NORM", "BN"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.RESNETS.WIDTH_MULTIPLIER", "0.125"),
    *("MODEL.RESNETS.OUT_FEATURES", "['res5']", "MODEL.RESNETS.RES5_STRIDE", "1"),
    *("REID_DATA.SIZE", "[32, 16]", "REID_DATA.IDS_PER_BATCH", "2"),
    *("SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2"),
    *("DATALOADER.NUM_WORKERS", "0", "SEED", "3"),
]


@pytest.fixture
def market(crops, registry):
    """The registered sets market_train (4 people) and market_test (2)."""
    registry.extend(["market_train", "market_test"])
    register_market1501_split("market", str(crops), tracklets=False)
    return [*TINY, "DATASETS.TRAIN", "('market_train',)", "DATASETS.TEST", "('market_test',)"]


@pytest.fixture
def people(little_set, registry):
    made = little_set()
    for i in range(4):
        made.add_image(f"{i}.png", [(10 + i % 2, [2, 3, 10, 20]), (-1, [30, 5, 12, 30])])
    registry.extend(["people", "people_crops"])
    register_person_search_coco("people", str(made.json_file), str(made.images))
    return "people"


def test_identities_are_counted(market):
    cfg = build_config("", market)
    assert cfg.MODEL.REID_NETWORK.NUM_IDS == 4 and cfg.MODEL.OIM.NUM_IDS == 0
    cfg = build_config("", [*market, "MODEL.REID_NETWORK.NUM_IDS", "9"])
    assert cfg.MODEL.REID_NETWORK.NUM_IDS == 9


def test_crops_of_a_person_search_set_are_named_in_the_config(people):
    names = ["DATASETS.TRAIN", "('people_crops',)", "DATASETS.TEST", "()"]
    cfg = build_config("", [*TINY, *names])
    assert "people_crops" in DatasetCatalog.list() and cfg.MODEL.REID_NETWORK.NUM_IDS == 2
    batch = next(iter(PersonSearchTrainer.build_train_loader(cfg)))
    assert sorted(sample["person_id"] for sample in batch) == [0, 0, 1, 1]


def test_a_missing_training_set_stops_training_but_not_evaluation(market, registry):
    registry.append("gone_train")
    register_market1501_split("gone", "/nowhere/at/all")
    registry.append("gone_test")
    gone = [*market, "DATASETS.TRAIN", "('gone_train',)"]
    with pytest.raises(FileNotFoundError, match="/nowhere/at/all"):
        build_config("", gone)
    assert build_config("", gone, eval_only=True).MODEL.REID_NETWORK.NUM_IDS == 1


def test_kinds_do_not_mix(market, people):
    assert train_task(["market_train"]) == "reid" and train_task(["people"]) == "person_search"
    both = [*market, "DATASETS.TRAIN", "('market_train', 'people')"]
    with pytest.raises(ValueError, match=r"mixes re-ID sets .market_train. with .*people"):
        build_config("", both)
    with pytest.raises(ValueError, match="people has whole images, .* its crops, people_crops"):
        build_config("", [*market, "DATASETS.TRAIN", "('people',)"])
    detector = [*market, "MODEL.META_ARCHITECTURE", "PersonSearchRCNN"]
    with pytest.raises(ValueError, match="market_train.*PersonSearchRCNN"):
        build_config("", detector)
    # A set that was loaded has ids in its metadata; that makes it no person search set.
    DatasetCatalog.get("market_train")
    with pytest.raises(ValueError, match="market_train.*GeneralizedRCNN"):
        build_config("", [*market, "MODEL.META_ARCHITECTURE", "GeneralizedRCNN"])


def test_the_best_checkpoint_is_that_of_the_best_map(market):
    assert best_metric(build_config("", market)) == "reid/mAP"


@pytest.fixture
def train(market, tmp_path):
    """``train(folder, *overrides)`` trains and returns the trainer."""

    def run(folder, *overrides, resume=False, stop=False):
        output = ["OUTPUT_DIR", str(tmp_path / folder), "DATASETS.TEST", "()"]
        cfg = build_config("", [*market, *output, *overrides])
        trainer = PersonSearchTrainer(cfg)
        trainer.resume_or_load(resume=resume)
        with pytest.raises(KeyboardInterrupt) if stop else contextlib.nullcontext():
            if stop:
                _interrupt_after(trainer, 2)
            trainer.train()
        return trainer

    return run


def _interrupt_after(trainer, iterations):
    step = trainer.run_step

    def run_step():
        step()
        if trainer.iter + 1 == iterations:
            os.kill(os.getpid(), signal.SIGINT)

    trainer.run_step = run_step


def test_a_resumed_training_ends_where_a_straight_one_does(train, tmp_path):
    straight = train("straight")
    train("resumed", stop=True)
    resumed = train("resumed", resume=True)
    assert resumed.start_iter >= 2
    for (name, a), (_, b) in zip(
        straight.model.state_dict().items(), resumed.model.state_dict().items()
    ):
        assert torch.equal(a, b), name
    lines = (tmp_path / "straight" / "metrics.json").read_text().splitlines()
    losses = json.loads(lines[-1])
    assert {"loss_reid_cls", "loss_reid_triplet"} <= set(losses)


@pytest.mark.parametrize("source", ["cameras", "tracklet"])
def test_sets_of_several_frames_are_trained_on(train, source):
    views = ("REID_DATA.VIEWS.NUM", "3", "REID_DATA.VIEWS.SOURCE", source, "SOLVER.MAX_ITER", "1")
    trainer = train("views", *views)
    assert torch.isfinite(trainer.model.classifier.weight).all() and trainer.max_iter == 1


def test_the_test_loader_is_that_of_the_kind(market):
    cfg = build_config("", market)
    batches = list(PersonSearchTrainer.build_test_loader(cfg, "market_test"))
    roles = {sample["role"] for batch in batches for sample in batch}
    assert roles == {"query", "gallery"}
    model = PersonSearchTrainer.build_model(cfg).eval()
    with torch.no_grad():
        outputs = model(batches[0])
    assert len(outputs) == len(batches[0]) and outputs[0]["embedding"].ndim == 1


def test_a_network_is_evaluated_on_the_test_identities(market, tmp_path):
    cfg = build_config("", [*market, "OUTPUT_DIR", str(tmp_path / "out")])
    results = PersonSearchTrainer.test(cfg, PersonSearchTrainer.build_model(cfg))
    assert 0 <= results["reid"]["mAP"] <= 100 and "top1" in results["reid"]
    assert (tmp_path / "out" / "inference" / "market_test").is_dir()
