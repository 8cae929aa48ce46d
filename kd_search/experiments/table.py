"""From the results of single runs to one table and one picture."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from kd_search.experiments.run_folder import METRICS
from kd_search.utils.files import atomic_write

TEACHER = "teacher"
BASE = "base"

#: (row, seed) to the metrics of that run.
Results = Mapping[tuple[str, int], Mapping[str, float]]


@dataclass(frozen=True)
class TableLayout:
    """What a table shows."""

    #: Metrics in percent, in the order of the table. The first one that a run has is drawn, and its
    #: gains are shown.
    metrics: tuple[str, ...] = tuple(METRICS)
    #: Row that the others are compared with.
    base: str = BASE
    #: Heads of the columns with a paper's numbers.
    paper: tuple[str, ...] = ()
    #: Name of the files without their endings.
    stem: str = "ablation"

    def shown(self, table: Sequence[Mapping[str, Any]]) -> list[str]:
        """Metrics that any entry of a table has."""
        return [name for name in self.metrics if any(name in entry["metrics"] for entry in table)]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Number, mean and sample standard deviation (divisor n - 1; ``None`` for a single value)."""
    return {
        "n": len(values),
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
    }


def summarise(
    rows: Iterable[str],
    results: Results,
    teachers: Mapping[str, Mapping[str, float]],
    layout: TableLayout,
    paper: Mapping[str, Sequence[float]] = {},  # noqa: B006  never written to
) -> list[dict[str, Any]]:
    """One entry per row that has a result, the teachers first.

    Each holds ``row``, ``paper`` and ``metrics``: by metric ``n``, ``mean``, ``std``, ``seeds``
    (seed to value) and ``gain``, the spread of the differences to the base row of the same seed.
    Runs of one seed start from the same weights and see the same batches, so these differences
    vary less than the values themselves.

    Args:
        rows: names, in the order of the table.
        results: of the finished runs.
        teachers: metrics of the teachers by name, without those that were not evaluated.
        layout: defines metrics and base.
        paper: a paper's numbers by row.
    """
    table: list[dict[str, Any]] = []
    for name, found in teachers.items():
        single: dict[str, Any] = {"n": 1, "std": None, "seeds": {}, "gain": None}
        metrics = {m: {**single, "mean": found[m]} for m in layout.metrics if m in found}
        if metrics:
            table.append({"row": name, "paper": [], "metrics": metrics})
    for row in rows:
        runs = {seed: metrics for (name, seed), metrics in sorted(results.items()) if name == row}
        metrics = {}
        for metric in layout.metrics:
            if runs and all(metric in run for run in runs.values()):
                values = {seed: run[metric] for seed, run in runs.items()}
                gains = [
                    value - results[layout.base, seed][metric]
                    for seed, value in values.items()
                    if row != layout.base and metric in results.get((layout.base, seed), {})
                ]
                gain = spread(gains) if gains else None
                metrics[metric] = {**spread([*values.values()]), "seeds": values, "gain": gain}
        if runs:
            table.append({"row": row, "paper": [*paper.get(row, ())], "metrics": metrics})
    return table


def markdown(table: Sequence[Mapping[str, Any]], layout: TableLayout, title: str = "") -> str:
    """The table as Markdown: mean and standard deviation, gain over base, all seeds, the paper."""
    names = layout.shown(table)
    if not names:
        return "no run has ended yet\n"
    first = names[0]
    head = ["row", *names, f"{first} above {layout.base}", f"{first} by seed"]
    lines = []
    for entry in table:
        metrics = entry["metrics"]
        main = metrics.get(first) or {"gain": None, "seeds": {}}
        lines.append(
            [
                entry["row"],
                *(markdown_cell(metrics.get(name)) for name in names),
                markdown_cell(main["gain"], sign=True),
                ", ".join(f"{value:.1f}" for value in main["seeds"].values()) or "-",
                *([f"{value:.1f}" for value in entry["paper"]] or ["-"] * len(layout.paper)),
            ]
        )
    text = markdown_table([*head, *(f"paper: {column}" for column in layout.paper)], lines)
    return f"{title}\n\n{text}" if title else text


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells as a Markdown table."""
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *rows])


def markdown_cell(value: Optional[Mapping[str, Any]], sign: bool = False) -> str:
    """A :func:`spread` as text; a dash for none."""
    if not value:
        return "-"
    mean = round(value["mean"], 1) + 0.0  # no "-0.0"
    text = f"{mean:+.1f}" if sign else f"{mean:.1f}"
    return text if value["std"] is None else f"{text} ± {value['std']:.1f}"


def draw(
    table: Sequence[Mapping[str, Any]],
    path: Path,
    layout: TableLayout,
    title: str = "",
    reference: Optional[tuple[str, float]] = None,
) -> None:
    """Write a picture of the first metric of the rows: a dot for each seed, a stroke for the mean.

    No bars: the axis does not start at 0, where the differences could not be seen. ``reference`` is
    the name and the value of a dotted line.
    """
    name = next(iter(layout.shown(table)), None)
    if name is None:
        return
    entries = [entry for entry in table if name in entry["metrics"]]

    def plot(figure: Any) -> None:
        axes = figure.add_subplot()
        for y, entry in enumerate(entries):
            metric, is_base = entry["metrics"][name], entry["row"] == layout.base
            # Teachers (without seeds) and the base are references.
            colour = "#4c78a8" if metric["seeds"] and not is_base else "#8a8a8a"
            mean = metric["mean"]
            if metric["std"] is not None:
                left, width = mean - metric["std"], 2 * metric["std"]
                axes.barh(y, width, left=left, height=0.5, color=colour, alpha=0.25)
            axes.plot([mean] * 2, [y - 0.3, y + 0.3], color=colour, linewidth=2.5)
            seeds = list(metric["seeds"].values()) or [mean]
            axes.plot(seeds, [y] * len(seeds), "o", color="#222222", markersize=4)
            if is_base:
                axes.axvline(mean, color="#8a8a8a", linewidth=0.8, linestyle="--")
        if reference is not None:
            label, value = reference
            axes.axvline(value, color="#d55e00", linestyle=":", label=f"{label}: {value:.1f}")
            axes.legend(fontsize=9)
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

    write_figure(path, (7.0, 1.2 + 0.36 * len(entries)), plot)


def write_figure(path: Path, size: tuple[float, float], plot: Callable[[Any], None]) -> None:
    """Write a PNG file of ``size`` inches atomically; ``plot`` draws into a matplotlib figure."""
    # Not at the top: tables are written where no picture can be.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=120)
    FigureCanvasAgg(figure)
    plot(figure)
    figure.tight_layout()
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as file:
        file.write(text.encode())
