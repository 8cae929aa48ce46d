"""The report: one file that needs nothing else, with every number in it."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from kd_search.visualization import (
    gap_statement,
    latency_statement,
    write_report,
    write_results_page,
)

VOID = {"meta", "img", "source", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects what a page holds, and refuses tags that do not match."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.images, self.texts, self.rows = [], [], [], []
        self._open = []
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        self.images += [attributes[k] for k in ("src", "srcset") if k in attributes]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        if self._open and self._open[-1] not in ("style",):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(self.texts)


def row(mean_ap, **more):
    return {
        "mAP": mean_ap,
        "top1": 61.26,
        "top5": 72.0,
        "top10": 83.0,
        "det_AP": 94.0,
        "det_recall": 95.0,
        "params": 1_234_567,
        "latency_ms": 17.25,
        **more,
    }


METRICS = {
    "teacher": row(60.0, params=9_876_543),
    "student": row(40.0, top5=74.0),
    "student_distilled": row(55.0, top1=65.0),
    "seconds": {"generate": 1.5, "train_teacher": 100.0},
    "versions": {"torch": "2.14.1", "detectron2": "0.5"},
    "seed": 7,
}


def picture(value):
    return np.full((30, 40, 3), value, np.uint8)


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "metrics.json"
    lines = [json.dumps({"iteration": i, "total_loss": 1.0, "loss_oim": 0.5}) for i in range(5)]
    path.write_text("\n".join(lines) + '\n{"iterat')
    return path


def report(tmp_path, metrics=METRICS, runs=None, pictures=None, **kwargs):
    path = tmp_path / "report.html"
    write_report(path, "Title", metrics, runs or {}, pictures or {}, **kwargs)
    return path.read_text(encoding="utf-8")


def test_report_holds_every_number(tmp_path, log):
    page = Page(report(tmp_path, runs={"teacher": log}))
    rows = {cells[0]: cells[1:] for cells in page.rows}
    assert rows["Teacher"][:6] == ["60.0", "61.3", "72.0", "83.0", "94.0", "95.0"]
    assert rows["Teacher"][6:] == ["9.88 M", "17.2 ms"]
    assert rows["Student"][0] == "40.0"
    assert rows["Student, distilled"][0] == "55.0"
    assert rows["seed"] == ["7"]
    assert rows["torch"] == ["2.14.1"]
    assert rows["train_teacher"] == ["100.0"]
    assert rows["total"] == ["101.5"]


def test_latencies_come_with_their_quartiles_and_a_warning_where_they_spread(tmp_path):
    steady = {"latency_ms": 20.0, "latency_quartiles_ms": [18.0, 23.0]}  # a quarter, the limit
    busy = {"latency_ms": 1625.0, "latency_quartiles_ms": [900.0, 2200.0]}
    metrics = {"teacher": row(60.0, **steady), "student": row(40.0, **steady)}
    page = Page(report(tmp_path, metrics))
    rows = {cells[0]: cells[1:] for cells in page.rows}
    assert rows["Teacher"][-1] == "20.0 ms (18.0 to 23.0)"
    assert "not stable" not in page.text and latency_statement(metrics) == ""
    metrics["student"] = row(40.0, **busy)
    text = Page(report(tmp_path, metrics)).text
    assert "1,625.0 ms (900.0 to 2,200.0)" in text
    assert "not stable" in text and "Student 80 %" in text and "25 %" in text
    assert "Teacher 25" not in text
    # Of a run before there were quartiles nothing is said.
    assert latency_statement(METRICS) == ""


def test_changes_are_against_the_plain_student(tmp_path):
    html = report(tmp_path)
    assert re.findall(r'<small class="(\w*)">([^<]+)', html) == [
        ("good", "+15.0"),
        ("good", "+3.7"),
        ("bad", "−2.0"),
        ("", "+0.0"),
        ("", "+0.0"),
        ("", "+0.0"),
    ]


def test_report_needs_nothing_else(tmp_path, log):
    html = report(
        tmp_path,
        runs={"teacher": log, "student": log},
        pictures={"teacher": picture(9), "student": picture(99)},
    )
    assert not re.search(r"https?:|[\"'(=]//|@import|url\(|file:", html)
    page = Page(html)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    # Two losses, light and dark, and two pictures.
    assert len(page.images) == 2 * 2 + 2
    for uri in page.images:
        kind, content = re.fullmatch(r"data:image/(png|jpeg);base64,(.+)", uri).groups()
        image = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
        image.load()
        assert image.format == kind.upper()


def test_pictures_come_in_order_with_their_models(tmp_path):
    html = report(tmp_path, pictures={"teacher": picture(9), "my <own>": picture(99)})
    page = Page(html)
    assert [a["alt"] for tag, a in page.tags if tag == "img"] == [
        "Ranked search results: Teacher",
        "Ranked search results: my <own>",
    ]
    values = [
        int(np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))[0, 0, 0])
        for uri in page.images
    ]
    assert values == pytest.approx([9, 99], abs=2)


def test_all_text_is_escaped(tmp_path, log):
    evil = '<script>alert("1")</script>&'
    metrics = {**METRICS, "versions": {evil: evil}, "seconds": {evil: 1.0}, "seed": evil}
    path = tmp_path / "r.html"
    write_report(
        path,
        evil,
        metrics,
        {evil: log, "x" + evil: tmp_path / evil.replace("/", "")},
        {evil: picture(1)},
        intro=evil,
        settings={evil: evil},
        picture_note=evil,
    )
    page = Page(path.read_text(encoding="utf-8"))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(evil) >= 8


def test_missing_logs_pictures_and_numbers_are_said_not_hidden(tmp_path):
    metrics = {"student": {"mAP": float("nan")}, "teacher": {"mAP": None}}
    page = Page(report(tmp_path, metrics, runs={"teacher": tmp_path / "absent.json"}))
    assert "There is no training log of: Teacher" in page.text
    assert "No losses were logged." in page.text
    assert "No pictures were made." in page.text
    rows = {cells[0]: cells[1:] for cells in page.rows}
    assert rows["Student"] == ["–"] * 8
    assert "Student, distilled" not in rows


def test_old_report_stays_if_the_new_one_fails(tmp_path):
    before = report(tmp_path)
    with pytest.raises(ValueError):
        report(tmp_path, pictures={"teacher": np.zeros((3, 3), np.uint8)})
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    "teacher, student, distilled, expected",
    [
        (60, 40, 55, "closes 75 % of the gap"),
        (60, 40, 40, "closes 0 % of the gap"),
        (60, 40, 62, "closes the whole gap between the student and its teacher: 110 %"),
        (60, 40, 38, "made the student worse by 2.0"),
        (40, 41, 45, "no gap to close"),
        (40, 40, 45, "no gap to close"),
        (60, None, 45, "cannot be stated"),
    ],
)
def test_gap_statement(teacher, student, distilled, expected):
    values = {"teacher": teacher, "student": student, "student_distilled": distilled}
    assert expected in gap_statement({model: {"mAP": v} for model, v in values.items()})
    assert "cannot be stated" in gap_statement({})


def test_results_page_has_a_row_per_model(tmp_path):
    metrics = {
        "person_search": {"mAP": 51.26, "top1": 60.0, "queries": 9},
        "detection": {"AP": None, "recall": 90.0},
    }
    path = tmp_path / "page.html"
    documents = {"ours": {"metrics": metrics}, "theirs": {"metrics": {}}}
    write_results_page(str(path), "On <a> set", {"ours": picture(3)}, documents, "By rule.")
    page = Page(path.read_text(encoding="utf-8"))
    assert page.rows == [
        ["Model", "mAP", "top1", "detection AP", "detection recall"],
        ["ours", "51.3", "60.0", "–", "90.0"],
        ["theirs", "–", "–", "–", "–"],
    ]
    assert "On <a> set" in page.text and "By rule." in page.text
