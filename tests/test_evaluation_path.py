"""Loader, network and evaluator together, with detected and with ground-truth boxes."""

import csv

import pytest
import torch
from detectron2.data import DatasetCatalog

from kd_search.engine import PersonSearchTrainer, build_config
from kd_search.evaluation import evaluate_detections_file
from kd_search.synthetic import PRESETS, generate_dataset
from tests.tiny import REPO

TINY = (
    *("MODEL.RESNETS.WIDTH_MULTIPLIER", 0.25, "MODEL.FPN.OUT_CHANNELS", 16),
    *("MODEL.REID_HEAD.CONV_DIM", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 16),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.PERSON_SEARCH.SCORE_THRESH", 0.0),
)


@pytest.fixture(scope="module", autouse=True)
def generated(tmp_path_factory):
    root = tmp_path_factory.mktemp("set") / "data"
    generate_dataset(root, PRESETS["tiny"], seed=0, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KD_SEARCH_GENERATED", str(root))
        yield


def evaluate(output, *overrides):
    config = str(REPO / "configs/generated/student_r18w50_fpn.yaml")
    cfg = build_config(config, [*TINY, "OUTPUT_DIR", str(output), *overrides])
    torch.manual_seed(0)
    model = PersonSearchTrainer.build_model(cfg).eval()
    results = PersonSearchTrainer.test(cfg, model)
    return results, output / "inference" / cfg.DATASETS.TEST[0], cfg.DATASETS.TEST[0]


def test_detected_boxes(tmp_path):
    results, folder, name = evaluate(tmp_path)
    search = results["person_search"]
    assert search["queries"] > 0
    assert 0 <= search["mAP"] <= 100 and 0 <= results["detection"]["recall"] <= 100
    again = evaluate_detections_file(
        folder / "person_search_detections.npz",
        DatasetCatalog.get(name),
        score_thresh=0.0,
    )
    assert again["person_search"] == search


def test_ground_truth_boxes_find_everybody(tmp_path):
    results, _, _ = evaluate(tmp_path, "TEST.PERSON_SEARCH.USE_GT_BOXES", True)
    assert "detection" not in results
    detected, _, _ = evaluate(tmp_path)
    # An untrained network detects nobody, but its embeddings of given boxes carry some information.
    assert results["person_search"]["mAP"] > detected["person_search"]["mAP"]


def test_one_pass_gives_rows_for_detected_and_for_ground_truth_boxes(tmp_path):
    given, _, _ = evaluate(tmp_path / "given", "TEST.PERSON_SEARCH.USE_GT_BOXES", True)
    both, folder, _ = evaluate(tmp_path / "both", "TEST.PERSON_SEARCH.EMBED_GT_BOXES", True)
    with open(folder / "person_search_table.csv") as file:
        rows = list(csv.DictReader(file))
    plain = {
        row["boxes"]: float(row["mAP"])
        for row in rows
        if (row["gallery"], row["cameras"], row["subset"]) == ("all", "all", "all")
        and (row["rerank"], row["mode"]) == ("none", "corrected")
    }
    assert plain["detected"] == pytest.approx(both["person_search"]["mAP"], abs=0.01)
    assert plain["ground_truth"] == pytest.approx(given["person_search"]["mAP"], abs=0.01)
