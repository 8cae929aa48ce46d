"""Statistics, tables and pictures, with numbers worked out by hand."""

import math

import numpy as np
import pytest
from PIL import Image

from kd_search.experiments import (
    METRICS,
    TableLayout,
    draw,
    markdown,
    pack_queries,
    pick_metrics,
    seed_interval,
    spread,
    summarise,
    unpack_queries,
)

ROWS = {"base": (54.7, 49.3), "L2": (54.6, 48.5), "Hints": (56.9, 50.3), "all": (59.4, 53.7)}
LAYOUT = TableLayout(paper=("PASCAL", "KITTI"))

RESULTS = {
    ("base", 1): {"AP50": 50.0, "AP": 20.0},
    ("base", 2): {"AP50": 53.0, "AP": 22.0},
    ("base", 3): {"AP50": 47.0, "AP": 24.0},
    ("all", 1): {"AP50": 54.0, "AP": 25.0},
    ("all", 2): {"AP50": 56.0, "AP": 26.0},
    ("Hints", 2): {"AP50": 52.0, "AP": 21.0},
}
TEACHERS = {"teacher": {"AP50": 60.0, "AP": 30.0}}


def by_row(table):
    return {entry["row"]: entry for entry in table}


def test_spread_by_hand():
    # Deviations -3, 1, 2: squares 9 + 1 + 4 = 14, over n - 1 = 2.
    result = spread([1.0, 5.0, 6.0])
    assert result["n"] == 3 and result["mean"] == 4.0
    assert result["std"] == pytest.approx(math.sqrt(7.0))
    assert spread([5.0]) == {"n": 1, "mean": 5.0, "std": None}


def test_summary_by_hand():
    table = by_row(summarise(ROWS, RESULTS, TEACHERS, LAYOUT))
    assert list(table) == ["teacher", "base", "Hints", "all"]
    base = table["base"]["metrics"]["AP50"]
    assert base["mean"] == 50.0 and base["std"] == pytest.approx(3.0)
    assert base["seeds"] == {1: 50.0, 2: 53.0, 3: 47.0} and base["gain"] is None
    # Seed by seed: 54 - 50 and 56 - 53; the third seed of base has no partner.
    gain = table["all"]["metrics"]["AP50"]["gain"]
    assert gain["n"] == 2 and gain["mean"] == 3.5
    assert gain["std"] == pytest.approx(math.sqrt(0.5))
    # A single seed is compared with base of that seed, and has no spread.
    single = {"n": 1, "mean": -1.0, "std": None, "over_seeds": None, "over_queries": None}
    assert table["Hints"]["metrics"]["AP"]["gain"] == single
    assert table["teacher"]["metrics"]["AP50"]["std"] is None


def test_interval_over_seeds_is_students():
    # 2.776 of four degrees of freedom; deviations 2, 1, 0, 1, 2: variance 10 / 4.
    half = 2.776445 * math.sqrt(2.5) / math.sqrt(5)
    assert seed_interval([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx([3 - half, 3 + half])
    assert seed_interval([1.0]) is None


def per_query(values, queries="same"):
    rows = [{"AP": value, "query_id": i} for i, value in enumerate(values)]
    return {"AP": {**pack_queries(rows), "queries": queries}}


def test_interval_over_queries_is_the_bootstrap_of_the_mean_over_seeds():
    rng = np.random.default_rng(1)
    ap = {
        key: rng.uniform(0, 100, 40) for key in (("base", 1), ("base", 2), ("all", 1), ("all", 2))
    }
    results = {key: {"AP": float(values.mean())} for key, values in ap.items()}
    packed = {key: per_query([None, *values.tolist()]) for key, values in ap.items()}
    table = by_row(summarise(ROWS, results, {}, LAYOUT, per_query=packed))
    gain = table["all"]["metrics"]["AP"]["gain"]
    difference = (ap["all", 1] + ap["all", 2] - ap["base", 1] - ap["base", 2]) / 2
    # One query at a time: as slow as it is simple.
    draw_one = np.random.default_rng(0)
    means = [difference[draw_one.integers(40, size=40)].mean() for _ in range(10000)]
    assert gain["mean"] == pytest.approx(difference.mean())
    assert gain["over_queries"] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.01)


def test_runs_with_other_queries_have_no_interval_over_them():
    results = {("base", 1): {"AP": 2.0}, ("all", 1): {"AP": 3.0}}
    packed = {("base", 1): per_query([1.0, 3.0]), ("all", 1): per_query([2.0, 4.0], "others")}
    for of_runs in (packed, {("all", 1): packed["all", 1]}):
        table = by_row(summarise(ROWS, results, {}, LAYOUT, per_query=of_runs))
        assert table["all"]["metrics"]["AP"]["gain"]["over_queries"] is None


def test_average_precisions_in_little_space():
    rows = [{"AP": value} for value in (0.0, 100.0, None, 33.333)]
    found = unpack_queries(pack_queries(rows))
    assert found[0] == 0 and found[1] == 100 and np.isnan(found[2])
    assert found[3] == pytest.approx(33.333, abs=1e-3)
    assert pack_queries(rows)["queries"] != pack_queries(rows[:3])["queries"]


def test_markdown_shows_means_spreads_seeds_and_the_paper():
    lines = markdown(summarise(ROWS, RESULTS, TEACHERS, LAYOUT, ROWS), LAYOUT).splitlines()
    assert lines[0] == (
        "| row | AP50 | AP | AP50 above base | 95 % over seeds | AP50 by seed | paper: PASCAL "
        "| paper: KITTI |"
    )
    assert lines[2] == "| teacher | 60.0 | 30.0 | - | - | - | - | - |"
    assert lines[3] == "| base | 50.0 ± 3.0 | 22.0 ± 2.0 | - | - | 50.0, 53.0, 47.0 | 54.7 | 49.3 |"
    assert lines[4] == "| Hints | 52.0 | 21.0 | -1.0 | - | 52.0 | 56.9 | 50.3 |"
    # 12.706 is Student's t of one degree of freedom: 3.5 -+ 12.706 * 0.7071 / sqrt(2).
    gain = "+3.5 ± 0.7 | -2.9 to +9.9"
    assert lines[5] == f"| all | 55.0 ± 1.4 | 25.5 ± 0.7 | {gain} | 54.0, 56.0 | 59.4 | 53.7 |"


def test_a_loss_that_rounds_to_nothing_has_no_sign_of_its_own():
    results = {("base", 1): {"AP": 20.0}, ("L2", 1): {"AP": 19.999}}
    assert "| +0.0 |" in markdown(summarise(ROWS, results, {}, LAYOUT), LAYOUT)


def test_nothing_finished_is_no_error(tmp_path):
    assert summarise(ROWS, {}, {}, LAYOUT) == []
    draw([], tmp_path / "none.png", LAYOUT)
    assert "no run" in markdown([], LAYOUT) and not list(tmp_path.iterdir())


def test_picture_has_a_reference_line_if_there_is_one(tmp_path):
    table = summarise(ROWS, RESULTS, TEACHERS, LAYOUT)
    draw(table, tmp_path / "plain.png", LAYOUT, "title")
    draw(table, tmp_path / "line.png", LAYOUT, "title", reference=("chance", 45.0))
    has_line = [
        (np.asarray(Image.open(tmp_path / name).convert("RGB")) == (213, 94, 0)).all(axis=2).any()
        for name in ("plain.png", "line.png")
    ]
    assert has_line == [False, True]


def test_layout_chooses_base_and_metrics():
    layout = TableLayout(metrics=("AP",), base="all")
    table = summarise(ROWS, RESULTS, TEACHERS, layout)
    assert by_row(table)["base"]["metrics"].keys() == {"AP"}
    # Seed by seed: 20 - 25 and 22 - 26.
    assert by_row(table)["base"]["metrics"]["AP"]["gain"]["mean"] == -4.5
    assert by_row(table)["all"]["metrics"]["AP"]["gain"] is None
    lines = markdown(table, layout).splitlines()
    assert lines[0] == "| row | AP | AP above all | 95 % over seeds | AP by seed |"
    assert lines[2] == "| teacher | 30.0 | - | - | - |"


def test_metrics_of_detection_search_and_reid():
    results = {"bbox": {"AP": 12.0, "AP50": 30.0, "APs": 1.0}}
    assert pick_metrics(results) == {"AP": 12.0, "AP50": 30.0}
    results = {"person_search": {"mAP": 40.0, "top1": 60.0}, "detection": {"AP": 70.0}}
    assert pick_metrics(results) == {"mAP": 40.0, "top1": 60.0, "det_AP": 70.0}
    assert pick_metrics({"bbox": {"AP": float("nan")}}) == {"AP": 0.0}
    assert pick_metrics({"reid": {"mAP": 3.0, "top1": 4.0, "queries": 9}}) == {
        "reid_mAP": 3.0,
        "reid_top1": 4.0,
    }
    results = {"reid_v2v": {"mAP": 3.0, "top1": 4.0}, "reid_i2v": {"mAP": 1.0, "top1": 2.0}}
    results = {"reid": results["reid_v2v"], **results}
    picked = {"i2v_mAP": 1.0, "i2v_top1": 2.0, "v2v_mAP": 3.0, "v2v_top1": 4.0}
    assert pick_metrics(results) == picked
    # Tables are in this order, whatever the evaluation's.
    assert list(pick_metrics(results)) == [name for name in METRICS if name in picked]
