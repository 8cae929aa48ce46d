"""From the results of single runs to one table and one picture."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
from scipy.special import stdtrit

from kd_search.evaluation.query_results import shared_intervals
from kd_search.experiments.run_facts import METRICS, unpack_queries
from kd_search.utils.files import atomic_write

TEACHER = "teacher"
BASE = "base"

#: (row, seed) to the metrics of that run.
Results = Mapping[tuple[str, int], Mapping[str, float]]
#: (row, seed) to what :func:`.run_facts.per_query_of` returns.
PerQuery = Mapping[tuple[str, int], Mapping[str, Mapping[str, str]]]

# Of the bootstrap over queries, as in kd-search compare.
_RESAMPLES, _SEED = 10000, 0


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


def seed_interval(values: Sequence[float]) -> Optional[list[float]]:
    """Ends of the 95 % interval of a mean over seeds, by Student's t; ``None`` for one seed."""
    if len(values) < 2:
        return None
    mean, std = statistics.fmean(values), statistics.stdev(values)
    half = float(stdtrit(len(values) - 1, 0.975)) * std / math.sqrt(len(values))
    return [mean - half, mean + half]


def summarise(
    rows: Iterable[str],
    results: Results,
    teachers: Mapping[str, Mapping[str, float]],
    layout: TableLayout,
    paper: Mapping[str, Sequence[float]] = {},  # noqa: B006  never written to
    per_query: PerQuery = {},  # noqa: B006  never written to
) -> list[dict[str, Any]]:
    """One entry per row that has a result, the teachers first.

    Each holds ``row``, ``paper`` and ``metrics``: by metric ``n``, ``mean``, ``std``, ``seeds``
    (seed to value) and ``gain``, the spread of the differences to the base row of the same seed.
    Runs of one seed start from the same weights and see the same batches, so these differences
    vary less than the values themselves. Of a gain there are two 95 % intervals, which are about
    different things: ``over_seeds``, other trainings tested with the same queries
    (:func:`seed_interval`), and ``over_queries``, other queries of the same trainings (bootstrap of
    the queries' mean difference over the seeds); each ``None`` where it cannot be computed.

    Args:
        rows: names, in the order of the table.
        results: of the finished runs.
        teachers: metrics of the teachers by name, without those that were not evaluated.
        layout: defines metrics and base.
        paper: a paper's numbers by row.
        per_query: average precisions of the runs' queries, where there are any.
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
                gain: Optional[dict[str, Any]] = None
                if gains:
                    gain = {**spread(gains), "over_seeds": seed_interval(gains)}
                    gain["over_queries"] = None
                metrics[metric] = {**spread([*values.values()]), "seeds": values, "gain": gain}
        if runs:
            table.append({"row": row, "paper": [*paper.get(row, ())], "metrics": metrics})
    _add_query_intervals(table, layout.base, per_query)
    return table


def _add_query_intervals(table: list[dict[str, Any]], base: str, per_query: PerQuery) -> None:
    """Fill in ``over_queries`` of the gains; metrics with the same queries share resamples."""
    gains, samples = [], []
    for entry in table:
        for metric, numbers in entry["metrics"].items():
            seeds = [s for s in numbers["seeds"] if (base, s) in per_query]
            if numbers["gain"] is None or len(seeds) < numbers["gain"]["n"]:
                continue
            difference = _query_differences(per_query, entry["row"], base, seeds, metric)
            if difference is not None:
                gains.append(numbers["gain"])
                counted = ~np.isnan(difference)
                samples.append((difference[:, None], counted))
    for gain, (low, high) in zip(gains, shared_intervals(samples, _RESAMPLES, _SEED)):
        if len(low):
            gain["over_queries"] = [float(low[0]), float(high[0])]


def _query_differences(
    per_query: PerQuery, row: str, base: str, seeds: Sequence[int], metric: str
) -> Optional[np.ndarray]:
    """(Q,) mean over seeds of the differences to the base row; ``None`` where the runs do not have
    the same queries."""
    pairs: list[Any] = [
        (per_query.get((row, s), {}).get(metric), per_query[base, s].get(metric)) for s in seeds
    ]
    present = [packed for pair in pairs for packed in pair if packed is not None]
    if len(present) < 2 * len(seeds) or len({packed["queries"] for packed in present}) != 1:
        return None
    mean: np.ndarray = np.mean([unpack_queries(a) - unpack_queries(b) for a, b in pairs], axis=0)
    return mean


def markdown(table: Sequence[Mapping[str, Any]], layout: TableLayout, title: str = "") -> str:
    """The table as Markdown: mean and standard deviation, gain over base with its intervals, all
    seeds, the paper."""
    names = layout.shown(table)
    if not names:
        return "no run has ended yet\n"
    first = names[0]
    gains = [entry["metrics"].get(first, {}).get("gain") or {} for entry in table]
    intervals = [key for key in ("over_seeds", "over_queries") if any(g.get(key) for g in gains)]
    head = ["row", *names, f"{first} above {layout.base}"]
    head += [f"95 % {key.replace('_', ' ')}" for key in intervals] + [f"{first} by seed"]
    lines = []
    for entry in table:
        metrics = entry["metrics"]
        main = metrics.get(first) or {"gain": None, "seeds": {}}
        lines.append(
            [
                entry["row"],
                *(markdown_cell(metrics.get(name)) for name in names),
                markdown_cell(main["gain"], sign=True),
                *(markdown_interval((main["gain"] or {}).get(key)) for key in intervals),
                ", ".join(f"{value:.1f}" for value in main["seeds"].values()) or "-",
                *([f"{value:.1f}" for value in entry["paper"]] or ["-"] * len(layout.paper)),
            ]
        )
    text = markdown_table([*head, *(f"paper: {column}" for column in layout.paper)], lines)
    return f"{title}\n\n{text}" if title else text


def closed_gap(
    table: Sequence[Mapping[str, Any]], base: str, row: str, metric: str
) -> Optional[float]:
    """How much of the distance between base and teacher a row closes, in percent.

    100 mean(row - base) / (teacher - mean(base)), over the seeds that row and base share; above
    100 where the row is better than the teacher.

    Args:
        table: of :func:`summarise`, with one teacher.
        base, row, metric: of the table.

    Returns:
        ``None`` where there is no such distance: not one teacher, no common seed, or a teacher that
        is not better than the base.
    """
    found = {entry["row"]: entry["metrics"].get(metric) for entry in table}
    # Teachers are the rows without seeds.
    teachers = [numbers for numbers in found.values() if numbers and not numbers["seeds"]]
    ours, theirs = ((found.get(name) or {}).get("seeds", {}) for name in (row, base))
    seeds = ours.keys() & theirs.keys()
    if len(teachers) != 1 or not seeds:
        return None
    alone = statistics.fmean(theirs[seed] for seed in seeds)
    distance = teachers[0]["mean"] - alone
    taught = statistics.fmean(ours[seed] for seed in seeds)
    return 100 * (taught - alone) / distance if distance > 0 else None


def markdown_interval(ends: Optional[Sequence[float]]) -> str:
    """An interval as text; a dash for none."""
    if not ends:
        return "-"
    return " to ".join(f"{round(end, 1) + 0.0:+.1f}" for end in ends)


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
    source: str = "",
) -> None:
    """Write a picture of the first metric of the rows: a dot for each seed, a stroke for the mean.

    No bars: the axis does not start at 0, where the differences could not be seen. ``reference`` is
    the name and the value of a dotted line, ``source`` as in :func:`write_figure`.
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

    write_figure(path, (7.0, 1.2 + 0.36 * len(entries)), plot, source)


def draw_curve(
    points: Sequence[tuple[float, Mapping[str, Any]]],
    path: Path,
    x: str,
    label: str,
    source: str = "",
) -> None:
    """Write a picture of a gain over ``x``: its mean, and a band of its 95 % interval over seeds.

    Args:
        points: x and ``gain`` of an entry of :func:`summarise`, in the order of x.
        path, source: as in :func:`write_figure`.
        x, label: names of the axes.
    """

    def plot(figure: Any) -> None:
        axes = figure.add_subplot()
        places = [place for place, _ in points]
        means = [gain["mean"] for _, gain in points]
        ends = [gain["over_seeds"] or [gain["mean"]] * 2 for _, gain in points]
        errors = [
            [mean - low for mean, (low, _) in zip(means, ends)],
            [high - mean for mean, (_, high) in zip(means, ends)],
        ]
        axes.axhline(0.0, color="#8a8a8a", linewidth=0.8, linestyle="--")
        axes.errorbar(places, means, yerr=errors, fmt="o-", color="#4c78a8", capsize=3)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel(x)
        axes.set_ylabel(f"{label} (points)")

    write_figure(path, (6.0, 3.6), plot, source)


def write_figure(
    path: Path, size: tuple[float, float], plot: Callable[[Any], None], source: str = ""
) -> None:
    """Write a .png or .svg file of ``size`` inches atomically; ``plot`` draws into a matplotlib
    figure.

    An SVG file has the same bytes each time that the same version of matplotlib draws it, and
    ``source`` in its metadata.
    """
    # Not at the top: tables are written where no picture can be.
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=120)
    FigureCanvasAgg(figure)
    plot(figure)
    figure.tight_layout()
    kind = path.suffix.lower()[1:]
    metadata = {"Date": None, "Description": source or None} if kind == "svg" else None
    style: Any = {"svg.hashsalt": "kd_search", "svg.fonttype": "none"}
    with matplotlib.rc_context(style), atomic_write(path) as file:
        figure.savefig(file, format=kind, metadata=metadata)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as file:
        file.write(text.encode())
