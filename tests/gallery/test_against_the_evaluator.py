"""A gallery ranks test sets as the evaluator does: equal mAP and top-k."""

import os

import numpy as np
import pytest
from detectron2.data import DatasetCatalog

from kd_search.cli import generate
from kd_search.data.generated import register_generated
from kd_search.evaluation.matching import iou_of_pairs, search_iou_threshold
from kd_search.evaluation.search.evaluate import evaluate_detection_set
from kd_search.evaluation.search.predictions import DetectionSet
from kd_search.evaluation.search.protocol import Protocol
from kd_search.gallery import Gallery, GalleryWriter, Manifest
from kd_search.gallery.capture import Capture, CaptureRules
from kd_search.gallery.indexing import Indexer, Settings
from kd_search.runtime import PersonSearcher
from kd_search.utils.pictures import decode_image
from tests.gallery.fake_searcher import FakeSearcher
from tests.gallery.gallery_inputs import DIM, MODEL


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


def compare(records, searcher, found, queries, wanted, folder):
    """Rank by a gallery and by the evaluator, and assert that mAP and top-k are equal.

    Args:
        records: of the test set.
        searcher: gives the detections to the gallery.
        found: {file_name: (boxes, scores, embeddings)} of all records.
        queries: (record, query) of each.
        wanted: (Q, D) their embeddings.
        folder: of a new gallery.
    """
    detection_set = DetectionSet(
        image_ids=[record["image_id"] for record in records],
        offsets=np.cumsum([0, *(len(found[r["file_name"]][0]) for r in records)]),
        boxes=np.concatenate([found[r["file_name"]][0] for r in records]),
        scores=np.concatenate([found[r["file_name"]][1] for r in records]),
        embeddings=np.concatenate([found[r["file_name"]][2] for r in records]),
        query_ids=np.array([query["query_id"] for _, query in queries]),
        query_embeddings=wanted,
    )
    expected = evaluate_detection_set(detection_set, records, Protocol()).results["person_search"]
    new = Manifest(MODEL, "student.onnx", wanted.shape[1])
    with GalleryWriter(folder, new) as writer:
        indexer = Indexer(writer, searcher, Capture(CaptureRules()), Settings())
        report = indexer.run([record["file_name"] for record in records])
    assert report.problems == []
    gallery = Gallery(folder)
    # The evaluator has the same threshold.
    least = searcher.manifest["search_score_threshold"]
    assert len(gallery) == np.count_nonzero(detection_set.scores >= least)
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
    print(f"{len(records)} pictures, {len(gallery)} people, {len(precisions)} queries: ", end="")
    print(", ".join(f"{name} {expected[name]:.4f}" for name in ("mAP", "top1", "top5", "top10")))


def compare_made_detections(records, seed, folder):
    rng = np.random.default_rng(seed)
    found = {record["file_name"]: detections_of(record, rng) for record in records}
    queries = [(record, query) for record in records for query in record.get("queries", ())]
    assert len(queries) >= 3
    wanted = [
        np.random.default_rng([1, query["person_id"]]).normal(size=DIM)
        + rng.normal(scale=0.5, size=DIM)
        for _, query in queries
    ]
    compare(records, Replay(found), found, queries, unit(np.stack(wanted)), folder)


@pytest.mark.parametrize("seed", [0, 1])
def test_map_and_top_k_equal_the_evaluators(records, tmp_path, seed):
    compare_made_detections(records, seed, tmp_path / "g")


@pytest.fixture
def real_records(real_data, monkeypatch):
    """The test set of one camera of PRW."""
    monkeypatch.setenv("KD_SEARCH_PRW_C6", str(real_data("prw_c6s1")))
    return DatasetCatalog.get("prw_c6_test")


def test_map_and_top_k_on_real_frames(real_records, tmp_path):
    chosen = [record for record in real_records if record.get("queries")][:12]
    compare_made_detections(chosen, 0, tmp_path / "g")


def test_map_and_top_k_of_a_network_on_all_real_frames(real_records, tmp_path):
    """Minutes: only with an exported network of those frames."""
    model = os.environ.get("KD_SEARCH_TEST_MODEL")
    if not model:
        pytest.skip("set KD_SEARCH_TEST_MODEL to the exported network of a training on prw_c6")
    searcher = PersonSearcher.load(model, 1)
    found, queries, wanted = {}, [], []
    for record in real_records:
        with open(record["file_name"], "rb") as file:
            pixels = decode_image(record["file_name"], file.read(), "RGB")
        found[record["file_name"]] = searcher.detect(pixels)
        for query in record.get("queries", ()):
            queries.append((record, query))
            wanted.append(searcher.embed(pixels, [query["bbox"]])[0])
    compare(real_records, searcher, found, queries, np.stack(wanted), tmp_path / "g")
