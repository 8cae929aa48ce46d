"""The numbers behind the plots against plain loops, and the tool that draws them."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from benchmarks._search_reference import iou
from kd_search.cli import plot
from kd_search.evaluation import (
    GalleryProtocol,
    PersonSearchEvaluator,
    Protocol,
    RankingSettings,
    TableOptions,
)
from kd_search.evaluation.search import plot_data
from kd_search.evaluation.search.compare_runs import load_results
from kd_search.evaluation.search.plot_data import CameraPairs, Distances
from kd_search.evaluation.search.test_set import PreparedSet
from kd_search.visualization import search_plots
from tests.evaluation.search import fake_model
from tests.evaluation.search.test_protocol_table import (
    detections_of,
    evaluate,
    make_lists,
    make_records,
)

NAME = "kd_search_test_plots"


@pytest.fixture
def prepared():
    records = make_records()
    detections = detections_of(records)
    return records, PreparedSet(detections, records, {}, ()), detections


def test_cmc_counts_first_hits():
    rows = [{"AP": 1.0, "first_hit_rank": rank} for rank in (1, 3, 3, None)]
    rows.append({"AP": None, "first_hit_rank": None})
    assert plot_data.cmc_curve(rows, 4).tolist() == [25, 25, 75, 75]
    with pytest.raises(ValueError, match="no query has a match"):
        plot_data.cmc_curve(rows[-1:])


def test_precision_and_recall_of_each_query_by_loop(prepared):
    records, data, detections = prepared
    curve = plot_data.precision_recall_curve(data, detections, Protocol())
    evaluation = evaluate(records, protocol=Protocol(top_k=[500]), cbgm=False)
    total, number = np.zeros(101), 0
    for row in evaluation.rankings:
        if not row["num_gt"]:
            continue
        number += 1
        right = [match["correct"] for match in all_matches(data, detections, row["query_id"])]
        points = []
        for rank, hit in enumerate(right, 1):
            if hit:
                found = sum(right[:rank])
                points.append((found / row["num_gt"], found / rank))
        for i, level in enumerate(np.linspace(0, 1, 101)):
            total[i] += max((p for r, p in points if r >= level - 1e-12), default=0)
    np.testing.assert_allclose(curve, 100 * total / number, atol=1e-9)
    assert 5 < curve[0] < 100


def all_matches(data, detections, query):
    (result,) = data.rank(detections, [GalleryProtocol()], RankingSettings(num_matches=500))
    return [
        {"correct": c}
        for c, i in zip(result.match_correct[query], result.match_index[query])
        if i >= 0
    ]


def test_camera_pairs_are_searches_among_the_images_of_one_camera(prepared):
    records, data, detections = prepared
    pairs = plot_data.camera_pairs(data, detections, Protocol())
    assert pairs.cameras == [0, 1, 2]
    for column, camera in enumerate(pairs.cameras):
        only = [dict(r, in_gallery=r["camera_id"] == camera) for r in records]
        rows = evaluate(only).rankings
        camera_of = {r["image_id"]: r["camera_id"] for r in records}
        for row, asked in enumerate(pairs.cameras):
            own = [r["AP"] for r in rows if camera_of[r["image_id"]] == asked and r["num_gt"]]
            assert pairs.num_queries[row, column] == len(own)
            if own:
                assert pairs.mean_ap[row, column] == pytest.approx(np.mean(own))
            else:
                assert np.isnan(pairs.mean_ap[row, column])
    one = make_records(cameras=1)
    with pytest.raises(ValueError, match="1 known cameras"):
        plot_data.camera_pairs(PreparedSet(detections, one, {}, ()), detections, Protocol())


def test_distances_are_those_of_a_double_loop(prepared):
    _, data, detections = prepared
    got = plot_data.distances(data, detections, Protocol())
    flat, truth = data.flatten(detections), data.annotations.ground_truth
    same, different = [], []
    for q in range(len(data.queries)):
        for i in range(len(flat)):
            image = flat.image_index[i]
            if flat.scores[i] < 0.5 or image == data.queries.image_index[q]:
                continue
            near = [
                (iou(flat.boxes[i].astype(float), truth.boxes[g]), truth.person_ids[g])
                for g in np.flatnonzero(truth.image_index == image)
            ]
            overlap, person = max(near, default=(0, -1))
            if overlap < 0.5 or person < 0:
                continue
            cosine = float(
                flat.embeddings[i].astype(float) @ data.queries.embeddings[q].astype(float)
            )
            (same if person == data.queries.person_ids[q] else different).append(1 - cosine)
    np.testing.assert_array_equal(got.same, np.histogram(same, got.edges)[0])
    np.testing.assert_array_equal(got.different, np.histogram(different, got.edges)[0])
    assert len(same) > 20 and len(different) > 50 and np.mean(same) < np.mean(different)


def is_picture(array):
    """A picture with more than its ground on it."""
    assert array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3
    return len(np.unique(array.reshape(-1, 3), axis=0)) > 20


def test_odd_numbers_are_drawn_or_refused():
    means = np.array([[50.0, np.nan], [np.nan, np.nan]])
    assert is_picture(
        search_plots.draw_camera_pairs(CameraPairs([1, 2], means, np.eye(2, dtype=int)), "x")
    )
    assert is_picture(search_plots.draw_cmc({"a": np.array([100.0]), "b": np.array([0.0])}, "x"))
    empty = Distances(np.linspace(0, 2, 3), np.array([0, 0]), np.array([0, 3]), 1)
    with pytest.raises(ValueError, match="no pairs of the same"):
        search_plots.draw_distances(empty, "x")
    with pytest.raises(ValueError, match="nothing to draw"):
        search_plots.draw_gallery_sizes({"a": [{"mAP": None}]}, "x")


@pytest.fixture
def runs(tmp_path):
    records = make_records()
    fake_model.register(NAME, records)
    MetadataCatalog.get(NAME).set(
        evaluator_type="person_search", search_galleries=make_lists(records)
    )
    folders = []
    for seed in (1, 2):
        folders.append(tmp_path / f"run{seed}")
        evaluator = PersonSearchEvaluator(
            dataset_name=NAME,
            output_dir=str(folders[-1]),
            table=TableOptions(bootstrap=20),
            distributed=False,
        )
        evaluator.process(*fake_model.run_model(records, seed=seed))
        evaluator.evaluate()
    yield folders
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_all_pictures_of_two_runs_are_written(runs, tmp_path, capsys):
    out = tmp_path / "plots"
    argv = [f"a b={runs[0]}", f"two={runs[1]}", "--output", str(out)]
    assert plot.main(argv) == 0
    shared = [
        *("cmc.png", "gallery_sizes.png", "open_set.png", "precision_recall.png", "roc.png"),
    ]
    own = [
        f"{label}_{kind}.png" for label in ("a_b", "two") for kind in ("camera_pairs", "distances")
    ]
    assert sorted(path.name for path in out.iterdir()) == sorted(shared + own)
    for path in out.iterdir():
        assert is_picture(np.asarray(Image.open(path)))
    assert "wrote 9 pictures" in capsys.readouterr().out


def test_what_cannot_be_drawn_is_named(runs, tmp_path, capsys):
    (runs[0] / "person_search_detections.npz").unlink()
    (runs[0] / "person_search_table.json").write_text("[]")
    assert plot.main([str(runs[0]), "--output", str(tmp_path / "plots")]) == 0
    printed = capsys.readouterr().out
    assert [p.name for p in (tmp_path / "plots").iterdir()] == ["cmc.png"]
    assert "gallery_sizes.png: " in printed and "person_search_table.json" in printed
    assert "distances.png: " in printed and "no such file of detections" in printed


@pytest.mark.parametrize("rows", ["detected", "ground_truth"])
def test_gallery_sizes_draws_the_rows_that_are_asked_for(runs, rows, tmp_path, capsys):
    argv = [str(runs[0]), "--output", str(tmp_path / "plots"), "--boxes", rows, "--mode", "compat"]
    assert plot.main(argv) == 0
    drawn = (tmp_path / "plots" / "gallery_sizes.png").exists()
    assert drawn == (rows == "detected")
    assert ("has 0 gallery sizes" in capsys.readouterr().out) == (not drawn)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["nowhere"], "nowhere"),
        (["x={0}", "x={1}"], "label 'x'"),
        (["{0}", "{2}"], "another"),
        (["{0}", "--max-rank", "0"], "--max-rank"),
    ],
)
def test_wrong_calls_are_one_line(runs, tmp_path, capsys, argv, message):
    other = tmp_path / "other"
    other.mkdir()
    document = {**load_results(runs[0]), "dataset": "another"}
    (other / "person_search_results.json").write_text(json.dumps(document))
    argv = [a.format(*runs, other) for a in argv] + ["--output", str(tmp_path / "plots")]
    assert plot.main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
