"""Re-ranking by context from detections to scores, against the authors' steps one by one."""

import numpy as np
import pytest

from benchmarks._protocol_reference import Asked, Scene, iou, search_by_text
from kd_search.evaluation import Protocol, TableOptions, evaluate_detection_set
from kd_search.evaluation.search.predictions import ImageDetections, collect
from kd_search.evaluation.search.test_set import contexts_of_detections

DIM, NMS_IOU = 6, 0.5


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def random_set(seed, num_images=9, num_persons=4):
    """(dataset dicts, detection set): crowded images, with boxes on and beside the queries."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((num_persons, DIM))
    records, images = [], []
    for index in range(num_images):
        persons = rng.choice(num_persons, 3, replace=False)
        corners = rng.uniform(0, 60, (3, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(30, 70, (3, 2))], axis=1)
        queries = [
            {"query_id": 3 * index + q, "bbox": boxes[q].tolist(), "person_id": int(persons[q])}
            for q in range(rng.integers(0, 3))
        ]
        records.append(
            {
                "image_id": index,
                "annotations": [
                    {"bbox": box.tolist(), "bbox_mode": 0, "category_id": 0, "person_id": int(p)}
                    for box, p in zip(boxes, persons)
                ],
                "queries": queries,
            }
        )
        seen = rng.integers(0, 3, rng.integers(2, 9))
        noise = 0.9 * rng.standard_normal((len(seen) + len(queries), DIM))
        images.append(
            ImageDetections(
                index,
                (boxes[seen] + rng.uniform(-14, 14, (len(seen), 4))).astype(np.float32),
                rng.uniform(0.35, 1, len(seen)).astype(np.float32),
                unit(directions[persons[seen]] + noise[: len(seen)]),
                [q["query_id"] for q in queries],
                unit(directions[persons[: len(queries)]] + noise[len(seen) :]).reshape(-1, DIM),
            )
        )
    return records, collect(images)


def context_by_suppression(box, boxes, scores, k2):
    """What the authors' code leaves of a query's image: the rows of its k2 - 1 neighbours.

    The query's box joins the detections with score 1; then greedy non-maximum suppression.
    """
    pool = [(1.0, -1, box), *((s, row, b) for row, (s, b) in enumerate(zip(scores, boxes)))]
    pool = [entry for entry in pool if entry[0] >= 0.5]
    pool.sort(key=lambda entry: -entry[0])
    kept = []
    for entry in pool:
        if all(iou(entry[2], other[2]) <= NMS_IOU for other in kept):
            kept.append(entry)
    assert kept[0][1] == -1
    return [row for _, row, _ in kept[1:k2]]


def expected_map(records, found, mode, weighted, k1, k2):
    rows = [slice(a, b) for a, b in zip(found.offsets, found.offsets[1:])]
    embeddings = [found.embeddings[r].astype(float) for r in rows]
    # Only the gallery is weighted, not the people around the query.
    gallery = embeddings
    if weighted:
        gallery = [e * found.scores[r].astype(float)[:, None] for e, r in zip(embeddings, rows)]
    scene = Scene(
        [found.boxes[r].astype(float) for r in rows],
        [found.scores[r] for r in rows],
        gallery,
        [[(a["person_id"], a["bbox"]) for a in record["annotations"]] for record in records],
        [-1] * len(records),
        [True] * len(records),
    )
    aps = []
    asked = [(i, query) for i, record in enumerate(records) for query in record["queries"]]
    for number, (image, query) in enumerate(asked):
        assert found.query_ids[number] == query["query_id"]
        around = context_by_suppression(query["bbox"], scene.boxes[image], scene.scores[image], k2)
        answer = search_by_text(
            Asked(
                found.query_embeddings[number].astype(float),
                query["person_id"],
                image,
                mode=mode,
                context=[embeddings[image][row] for row in around],
                k1=k1,
            ),
            scene,
        )
        if answer.num_gt:
            aps.append(answer.ap)
    return 100 * np.mean(aps)


@pytest.mark.parametrize("similarity", ["cosine", "score_weighted"])
def test_random_sets_from_detections_to_scores_equal_the_authors_steps(similarity):
    moved = 0
    for seed in range(24):
        records, found = random_set(seed)
        k1, k2 = 1 + seed % 7, 1 + seed % 4
        options = TableOptions(bootstrap=0, cbgm_k1=k1, cbgm_k2=k2)
        protocol = Protocol(similarity=similarity)
        table = evaluate_detection_set(found, records, protocol, table=options).table
        rows = table.select(rerank="cbgm", cameras="all")
        assert {row["mode"] for row in rows} == {"corrected", "compat"}
        for row in rows:
            weighted = similarity == "score_weighted"
            expected = expected_map(records, found, row["mode"], weighted, k1, k2)
            assert row["mAP"] == pytest.approx(expected, abs=1e-9), (seed, row["mode"])
            plain = table.select(rerank="none", cameras="all", mode=row["mode"])[0]
            moved += abs(plain["mAP"] - row["mAP"]) > 0.1
    # Re-ranking that changes nothing would prove nothing.
    assert moved > 24


def one_image(boxes, scores):
    embeddings = np.eye(len(boxes), DIM, dtype=np.float32)
    image = ImageDetections(
        0,
        np.array(boxes, np.float32),
        np.array(scores, np.float32),
        embeddings,
        [0],
        embeddings[:1],
    )
    return collect([image])


def neighbours(boxes, scores, k2=9):
    """Rows around a query with the box (0, 0, 100, 100)."""
    found = contexts_of_detections(
        one_image(boxes, scores),
        np.array([[0.0, 0.0, 100.0, 100.0]]),
        np.array([0]),
        k2=k2,
        score_thresh=0.5,
    )
    # In full length, whatever the scores.
    np.testing.assert_array_equal(np.linalg.norm(found.embeddings, axis=1), 1)
    return found.embeddings.argmax(axis=1).tolist()


def test_a_neighbour_may_overlap_the_query_by_half():
    # IoU 100 / 220 = 0.45, exactly 0.5, 0.52.
    boxes = [(0, 0, 220, 100), (0, 0, 200, 100), (0, 0, 100, 52)]
    assert neighbours(boxes[:1], [0.9]) == [0]
    assert neighbours(boxes[1:2], [0.9]) == [0]
    assert neighbours(boxes[2:], [0.9]) == []


def test_neighbours_suppress_each_other_surest_first():
    boxes = [(300, 0, 400, 100), (310, 0, 410, 100), (600, 0, 700, 100), (900, 0, 950, 100)]
    scores = [0.6, 0.9, 0.7, 0.4]
    assert neighbours(boxes, scores) == [1, 2]
    assert neighbours(boxes, scores, k2=2) == [1]
    assert neighbours(boxes, scores, k2=1) == []
