"""From the results of single runs to one table and one picture."""

import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from kd_search.experiments.metrics import METRICS
from kd_search.experiments.rows import Row
from kd_search.utils.files import (
    atomic_write,
    write_json,
)

TEACHER = "teacher"
BASE = "base"

#: (row, seed) to the metrics of that run.
Results = Mapping[tuple[str, int], Mapping[str, float]]


@dataclass(frozen=True)
class TableLayout:
    """What a table shows."""

    #: Metrics in percent, in the order of the table; the first one that a run has is drawn, and
    #: its gains are shown.
    metrics: tuple[str, ...] = tuple(METRICS)
    #: Row that the others are compared with.
    base: str = BASE
    #: Heads of the columns with a paper's numbers.
    paper: tuple[str, ...] = ()
    #: Name of the files without their endings.
    stem: str = "ablation"


def spread(values: Sequence[float]) -> dict[str, Optional[float]]:
    """Mean and sample standard deviation (divisor n - 1; ``None`` for a single value)."""
    return {
        "n": len(values),
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
    }


def summarise(
    rows: Sequence[Row],
    results: Results,
    teachers: Mapping[str, Mapping[str, float]],
    layout: TableLayout,
) -> list[dict]:
    """One entry per row that has a result, the teachers' first.

    Each holds ``row``, ``paper`` and ``metrics``: by metric ``n``, ``mean``, ``std``, ``seeds``
    (seed to value) and ``gain``, the spread of the differences to the base row of the same seed.
    Runs of one seed start from the same weights and see the same batches, so these differences
    spread less than the values themselves.

    Args:
        rows: in the order of the table.
        results: of the finished runs.
        teachers: metrics of the teachers by name; without those that were not evaluated.
        layout: its metrics and base.
    """
    table = []
    for name, found in teachers.items():
        metrics = {
            metric: {"n": 1, "mean": found[metric], "std": None, "seeds": {}, "gain": None}
            for metric in layout.metrics
            if metric in found
        }
        if metrics:
            table.append({"row": name, "paper": [], "metrics": metrics})
    for row in rows:
        runs = {seed: m for (name, seed), m in sorted(results.items()) if name == row.name}
        if runs:
            names = [name for name in layout.metrics if all(name in m for m in runs.values())]
            metrics = {name: _metric(row.name, name, runs, results, layout) for name in names}
            table.append({"row": row.name, "paper": list(row.paper), "metrics": metrics})
    return table


def _metric(
    row: str,
    name: str,
    runs: Mapping[int, Mapping[str, float]],
    results: Results,
    layout: TableLayout,
) -> dict:
    values = {seed: metrics[name] for seed, metrics in runs.items()}
    gains = [
        value - results[layout.base, seed][name]
        for seed, value in values.items()
        if row != layout.base and name in results.get((layout.base, seed), {})
    ]
    return {
        **spread(list(values.values())),
        "seeds": values,
        "gain": spread(gains) if gains else None,
    }


def markdown(table: Sequence[dict], layout: TableLayout, title: str = "") -> str:
    """The table as Markdown: mean and standard deviation, gain over base, all seeds, the paper."""
    names = _shown(table, layout)
    if not names:
        return "no run has ended yet\n"
    first = names[0]
    head = ["row", *names, f"{first} above {layout.base}", f"{first} by seed"]
    head += [f"paper: {column}" for column in layout.paper]
    lines = [title, ""] if title else []
    lines += [markdown_line(head), markdown_line(["---"] * len(head))]
    for entry in table:
        metrics = entry["metrics"]
        cells = [entry["row"], *(_cell(metrics.get(name)) for name in names)]
        cells.append(_cell(metrics.get(first, {}).get("gain"), sign=True))
        seeds = metrics.get(first, {}).get("seeds", {})
        cells.append(", ".join(f"{value:.1f}" for value in seeds.values()) or "-")
        cells += [f"{value:.1f}" for value in entry["paper"]] or ["-"] * len(layout.paper)
        lines.append(markdown_line(cells))
    return "\n".join(lines) + "\n"


def markdown_grid(
    table: Sequence[dict],
    cells: Mapping[str, Sequence[Optional[str]]],
    columns: Sequence[str],
    metric: str,
    *,
    corner: str = "",
) -> str:
    """One metric of rows that belong side by side, as Markdown: mean and standard deviation.

    Args:
        table: of :func:`summarise`.
        cells: by line of the grid, the row of the table in each column; ``None`` where the column
            does not apply.
        columns: their heads.
        metric: which one.
        corner: head of the first column.
    """
    metrics = {entry["row"]: entry["metrics"].get(metric) for entry in table}
    lines = [markdown_line([corner, *columns]), markdown_line(["---"] * (len(columns) + 1))]
    for name, rows in cells.items():
        shown = ["" if row is None else _cell(metrics.get(row)) for row in rows]
        lines.append(markdown_line([name, *shown]))
    return "\n".join(lines) + "\n"


def markdown_line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def _shown(table: Sequence[dict], layout: TableLayout) -> list[str]:
    return [name for name in layout.metrics if any(name in entry["metrics"] for entry in table)]


def _cell(value: Optional[Mapping[str, Any]], sign: bool = False) -> str:
    if not value:
        return "-"
    mean = round(value["mean"], 1) + 0.0  # no "-0.0"
    text = f"{mean:+.1f}" if sign else f"{mean:.1f}"
    return text if value["std"] is None else f"{text} ± {value['std']:.1f}"


def draw(table: Sequence[dict], path: Path, layout: TableLayout, title: str = "") -> None:
    """A picture of the first metric of the rows: a dot for each seed, a stroke for the mean."""
    # Not at the top: the table must be there where no picture can be.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    name = next(iter(_shown(table, layout)), None)
    if name is None:
        return
    entries = [entry for entry in table if name in entry["metrics"]]
    figure = Figure(figsize=(7.0, 1.2 + 0.36 * len(entries)), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for y, entry in enumerate(entries):
        metric = entry["metrics"][name]
        # A teacher has no seeds; it and the base are what the others are seen against.
        colour = "#4c78a8" if metric["seeds"] and entry["row"] != layout.base else "#8a8a8a"
        # No bars: the axis does not start at 0, where the differences could not be seen.
        if metric["std"] is not None:
            left, width = metric["mean"] - metric["std"], 2 * metric["std"]
            axes.barh(y, width, left=left, height=0.5, color=colour, alpha=0.25)
        axes.plot([metric["mean"]] * 2, [y - 0.3, y + 0.3], color=colour, linewidth=2.5)
        seeds = list(metric["seeds"].values()) or [metric["mean"]]
        axes.plot(seeds, [y] * len(seeds), "o", color="#222222", markersize=4)
        if entry["row"] == layout.base:
            axes.axvline(metric["mean"], color="#8a8a8a", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(entries)), [entry["row"] for entry in entries])
    axes.invert_yaxis()
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    # Bars would keep the axis from going beyond their left ends.
    axes.use_sticky_edges = False
    axes.autoscale_view(scaley=False)
    axes.set_xlabel(f"{name} (%); dot: one seed, stroke: mean, band: standard deviation")
    if title:
        axes.set_title(title, fontsize=10)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with atomic_write(path) as file:
        file.write(buffer.getvalue())


def write_all(
    table: Sequence[dict],
    folder: Path,
    title: str,
    facts: Mapping[str, Any],
    layout: TableLayout,
    *,
    below: str = "",
    caption: Optional[str] = None,
) -> str:
    """Write the table as .json, .md and .png; see :attr:`TableLayout.stem`.

    Args:
        table: of :func:`summarise`.
        folder: made if absent.
        title: above the table.
        facts: what the JSON holds besides.
        layout: of the table.
        below: Markdown that follows the table.
        caption: of the picture, which shows one metric alone; ``None`` for the title.

    Returns:
        the Markdown.
    """
    write_json(folder / f"{layout.stem}.json", {**facts, "title": title, "table": list(table)})
    text = markdown(table, layout, title) + (f"\n{below}" if below else "")
    write_text(folder / f"{layout.stem}.md", text)
    draw(table, folder / f"{layout.stem}.png", layout, title if caption is None else caption)
    return text


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as file:
        file.write(text.encode())
