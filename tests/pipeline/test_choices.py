"""The rules by which init chooses, compared with the shipped configs that they come from."""

import numpy as np
import pytest
import yaml

from kd_search import model_zoo
from kd_search.pipeline.choices import Choice, choose_common, choose_networks, choose_training
from kd_search.pipeline.networks import NETWORKS
from kd_search.pipeline.own_data import Statistics, statistics_of
from kd_search.pipeline.project import config_text

NO_WEIGHTS = {"teacher": None, "student": None}
WEIGHTS = {"teacher": "a.pkl", "student": "b.pth"}


def data(**changes):
    """About PRW-c6: 720 x 576, one camera."""
    usual = {"images": 480, "identities": 147, "labelled": 1056, "unlabelled": 4}
    usual |= {"short_side": 576, "aspect": 1.25, "height": 132.0}
    usual |= {"small": 61.2, "large": 274.4, "crowd": 6}
    return Statistics(**{**usual, **changes})


def keys(choices):
    return {key: value for choice in choices for key, value in choice.keys.items()}


def test_input_of_the_shipped_cpu_config():
    chosen, shipped = (
        keys(choose_common(data(), "cpu")),
        model_zoo.get_config(NETWORKS["r18_fpn"].config),
    )
    assert tuple(chosen["INPUT.MIN_SIZE_TRAIN"]) == shipped.INPUT.MIN_SIZE_TRAIN
    assert chosen["INPUT.MIN_SIZE_TEST"] == shipped.INPUT.MIN_SIZE_TEST
    assert chosen["SOLVER.IMS_PER_BATCH"] == shipped.SOLVER.IMS_PER_BATCH


def test_input_of_the_shipped_gpu_config():
    chosen = keys(choose_common(data(short_side=1080, height=300.0), "cuda"))
    shipped = model_zoo.get_config("prw/r50_fpn.yaml")
    assert chosen["INPUT.MIN_SIZE_TEST"] == shipped.INPUT.MIN_SIZE_TEST
    assert chosen["INPUT.MAX_SIZE_TEST"] == shipped.INPUT.MAX_SIZE_TEST


@pytest.mark.parametrize(
    ("changes", "device", "side"),
    [
        ({"short_side": 192, "height": 70.0}, "cpu", 192),  # never enlarged
        ({"short_side": 1080, "height": 200.0}, "cpu", 344),  # people of 64 pixels
        ({"short_side": 1080, "height": 50.0}, "cpu", 576),  # no larger
        ({"short_side": 1080, "height": 50.0}, "cuda", 896),
    ],
)
def test_input_follows_the_size_of_people(changes, device, side):
    assert keys(choose_common(data(**changes), device))["INPUT.MIN_SIZE_TEST"] == side


def test_places_of_identities_and_detections_follow_the_data():
    chosen = keys(choose_common(data(), "cpu"))
    assert chosen["MODEL.OIM.NUM_IDS"] == 0 and chosen["MODEL.OIM.QUEUE_SIZE"] == 200
    assert "TEST.DETECTIONS_PER_IMAGE" not in chosen
    crowded = keys(choose_common(data(identities=9000, crowd=40), "cpu"))
    assert crowded["MODEL.OIM.QUEUE_SIZE"] == 5000
    assert crowded["TEST.DETECTIONS_PER_IMAGE"] == 80


@pytest.mark.parametrize(
    ("changes", "iterations"),
    [
        ({}, 1010),  # 60 sightings of 7.2 boxes are 8.4 epochs of 120 batches
        ({"labelled": 147 * 30}, 720),  # 6 epochs at least
        ({"labelled": 147 * 2}, 2400),  # 20 at most
        ({"images": 40}, 450),  # 450 iterations at least
    ],
)
def test_schedule_from_scratch_follows_pictures_and_identities(changes, iterations):
    chosen = keys(choose_training(NETWORKS["r18_fpn"], data(**changes), 288))
    assert chosen["SOLVER.MAX_ITER"] == iterations


def test_anchors_follow_the_size_of_people_in_the_input():
    network = NETWORKS["r18_fpn"]
    chosen = keys(choose_training(network, data(), 288))["MODEL.ANCHOR_GENERATOR.SIZES"]
    assert chosen == [[32], [64], [136]]
    shipped = model_zoo.get_config(network.config).MODEL.ANCHOR_GENERATOR.SIZES
    assert np.allclose(chosen, shipped, rtol=0.1)


def test_schedule_from_imagenet_weights_is_the_recipe_for_the_batch():
    chosen = keys(choose_training(NETWORKS["r50_fpn"], data(images=5704), 600))
    shipped = model_zoo.get_config("prw/r50_fpn.yaml").SOLVER
    epochs = chosen["SOLVER.MAX_ITER"] * 4 / 5704
    assert epochs == pytest.approx(shipped.MAX_ITER * shipped.IMS_PER_BATCH / 5704, rel=0.001)
    assert chosen["SOLVER.BASE_LR"] == pytest.approx(shipped.BASE_LR * 4 / shipped.IMS_PER_BATCH)
    assert chosen["SOLVER.STEPS"] == [int(0.8 * chosen["SOLVER.MAX_ITER"])]
    assert "MODEL.ANCHOR_GENERATOR.SIZES" not in chosen


@pytest.mark.parametrize(
    ("images", "device", "weights", "teacher"),
    [
        (480, "cpu", NO_WEIGHTS, "r18_fpn"),
        (5704, "cuda", NO_WEIGHTS, "r18_fpn"),
        (5704, "cuda", WEIGHTS, "r50_fpn"),
        (5704, "cpu", WEIGHTS, "r18_fpn"),
        (480, "cuda", WEIGHTS, "r18_fpn"),
    ],
)
def test_networks_of_the_papers_need_data_a_gpu_and_weights(images, device, weights, teacher):
    names, choices = choose_networks(data(images=images), device, None, None, weights)
    assert names["teacher"] == teacher
    assert choices[0].keys["MODEL.WEIGHTS"] == (weights["teacher"] or "")


def test_networks_by_name():
    names, _ = choose_networks(data(), "cpu", "r50_fpn", None, {**NO_WEIGHTS, "teacher": "r50.pkl"})
    assert names == {"teacher": "r50_fpn", "student": "r18w50_fpn"}
    with pytest.raises(ValueError, match="r50_fpn.*--teacher-weights"):
        choose_networks(data(), "cpu", "r50_fpn", None, NO_WEIGHTS)
    with pytest.raises(ValueError, match="--student r9.*r18w50_fpn"):
        choose_networks(data(), "cpu", None, "r9", NO_WEIGHTS)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_a_shipped_config(name):
    cfg = model_zoo.get_config(NETWORKS[name].config)
    assert cfg.MODEL.META_ARCHITECTURE == "PersonSearchRCNN"
    # Tables of embeddings are of one size.
    assert cfg.MODEL.REID_HEAD.EMBEDDING_DIM == 256


def test_statistics():
    def record(width, height, *people):
        boxes = [
            {"bbox": [0, 0, w, h], "person_id": person, "iscrowd": 0} for w, h, person in people
        ]
        return {"width": width, "height": height, "annotations": boxes}

    found = statistics_of(
        [
            record(200, 100, (10, 40, 0), (10, 40, 1)),
            record(100, 300, (4, 16, 0), (20, 80, -1), (10, 40, 1)),
            record(90, 90),
        ]
    )
    assert (found.images, found.identities, found.labelled, found.unlabelled) == (2, 2, 4, 1)
    assert (found.short_side, found.aspect) == (100, 2.0)
    assert (found.height, found.crowd) == (40.0, 3)
    # Sizes 8, 20, 20, 20, 40: percentiles by linear interpolation.
    assert found.small == pytest.approx(8 + 0.2 * 12)
    assert found.large == pytest.approx(20 + 0.96 * 20)


def test_comments_of_a_config_hold_words_longer_than_a_line():
    path = "/" + "long_folder/" * 20 + "my photos"
    text = config_text("data", [], [Choice("data", path, "given", {"SEED": 1})])
    *comments, keys = text.splitlines()
    assert yaml.safe_load(keys) == {"SEED": 1} and all(line.startswith("# ") for line in comments)
    words = " ".join(line[2:].strip() for line in comments)
    assert f"data: {path} (given)" in words
    assert all(len(line) <= 96 for line in comments if "long_folder" not in line)
