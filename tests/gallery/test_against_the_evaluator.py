"""A gallery ranks a generated test set as the evaluator does: equal mAP and top-k."""

import numpy as np
import pytest
from detectron2.data import DatasetCatalog

from kd_search.cli import generate
from kd_search.data.generated import register_generated
from kd_search.evaluation.matching import iou_of_pairs, search_iou_threshold
from kd_search.evaluation.search.evaluate import evaluate_detection_set
from kd_search.evaluation.search.predictions import DetectionSet
from kd_search.evaluation.search.protocol import Protocol
from kd_search.gallery import Gallery, GalleryWriter
from kd_search.gallery.capture import Capture, CaptureRules
from kd_search.gallery.indexing import Indexer, Settings
from kd_search.utils.pictures import decode_image
from tests.gallery.fake_searcher import FakeSearcher
from tests.gallery.gallery_inputs import DIM, manifest


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated") / "tiny"
    assert generate.main(["--preset", "tiny", "--output", str(folder), "--seed", "3"]) == 0
    register_generated(str(folder), prefix="kd_generated_in_a_gallery")
    return DatasetCatalog.get("kd_generated_in_a_gallery_test")


def detections_of(record, rng):
    """Displaced people, some missed, some twice, and places without anybody."""
    boxes, embeddings = [], []
    for annotation in record["annotations"]:
        for _ in range(rng.choice([0, 1, 2], p=[0.1, 0.7, 0.2])):
            boxes.append(np.array(annotation["bbox"]) + rng.normal(scale=4, size=4))
            person = annotation["person_id"]
            centre = np.random.default_rng([1, person]).normal(size=DIM) if person >= 0 else 0
            embeddings.append(centre + rng.normal(scale=0.9, size=DIM))
    for _ in range(3):
        corner = rng.uniform(0, 60, 2)
        boxes.append(np.concatenate([corner, corner + rng.uniform(10, 40, 2)]))
        embeddings.append(rng.normal(size=DIM))
    scores = rng.uniform(0.3, 1, len(boxes)).astype(np.float32)
    return np.array(boxes, np.float32), scores, unit(np.array(embeddings))


class Replay(FakeSearcher):
    """Gives each picture the detections that were made for it."""

    def __init__(self, detections):
        super().__init__()
        self._detections = {}
        for file_name, found in detections.items():
            with open(file_name, "rb") as file:
                pixels = decode_image(file_name, file.read(), "RGB")
            self._detections[pixels.tobytes()] = found

    def detect(self, rgb):
        return self._detections[rgb.tobytes()]


def average_precision(right: list[bool], num_gt: int) -> float:
    """Mean over the true places of the precision at the rank of each, 0 for those not found."""
    found = np.flatnonzero(right)
    return sum((i + 1) / (rank + 1) for i, rank in enumerate(found)) / num_gt


@pytest.mark.parametrize("seed", [0, 1])
def test_map_and_top_k_equal_the_evaluators(records, tmp_path, seed):
    rng = np.random.default_rng(seed)
    found = {record["file_name"]: detections_of(record, rng) for record in records}
    queries = [(record, query) for record in records for query in record.get("queries", ())]
    assert len(queries) >= 3
    wanted = unit(
        np.stack(
            [
                np.random.default_rng([1, query["person_id"]]).normal(size=DIM)
                + rng.normal(scale=0.5, size=DIM)
                for _, query in queries
            ]
        )
    )
    detection_set = DetectionSet(
        image_ids=[record["image_id"] for record in records],
        offsets=np.cumsum([0, *(len(boxes) for boxes, _, _ in found.values())]),
        boxes=np.concatenate([boxes for boxes, _, _ in found.values()]),
        scores=np.concatenate([scores for _, scores, _ in found.values()]),
        embeddings=np.concatenate([embeddings for _, _, embeddings in found.values()]),
        query_ids=np.array([query["query_id"] for _, query in queries]),
        query_embeddings=wanted,
    )
    evaluation = evaluate_detection_set(detection_set, records, Protocol())
    expected = evaluation.results["person_search"]

    with GalleryWriter(tmp_path / "g", manifest()) as writer:
        indexer = Indexer(writer, Replay(found), Capture(CaptureRules()), Settings())
        report = indexer.run([record["file_name"] for record in records])
    assert report.problems == []
    gallery = Gallery(tmp_path / "g")
    precisions, first = [], []
    for (record, query), embedding in zip(queries, wanted):
        truth = {
            other["file_name"]: np.array([annotation["bbox"]], np.float64)
            for other in records
            for annotation in other["annotations"]
            if annotation["person_id"] == query["person_id"]
            and other["image_id"] != record["image_id"]
        }
        if not truth:
            continue
        right, taken = [], set()
        for hit in gallery.search(embedding, len(gallery), per="person"):
            if hit.path == record["file_name"]:
                continue
            box = truth.get(hit.path)
            match = (
                box is not None
                and hit.path not in taken
                and iou_of_pairs(np.array([hit.box]), box)[0] >= search_iou_threshold(box)[0]
            )
            if match:
                taken.add(hit.path)
            right.append(bool(match))
        precisions.append(average_precision(right, len(truth)))
        first.append(right.index(True) if True in right else len(right) + 1)
    assert len(precisions) == expected["queries"]
    assert 0.05 < np.mean(precisions) < 0.95  # neither trivial nor hopeless
    assert 100 * np.mean(precisions) == pytest.approx(expected["mAP"], abs=1e-6)
    for k in (1, 5, 10):
        assert 100 * np.mean(np.array(first) < k) == pytest.approx(expected[f"top{k}"], abs=1e-6)
