"""The evaluator with a faked model: metrics, files, several ranks, refusals."""

import json
import math
from collections import OrderedDict

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.testing import print_csv_format
from detectron2.utils import comm

from benchmarks._search_reference import GalleryImage, search_one_query
from kd_search.config import add_kd_search_config
from kd_search.evaluation import (
    Detections,
    GroundTruth,
    PersonSearchEvaluator,
    evaluate_detections_file,
)
from tests.evaluation.search import fake_model
from tests.evaluation.search.detection_reference import detection_by_loop

NAME = "kd_search_test_evaluator"
RESULTS = "person_search_results.json"
FEATURES = "person_search_detections.npz"


def evaluate(records, run=None, **options):
    fake_model.register(NAME, records)
    evaluator = PersonSearchEvaluator(dataset_name=NAME, **options)
    evaluator.reset()
    for inputs, outputs in zip(*(run or fake_model.run_model(records))):
        evaluator.process([inputs], [outputs])
    return evaluator.evaluate()


def reference_results(records):
    """Metrics of the faked model by the per-pair definition, in percent."""
    inputs, outputs = fake_model.run_model(records)
    gallery = []
    for record, output in zip(records, outputs):
        found, people = output["instances"], record["annotations"]
        gallery.append(
            GalleryImage(
                boxes=found.pred_boxes.tensor.double().numpy(),
                scores=found.scores.numpy(),
                embeddings=found.pred_embeddings.double().numpy(),
                gt_boxes=np.array([person["bbox"] for person in people]),
                gt_person_ids=np.array([person["person_id"] for person in people]),
            )
        )
    queries = [
        search_one_query(embedding.double().numpy(), query["person_id"], index, gallery)
        for index, (record, output) in enumerate(zip(records, outputs))
        for query, embedding in zip(record.get("queries", []), output.get("query_embeddings", []))
    ]
    answered = [query for query in queries if query.num_gt]
    expected = {"mAP": 100 * np.mean([query.ap for query in answered])}
    for k in (1, 5, 10):
        hits = [1 <= query.first_hit_rank <= k for query in answered]
        expected[f"top{k}"] = 100 * np.mean(hits)
    expected["queries"] = len(answered)
    expected["queries_without_match"] = len(queries) - len(answered)
    return expected, gallery


def flatten(gallery):
    """(Detections, GroundTruth) of a list of gallery images."""
    found = np.repeat(np.arange(len(gallery)), [len(image.boxes) for image in gallery])
    people = np.repeat(np.arange(len(gallery)), [len(image.gt_boxes) for image in gallery])
    return (
        Detections(
            np.concatenate([image.boxes for image in gallery]),
            np.concatenate([image.scores for image in gallery]),
            found,
        ),
        GroundTruth(
            np.concatenate([image.gt_boxes for image in gallery]),
            np.concatenate([image.gt_person_ids for image in gallery]),
            people,
        ),
    )


def test_metrics_equal_the_definition_and_have_detectron2s_form():
    records = fake_model.make_dataset()
    results = evaluate(records)
    expected, gallery = reference_results(records)
    assert issubclass(PersonSearchEvaluator, DatasetEvaluator)
    assert isinstance(results, OrderedDict)
    assert list(results) == ["person_search", "detection"]
    assert results["person_search"] == pytest.approx(expected)
    assert 5 < results["person_search"]["mAP"] < 95  # or the faked model shows nothing

    ap, recall = detection_by_loop(*flatten(gallery))
    assert results["detection"] == pytest.approx({"AP": 100 * ap, "recall": 100 * recall})
    print_csv_format(results)  # Detectron2's own printer takes them


@pytest.mark.parametrize("image_id", [int, str])
def test_saved_detections_give_the_same_results_without_the_model(tmp_path, image_id):
    records = fake_model.make_dataset(image_id=image_id)
    results = evaluate(records, output_dir=str(tmp_path / "live"))
    (tmp_path / "again").mkdir()
    again = evaluate_detections_file(
        tmp_path / "live" / FEATURES, records, output_dir=tmp_path / "again"
    )
    assert again == results
    live, saved = ((tmp_path / d / RESULTS).read_text() for d in ("live", "again"))
    assert live == saved
    stricter = evaluate_detections_file(tmp_path / "live" / FEATURES, records, score_thresh=0.8)
    assert stricter["person_search"]["mAP"] < results["person_search"]["mAP"]


def test_per_query_results_are_saved(tmp_path):
    records = fake_model.make_dataset()
    results = evaluate(records, output_dir=str(tmp_path / "made" / "here"), top_k=[1, 3])
    document = json.loads((tmp_path / "made" / "here" / RESULTS).read_text())
    assert document["dataset"] == NAME
    assert document["protocol"] == {
        "score_thresh": 0.5,
        "det_score_thresh": 0.5,
        "iou_thresh": 0.5,
        "top_k": [1, 3],
        "use_gt_boxes": False,
        "gallery": "all",
        "mode": "corrected",
        "similarity": "cosine",
    }
    assert document["metrics"] == json.loads(json.dumps(results))
    assert {"mAP", "top1", "top3"} <= set(results["person_search"])
    rows = document["queries"]
    asked = [(q["query_id"], r["image_id"]) for r in records for q in r.get("queries", [])]
    assert [(row["query_id"], row["image_id"]) for row in rows] == asked
    answered = [row for row in rows if row["num_gt"]]
    assert np.mean([row["AP"] for row in answered]) == pytest.approx(
        results["person_search"]["mAP"]
    )
    top1 = np.mean([row["first_hit_rank"] == 1 for row in answered])
    assert 100 * top1 == pytest.approx(results["person_search"]["top1"])
    for row in rows:
        assert len(row["matches"]) == 10
        assert all(match["image_id"] != row["image_id"] for match in row["matches"])
        assert all(match["score"] >= 0.5 for match in row["matches"])
        similarities = [match["similarity"] for match in row["matches"]]
        assert similarities == sorted(similarities, reverse=True)
        ranks = [rank for rank, match in enumerate(row["matches"], 1) if match["correct"]]
        assert ranks[:1] == ([row["first_hit_rank"]] if (row["first_hit_rank"] or 99) <= 10 else [])
    assert sorted(path.name for path in (tmp_path / "made" / "here").iterdir()) == [
        FEATURES,
        RESULTS,
    ]


def test_files_are_optional(tmp_path):
    evaluate(fake_model.make_dataset(), output_dir=str(tmp_path), save_features=False)
    assert [path.name for path in tmp_path.iterdir()] == [RESULTS]


def test_built_from_config(tmp_path):
    cfg = get_cfg()
    add_kd_search_config(cfg)
    cfg.TEST.PERSON_SEARCH.SCORE_THRESH = 0.8
    cfg.TEST.PERSON_SEARCH.TOP_K = [2]
    cfg.TEST.PERSON_SEARCH.SAVE_FEATURES = False
    records = fake_model.make_dataset()
    fake_model.register(NAME, records)
    evaluator = PersonSearchEvaluator(cfg, NAME, str(tmp_path), distributed=False)
    for inputs, outputs in zip(*fake_model.run_model(records)):
        evaluator.process([inputs], [outputs])
    expected = evaluate(records, score_thresh=0.8, top_k=[2])
    assert evaluator.evaluate() == expected
    assert set(expected["person_search"]) == {"mAP", "top2", "queries", "queries_without_match"}
    tables = ["person_search_table.csv", "person_search_table.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [RESULTS, *tables]


def two_ranks(monkeypatch, records, share_of_0, share_of_1):
    """What rank 0 returns when two ranks each saw the records of their share."""
    fake_model.register(NAME, records)
    evaluators = []
    for share in (share_of_0, share_of_1):
        evaluator = PersonSearchEvaluator(dataset_name=NAME)
        chosen = [records[i] for i in share]
        evaluator.process(*fake_model.run_model(chosen))
        evaluators.append(evaluator)
    sent = []
    monkeypatch.setattr(comm, "synchronize", lambda: None)
    monkeypatch.setattr(comm, "gather", lambda data, dst=0: sent.append(data) or [])
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert evaluators[1].evaluate() == {}
    monkeypatch.setattr(comm, "gather", lambda data, dst=0: [data, *sent])
    monkeypatch.setattr(comm, "is_main_process", lambda: True)
    return evaluators[0].evaluate()


@pytest.mark.parametrize(
    "share_of_0, share_of_1",
    [
        (range(0, 6), range(6, 12)),
        (range(6, 12), range(0, 6)),
        (range(0, 12, 2), range(1, 12, 2)),
        (range(0, 12), []),
        ([], range(0, 12)),
        (range(0, 7), range(5, 12)),  # two images on both
        ([*range(0, 5), 0, 0], range(5, 12)),  # one image three times on one
    ],
    ids=["halves", "halves swapped", "in turn", "all", "none", "overlapping", "padded"],
)
def test_how_ranks_share_the_images_does_not_matter(monkeypatch, share_of_0, share_of_1):
    records = fake_model.make_dataset()
    expected = evaluate(records)
    assert two_ranks(monkeypatch, records, share_of_0, share_of_1) == expected


def test_missing_images_are_an_error_that_counts_them(monkeypatch):
    records = fake_model.make_dataset()
    with pytest.raises(ValueError, match=f"{NAME}.*3 of 12 image ids .*937"):
        two_ranks(monkeypatch, records, range(0, 4), range(4, 9))


def test_a_run_over_nothing_is_an_error():
    with pytest.raises(ValueError, match="12 of 12 image ids"):
        evaluate(fake_model.make_dataset(), run=([], []))


def test_images_of_another_set_are_refused():
    records = fake_model.make_dataset()
    with pytest.raises(ValueError, match="2 image ids .*detections"):
        evaluate(records[:10], run=fake_model.run_model(records))


def test_a_query_without_embedding_is_refused():
    records = fake_model.make_dataset()
    inputs, outputs = fake_model.run_model(records)
    del inputs[0]["query_ids"]
    with pytest.raises(ValueError, match=r"\d of \d+ query ids"):
        evaluate(records, run=(inputs, outputs))


def test_query_embeddings_must_be_as_many_as_queries():
    records = fake_model.make_dataset()
    inputs, outputs = fake_model.run_model(records)
    outputs[0]["query_embeddings"] = outputs[0]["query_embeddings"][:0]
    with pytest.raises(ValueError, match="image 1000 .*2 queries.* 0 query embeddings"):
        evaluate(records, run=(inputs, outputs))


def test_embeddings_that_are_not_finite_are_refused():
    records = fake_model.make_dataset()
    inputs, outputs = fake_model.run_model(records)
    outputs[3]["instances"].pred_embeddings[0, 0] = float("nan")
    with pytest.raises(ValueError, match=f"{NAME}.*embeddings has 1 of .* not finite"):
        evaluate(records, run=(inputs, outputs))


def test_reset_forgets():
    records = fake_model.make_dataset()
    fake_model.register(NAME, records)
    evaluator = PersonSearchEvaluator(dataset_name=NAME)
    evaluator.process(*fake_model.run_model(records, seed=5))
    evaluator.reset()
    evaluator.process(*fake_model.run_model(records))
    assert evaluator.evaluate() == evaluate(records)


def ground_truth_run(records):
    """The faked model on annotated boxes, as the loader and the model hand them over."""
    inputs, outputs = fake_model.run_model(records)
    for record, entry, output in zip(records, inputs, outputs):
        boxes = np.array([a["bbox"] for a in record["annotations"]], np.float32)
        found = output["instances"]
        own = type(found)(found.image_size)
        tensor = found.pred_boxes.tensor.new_tensor(boxes)
        own.pred_boxes = type(found.pred_boxes)(tensor)
        own.scores = tensor.new_ones(len(boxes))
        own.pred_embeddings = found.pred_embeddings[:1].repeat(len(boxes), 1)
        output["instances"] = own
        entry["gallery_boxes"] = tensor
    return inputs, outputs


def test_with_ground_truth_boxes_every_person_is_found_and_detection_is_not_rated(tmp_path):
    records = fake_model.make_dataset()
    run = ground_truth_run(records)
    results = evaluate(records, run=run, use_gt_boxes=True, output_dir=str(tmp_path))
    assert list(results) == ["person_search"]
    rows = json.loads((tmp_path / RESULTS).read_text())["queries"]
    assert all(row["num_found"] == row["num_gt"] for row in rows)
    assert evaluate_detections_file(tmp_path / FEATURES, records) == results


@pytest.mark.parametrize("use_gt_boxes", [True, False])
def test_ground_truth_boxes_are_not_taken_for_detected_ones(use_gt_boxes):
    records = fake_model.make_dataset()
    run = fake_model.run_model(records) if use_gt_boxes else ground_truth_run(records)
    with pytest.raises(ValueError, match=f"gallery_boxes, .*use_gt_boxes is {use_gt_boxes}"):
        evaluate(records, run=run, use_gt_boxes=use_gt_boxes)


def test_images_outside_the_gallery_only_ask(tmp_path):
    """A query image that is not in the gallery changes nothing but who asks."""
    records = fake_model.make_dataset()
    apart = [dict(record, in_gallery=False) for record in records if "queries" in record]
    gallery = [record for record in records if "queries" not in record]
    evaluate(apart + gallery, output_dir=str(tmp_path))
    rows = json.loads((tmp_path / RESULTS).read_text())["queries"]
    outside = {record["image_id"] for record in apart}
    assert not any(match["image_id"] in outside for row in rows for match in row["matches"])
    for row in rows:
        holds = [
            record
            for record in gallery
            if any(a["person_id"] == row["person_id"] for a in record["annotations"])
        ]
        assert row["num_gt"] == len(holds)


def test_a_set_without_queries_still_rates_detection(tmp_path):
    records = [dict(record, queries=[]) for record in fake_model.make_dataset()]
    results = evaluate(records, output_dir=str(tmp_path))
    assert math.isnan(results["person_search"]["mAP"])
    assert results["person_search"]["queries"] == 0
    assert results["detection"]["recall"] > 0
    # Strict JSON: not a number is null.
    document = json.loads((tmp_path / RESULTS).read_text(), parse_constant=pytest.fail)
    assert document["metrics"]["person_search"]["mAP"] is None


def test_a_model_that_finds_nothing_scores_zero(tmp_path):
    records = fake_model.make_dataset()
    inputs, outputs = fake_model.run_model(records)
    for output in outputs:
        output["instances"] = output["instances"][:0]
    results = evaluate(records, run=(inputs, outputs), output_dir=str(tmp_path))
    assert results["person_search"]["mAP"] == results["person_search"]["top10"] == 0
    assert results["detection"] == {"AP": 0, "recall": 0}
    assert evaluate_detections_file(tmp_path / FEATURES, records) == results


def test_crowd_boxes_are_not_people_to_find():
    records = fake_model.make_dataset()
    crowd = {"bbox": [0, 0, 390, 290], "bbox_mode": 0, "iscrowd": 1, "person_id": -1}
    crowded = [dict(r, annotations=r["annotations"] + [crowd]) for r in records]
    run = fake_model.run_model(records)
    assert evaluate(crowded, run=run) == evaluate(records, run=run)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda r: r[1].update(image_id=r[0]["image_id"]), "image_id 1000"),
        (lambda r: r[3]["queries"][0].update(query_id=0), "query_id 0"),
        (lambda r: r[2]["annotations"][0].update(bbox_mode=4), "image 986: bbox_mode 4"),
    ],
)
def test_dataset_dicts_that_contradict_themselves_are_refused(change, message):
    records = fake_model.make_dataset()
    run = fake_model.run_model(records)
    change(records)
    with pytest.raises(ValueError, match=message):
        evaluate(records, run=run)
