"""The report: one file that needs nothing else, with what is known and what is not."""

import base64
import io
import json
import re

import numpy as np
import pytest
from html_page import Page
from PIL import Image

from kd_search.evaluation.search.experiment import TrainedModel, TrainedRun
from kd_search.visualization import (
    findings,
    latency_statement,
    write_report,
    write_results_page,
)
from kd_search.visualization.report import data_statement, gap_statement

QUERIES = 40


@pytest.fixture
def scenes(tmp_path):
    """Dataset dicts of two pictures; every query is of person 0 in the first."""
    records = []
    for name in ("a", "b"):
        Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(tmp_path / f"{name}.png")
        records.append(
            {
                "file_name": str(tmp_path / f"{name}.png"),
                "image_id": name,
                "height": 60,
                "width": 80,
                "annotations": [
                    {"bbox": [10, 10, 30, 50], "person_id": 0},
                    {"bbox": [40, 10, 60, 50], "person_id": -1},
                ],
            }
        )
    box = [10, 10, 30, 50]
    records[0]["queries"] = [
        {"query_id": i, "bbox": box, "person_id": 0} for i in range(QUERIES + 1)
    ]
    return records


def results(aps, **metrics):
    """A results document; the query after the last has no match."""
    match = {"image_id": "b", "bbox": [10, 10, 30, 50], "score": 0.9, "similarity": 0.5}
    rows = [
        {
            "query_id": i,
            "person_id": 0,
            "AP": ap,
            "first_hit_rank": None if not ap else 1 if ap >= 50 else 3,
            "num_gt": 0 if ap is None else 1,
            "num_found": 1 if ap else 0,
            "matches": [{**match, "correct": bool(ap)}],
        }
        for i, ap in enumerate([*aps, None])
    ]
    search = {"mAP": float(np.mean(aps)), "top1": 61.26, "top5": 72.0, "queries": len(aps)}
    return {
        "dataset": "little",
        "metrics": {
            "person_search": {**search, **metrics},
            "detection": {"AP": 94.04, "recall": None},
        },
        "queries": rows,
    }


def model(name, role, *aps, seeds=None, log=None, **more):
    seeds = seeds or range(1, len(aps) + 1)
    runs = [TrainedRun(seed, results(values), log) for seed, values in zip(seeds, aps)]
    return TrainedModel(name, role, runs, **more)


def aps(mean, seed=0, spread=10.0):
    noise = np.random.default_rng(seed).normal(0, spread, QUERIES)
    return (mean + noise - noise.mean()).tolist()


BASE = np.array(aps(50, spread=15))
NOISE = np.array(aps(0, seed=1, spread=5))
TEACHER = model("Teacher", "teacher", BASE + 20, params=9_876_543)
PLAIN = model("Plain student", "plain", BASE)
DISTILLED = model("Distilled student", "distilled", BASE + 10 + NOISE, params=1_234_567)
MODELS = [TEACHER, PLAIN, DISTILLED]


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "metrics.json"
    lines = [json.dumps({"iteration": i, "total_loss": 1.0, "loss_oim": 0.5}) for i in range(5)]
    path.write_text("\n".join(lines) + '\n{"iterat')
    return path


@pytest.fixture
def report(tmp_path, scenes):
    def write(models, **options):
        path = tmp_path / "out" / "report.html"
        write_report(path, "Title", models, scenes, **{"shown_queries": 2, **options})
        return Page(path.read_text(encoding="utf-8"))

    return write


def test_every_number_of_the_models_is_in_the_table(report):
    page = report(MODELS, settings={"seed": 7}, seconds={"teacher": 100.0, "data": 1.5})
    assert page.rows[0] == [
        *("Model", "mAP", "top-1", "top-5", "detection AP", "parameters", "latency")
    ]
    cells = page.cells["Teacher"]
    low, high = TEACHER.interval("mAP")
    assert low < 70 < high
    assert cells[0] == f"70.0 {low:.1f} to {high:.1f}"
    assert re.fullmatch(r"61\.3 [\d.]+ to [\d.]+", cells[1])
    assert cells[2:] == ["72.0", "94.0", "9.88 M", "–"]
    assert page.cells["Plain student"][-2:] == ["–", "–"]
    assert page.cells["seed"] == ["7"]
    assert page.cells["teacher"] == ["100.0"] and page.cells["total"] == ["101.5"]


def test_the_size_of_the_test_set_is_said(scenes):
    text = data_statement(results([50.0, 60.0]), scenes)
    assert "little: 2 pictures (2 in the gallery), 1 people" in text
    assert "2 queries of 1 people" in text and "1 more queries have no gallery, or no match" in text
    scenes[0]["in_gallery"] = False
    assert "(1 in the gallery)" in data_statement(results([50.0]), scenes)


def test_models_are_compared_with_intervals_and_p_values(report):
    page = report(MODELS)
    cells = page.cells["Distilled student − Plain student"]
    assert cells[0] == "+10.00" and cells[3] == "clear" and cells[4] == "40 of 40"
    low, high = map(float, cells[1].split(" to "))
    assert 7 < low < 10 < high < 13
    assert page.cells["Distilled student − Teacher"][0] == "-10.00"
    assert page.cells["Plain student − Teacher"][3] == "clear"
    assert "Distilled student is better than Plain student" in page.text
    assert "Teacher is better than Distilled student" in page.text


def test_a_difference_that_could_be_chance_is_called_so(report):
    close = model("Distilled student", "distilled", BASE + 0.3 + 2 * NOISE)
    page = report([TEACHER, PLAIN, close])
    assert page.cells["Distilled student − Plain student"][3] == "could be chance"
    assert "could be chance" in findings([PLAIN, close])[0]
    same = model("Distilled student", "distilled", BASE)
    assert report([PLAIN, same]).cells["Distilled student − Plain student"][3] == "the same"


def test_share_of_the_gap_has_an_interval_or_is_not_stated():
    text = gap_statement(TEACHER, PLAIN, DISTILLED)
    share, low, high = map(
        int, re.search(r"closes (\d+) % .* interval (\d+) to (\d+) %", text).groups()
    )
    assert share == 50 and 35 < low < 50 < high < 65
    unclear = model("Teacher", "teacher", BASE + 0.3 + 2 * NOISE)
    text = gap_statement(unclear, PLAIN, DISTILLED)
    assert "not stated" in text and "closes" in text and "% of the gap" not in text
    worse = model("Teacher", "teacher", BASE - 20)
    text = gap_statement(worse, PLAIN, DISTILLED)
    assert "Teacher is not better than Plain student" in text and "-20.00 mAP" in text
    assert "closes" not in text


def test_one_seed_says_that_their_spread_is_unknown():
    assert "(seed 1): the spread over seeds is unknown" in findings(MODELS)[-1]


def test_several_seeds_are_paired_and_their_spread_is_shown(report):
    plain = model("Plain student", "plain", BASE, BASE + 2, BASE + 4)
    ours = model("Distilled student", "distilled", BASE + 5, BASE + 6 + NOISE, BASE + 13)
    page = report([TEACHER, plain, ours])
    assert page.cells["Plain student"][0].startswith("52.0 ± 2.0 ")
    cells = page.cells["Distilled student − Plain student"]
    # By seed 5, 4 and 9.
    assert cells[0] == "+6.00" and cells[-1] == "+5.00, +4.00, +9.00"
    assert "mean +6.00, standard deviation 2.65" in page.text
    assert "seeds 1, 2, 3" in page.text and "unknown" not in page.text
    assert "those of its first seed" in page.text


def test_latencies_come_with_their_quartiles_and_a_warning_where_they_spread(report):
    steady = model("Teacher", "teacher", BASE, latency_ms=(18.0, 20.0, 23.0))  # 25 %, the limit
    busy = model("Plain student", "plain", BASE, latency_ms=(900.0, 1625.0, 2200.0))
    assert latency_statement([steady, PLAIN]) == ""
    page = report([steady, busy])
    assert page.cells["Teacher"][-1] == "20.0 ms 18.0 to 23.0"
    assert page.cells["Plain student"][-1] == "1,625.0 ms 900.0 to 2,200.0"
    assert "not stable" in page.text and "Plain student 80 %" in page.text
    assert "Teacher 25" not in page.text


def test_rankings_stand_side_by_side_by_query(report):
    page = report(MODELS, shown_queries=2)
    names = [text for level, text in page.headings if level == 4]
    assert names == 2 * [m.name for m in MODELS]
    worst, best = (int(np.argmin(BASE + NOISE)), int(np.argmax(BASE + NOISE)))
    assert [t for level, t in page.headings if level == 3] == [f"Query {worst}", f"Query {best}"]
    # Of every query: scene and person, then of each model's only match.
    alts = [image["alt"] for image in page.find("img")]
    assert len(alts) == 2 * (2 + 3 * 2)
    assert alts.count("rank 1, right: the person") == 6
    assert alts[0] == f"query {worst}: the whole picture, the person is framed"
    assert "“Distilled student”" in page.text


def test_images_lie_in_the_file_with_losses_for_dark_screens(report, log):
    page = report([model("Teacher", "teacher", BASE, log=log)])
    assert "total_loss over the iterations of Teacher" in [i["alt"] for i in page.find("img")]
    sources = [s["srcset"] for s in page.find("source")]
    assert len(sources) == 2
    for uri in sources + [image["src"] for image in page.find("img")]:
        kind, content = re.fullmatch(r"data:image/(png|jpeg);base64,(.+)", uri).groups()
        image = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
        image.load()
        assert image.format == kind.upper()


def test_all_text_is_escaped(tmp_path, scenes, log):
    evil = '<script>alert("1")</script>&'
    models = [
        model(evil, "plain", BASE, log=log),
        model("x" + evil, "distilled", BASE, log="no" + evil),
    ]
    path = tmp_path / "r.html"
    write_report(path, evil, models, scenes, intro=evil, settings={evil: evil}, seconds={evil: 1.0})
    page = Page(path.read_text(encoding="utf-8"))
    assert page.text.count(evil) >= 12


def test_missing_logs_and_matches_are_said_not_hidden(report, tmp_path):
    absent = model("Teacher", "teacher", BASE, log=tmp_path / "absent.json")
    page = report([absent])
    assert "There is no training log of: Teacher" in page.text
    assert "No losses were logged." in page.text


def test_old_report_stays_if_the_new_one_fails(report, tmp_path, scenes):
    report(MODELS)
    path = tmp_path / "out" / "report.html"
    before = path.read_bytes()
    with pytest.raises(ValueError, match="image 'b'"):
        write_report(path, "T", MODELS, scenes[:1])
    with pytest.raises(ValueError, match="different names"):
        write_report(path, "T", [PLAIN, PLAIN], scenes)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_results_page_has_a_row_per_model_and_their_rankings(tmp_path, scenes):
    path = tmp_path / "page.html"
    documents = {
        "ours": results([51.26, 40.0], mAP=51.26),
        "theirs": {"queries": results([30.0, 20.0])["queries"]},
    }
    write_results_page(str(path), "On <a> set", documents, scenes, [1], note="By rule.")
    page = Page(path.read_text(encoding="utf-8"))
    assert page.rows == [
        ["Model", "mAP", "top1", "top5", "detection AP", "detection recall"],
        ["ours", "51.3", "61.3", "72.0", "94.0", "–"],
        ["theirs", "–", "–", "–", "–", "–"],
    ]
    assert "On <a> set" in page.text and "By rule." in page.text
    assert [text for _, text in page.headings][-3:] == ["Query 1", "ours", "theirs"]
