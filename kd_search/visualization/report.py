"""The report of a distillation experiment: one self-contained HTML file."""

import math
import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Optional, Union

import numpy as np

from . import page
from .curves import draw_loss_curves, loss_terms, read_metrics
from .drawing import write_file
from .results_page import MODELS, pictures_section
from .search_results import CHOICE

#: Largest interquartile range of the latencies, as a share of their median. Beyond it they depend
#: more on the load of the machine than on the model.
STABLE_SPREAD = 0.25

_COLUMNS = {
    "mAP": "mAP",
    "top1": "top-1",
    "top5": "top-5",
    "top10": "top-10",
    "det_AP": "det. AP",
    "det_recall": "det. recall",
}


def write_report(
    path: Union[str, "os.PathLike[str]"],
    title: str,
    metrics: Mapping[str, Any],
    runs: Mapping[str, Union[str, "os.PathLike[str]"]],
    result_pictures: Mapping[str, np.ndarray],
    *,
    intro: str = "",
    settings: Optional[Mapping[str, Any]] = None,
    picture_note: str = CHOICE,
) -> None:
    """Write the report of a teacher, a student and a distilled student.

    Args:
        path: HTML file; readers see the old one or the whole new one.
        title: plain text, as all text here.
        metrics: ``teacher``, ``student`` and ``student_distilled``, each with any of ``mAP``,
            ``top1``, ``top5``, ``top10``, ``det_AP``, ``det_recall`` (percent), ``params``,
            ``latency_ms`` (the median) and ``latency_quartiles_ms`` (the first and the third); and
            ``seconds`` (of each step), ``versions`` and ``seed``.
        runs: model (or any label) to the ``metrics.json`` of its training. One that does not exist
            is named in the report.
        result_pictures: model (or any label) to the (H, W, 3) uint8 RGB of
            :func:`draw_search_results`, of the same queries for all.
        intro: a paragraph under the title.
        settings: further settings that the numbers depend on: data set, schedule, hardware.
        picture_note: how the queries of the pictures were chosen.
    """
    sections = [
        f"<header><h1>{escape(title)}</h1>{page.paragraph(intro, 'lead faint') if intro else ''}"
        "</header>\n",
        _results_section(metrics),
        pictures_section(result_pictures, picture_note),
        _curves_section(runs),
        _settings_section(metrics, settings or {}),
    ]
    write_file(str(path), page.page(title, sections).encode("utf-8"))


def gap_statement(metrics: Mapping[str, Any]) -> str:
    """A sentence with the share of the gap in mAP to the teacher that distillation closes."""
    values = [metrics.get(model, {}).get("mAP") for model in MODELS]
    if not all(isinstance(v, (int, float)) and math.isfinite(v) for v in values):
        return "The gap cannot be stated: not all three models have an mAP."
    teacher, student, distilled = values
    numbers = f"mAP {student:.1f} to {distilled:.1f}, teacher {teacher:.1f}"
    if teacher <= student:
        return (
            f"There is no gap to close: the plain student is not behind its teacher ({numbers}; "
            f"distillation {distilled - student:+.1f})."
        )
    share = 100 * (distilled - student) / (teacher - student)
    if share < 0:
        return f"Distillation made the student worse by {student - distilled:.1f} ({numbers})."
    if share >= 100:
        return (
            f"Distillation closes the whole gap between the student and its teacher: "
            f"{share:.0f} % of it ({numbers})."
        )
    return (
        f"Distillation closes {share:.0f} % of the gap between the student and its teacher "
        f"({numbers})."
    )


def latency_statement(metrics: Mapping[str, Any]) -> str:
    """A warning about unstable latencies; empty if there are none, or no quartiles."""
    spreads = {}
    for model, name in MODELS.items():
        row = metrics.get(model, {})
        if "latency_quartiles_ms" in row:
            first, third = row["latency_quartiles_ms"]
            spreads[name] = (third - first) / row["latency_ms"]
    unstable = [f"{name} {100 * s:.0f} %" for name, s in spreads.items() if s > STABLE_SPREAD]
    if not unstable:
        return ""
    return (
        f"The latencies are not stable: the middle half spreads over {', '.join(unstable)} of the "
        f"median, and {100 * STABLE_SPREAD:.0f} % is the limit. Other programs ran at the same "
        "time; measure again on an idle machine before you compare them."
    )


def _results_section(metrics: Mapping[str, Any]) -> str:
    plain = metrics.get("student", {})
    heads = "".join(
        f'<th scope="col">{escape(name)}</th>'
        for name in ("Model", *_COLUMNS.values(), "parameters", "latency")
    )
    body = bars = ""
    for model, name in MODELS.items():
        if model not in metrics:
            continue
        row = metrics[model]
        strong = model == "student_distilled"
        cells = [
            f"<td>{page.number(row.get(key))}{_change(row, plain, key) if strong else ''}</td>"
            for key in _COLUMNS
        ]
        cells += [f"<td>{_millions(row.get('params'))}</td>", f"<td>{_milliseconds(row)}</td>"]
        style = ' class="strong"' if strong else ""
        body += f'<tr{style}><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>\n'
        bars += _bar(name, row.get("mAP"), style)
    return page.section(
        "Result",
        page.paragraph(gap_statement(metrics), "lead"),
        f'<div class="bars"><span class="faint">mAP, percent</span><span></span>\n{bars}</div>\n',
        page.wrap_table(heads, body),
        page.paragraph(
            "Search mAP and top-k accuracy, detection AP and recall, in percent. Small: change "
            "against the plain student. Latency: one image, median (first to third quartile).",
            "note",
        ),
        page.paragraph(unstable, "note") if (unstable := latency_statement(metrics)) else "",
    )


def _curves_section(runs: Mapping[str, Union[str, "os.PathLike[str]"]]) -> str:
    logs, missing = {}, []
    for label, log in runs.items():
        try:
            logs[MODELS.get(label, label)] = read_metrics(log)
        except OSError:
            missing.append(f"{MODELS.get(label, label)} ({log})")
    figures = ""
    for term in loss_terms(logs):
        light, dark = (draw_loss_curves(logs, [term], dark=dark) for dark in (False, True))
        figures += f"<figure>{page.drawing(light, f'{term} over the iterations', dark)}</figure>\n"
    parts = [
        page.paragraph(
            "Faint: as logged. Strong: running mean. The first steps may lie above the frame.",
            "faint",
        ),
        f'<div class="grid">\n{figures}</div>\n' if figures else "",
    ]
    if not figures:
        parts = [page.paragraph("No losses were logged.", "faint")]
    if missing:
        parts.append(page.paragraph(f"There is no training log of: {', '.join(missing)}.", "faint"))
    return page.section("Training losses", *parts)


def _settings_section(metrics: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    facts = [("seed", metrics["seed"])] if "seed" in metrics else []
    facts += list(settings.items())
    facts += list(metrics.get("versions", {}).items())
    parts = [page.table(("Setting", "Value"), facts)] if facts else []
    seconds = metrics.get("seconds", {})
    if seconds:
        rows: Sequence = [(step, page.number(value)) for step, value in seconds.items()]
        total = sum(v for v in seconds.values() if isinstance(v, (int, float)))
        parts.append(page.table(("Step", "Seconds"), [*rows, ("total", page.number(total))]))
    return page.section("Settings", f'<div class="pair">\n{"".join(parts)}</div>\n')


def _bar(name: str, value: Any, style: str) -> str:
    width = min(max(value, 0.0), 100.0) if page.number(value) != "–" else 0.0
    return (
        f"<span>{escape(name)}</span>"
        f'<div{style}><i style="width: {width:.2f}%"></i>{page.number(value)}</div>\n'
    )


def _change(row: Mapping[str, Any], plain: Mapping[str, Any], key: str) -> str:
    if "–" in (page.number(row.get(key)), page.number(plain.get(key))):
        return ""
    change = round(row[key] - plain[key], 1)
    style = "good" if change > 0 else "bad" if change < 0 else ""
    text = f"{change:+.1f}".replace("-", "−")
    return f'<small class="{style}">{text}</small>'


def _millions(params: Any) -> str:
    text = page.number(params / 1e6, 2) if isinstance(params, (int, float)) else "–"
    return text if text == "–" else f"{text} M"


def _milliseconds(row: Mapping[str, Any]) -> str:
    text = page.number(row.get("latency_ms"))
    if text == "–":
        return text
    quartiles = row.get("latency_quartiles_ms")
    spread = f" ({' to '.join(page.number(q) for q in quartiles)})" if quartiles else ""
    return f"{text} ms{spread}"
