"""The report of a distillation experiment: one self-contained HTML file."""

import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, Optional, Union

from kd_search.evaluation.search.compare_runs import verdict
from kd_search.evaluation.search.experiment import (
    DISTILLED,
    PLAIN,
    TEACHER,
    ModelComparison,
    TrainedModel,
    compare_models,
    comparisons_of,
    share_of_gap,
)

from . import page
from .curves import draw_loss_curves, loss_terms, read_metrics
from .deployment import Deployment, deployment_section
from .drawing import write_file
from .results_page import rankings_section
from .search_results import CHOICE, choose_queries

#: Largest interquartile range of the latencies, as a share of their median. Beyond it they depend
#: more on the load of the machine than on the model.
STABLE_SPREAD = 0.25

#: Task and name of a metric, its heading, and whether it has an interval over the queries.
_COLUMNS = (
    ("person_search", "mAP", "mAP", True),
    ("person_search", "top1", "top-1", True),
    ("person_search", "top5", "top-5", False),
    ("person_search", "top10", "top-10", False),
    ("detection", "AP", "detection AP", False),
    ("detection", "recall", "detection recall", False),
)


def write_report(
    path: Union[str, "os.PathLike[str]"],
    title: str,
    models: Sequence[TrainedModel],
    dataset_dicts: Sequence[Mapping[str, Any]],
    *,
    intro: str = "",
    settings: Optional[Mapping[str, Any]] = None,
    seconds: Optional[Mapping[str, float]] = None,
    deployment: Optional[Deployment] = None,
    shown_queries: int = 6,
    top_k: int = 5,
) -> None:
    """Write the report of models that were trained and evaluated on one test set.

    Every number comes from the models' evaluations; differences come with their 95 % intervals
    over the queries and p values. Rankings are those of the first run of each model.

    Args:
        path: HTML file; readers see the old one or the whole new one.
        title: plain text, as all text here.
        models: in the order of the tables, each at least once evaluated; usually a teacher, a
            plain student and distilled ones. Training logs that do not exist are named in the
            report.
        dataset_dicts: of the test set.
        intro: a paragraph under the title.
        settings: what the numbers depend on: data set, schedule, hardware, versions.
        seconds: step of the experiment to its duration.
        deployment: exported files of the last model.
        shown_queries: number of queries whose rankings are shown, chosen by
            :func:`choose_queries` from the results of the last model.
        top_k: results of each query; the evaluator saves ten.

    Raises:
        ValueError: there is no model, two have the same name, or the models were not evaluated on
            the same queries of these data.
    """
    names = [model.name for model in models]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"models must have different names, and there must be one: {names}")
    comparisons = comparisons_of(models)
    results = {model.name: model.runs[0].results["queries"] for model in models}
    chosen = choose_queries(results[names[-1]], shown_queries)
    note = f"{CHOICE} The average precision is that of “{names[-1]}”."
    if any(len(model.runs) > 1 for model in models):
        note += " The rankings of each model are those of its first seed."
    sections = [
        f"<header><h1>{escape(title)}</h1>{page.paragraph(intro, 'lead faint') if intro else ''}"
        "</header>\n",
        _results_section(models, comparisons, dataset_dicts),
        _comparisons_section(comparisons) if comparisons else "",
        rankings_section(results, dataset_dicts, chosen, top_k, note=note)
        if chosen
        else page.section("Search results", page.paragraph("No query has a match.", "faint")),
        deployment_section(deployment) if deployment else "",
        _curves_section(models),
        _settings_section(settings or {}, seconds or {}),
    ]
    write_file(str(path), page.page(title, sections).encode("utf-8"))


def findings(
    models: Sequence[TrainedModel], comparisons: Optional[Sequence[ModelComparison]] = None
) -> list[str]:
    """What an experiment showed, in plain sentences, with intervals and what is not known.

    Args:
        models: see :func:`write_report`.
        comparisons: of :func:`comparisons_of`, if they were made before.
    """
    comparisons = comparisons_of(models) if comparisons is None else comparisons
    sentences = [comparison_statement(c) for c in comparisons if c.model.role == DISTILLED]
    teacher, plain = (next((m for m in models if m.role == r), None) for r in (TEACHER, PLAIN))
    if teacher is not None and plain is not None:
        taught = [model for model in models if model.role == DISTILLED]
        sentences += [gap_statement(teacher, plain, model) for model in taught]
    sentences.append(seeds_statement(models))
    return sentences


def comparison_statement(comparison: ModelComparison) -> str:
    """Whether two models differ by more than chance, over the queries and over the seeds."""
    text = verdict(comparison.result, (comparison.baseline.name, comparison.model.name))
    if len(comparison.by_seed) > 1:
        own = comparison.differences
        each = ", ".join(f"{value:+.2f} (seed {s})" for s, value in zip(comparison.by_seed, own))
        text += (
            f" By seed: {each}; mean {statistics.fmean(own):+.2f}, standard deviation "
            f"{statistics.stdev(own):.2f}."
        )
    return text


def gap_statement(teacher: TrainedModel, plain: TrainedModel, distilled: TrainedModel) -> str:
    """The share of the gap in mAP to the teacher that distillation closes, where that is known."""
    gap = compare_models(plain, teacher).result.difference
    interval = f"{gap.mean:+.2f} mAP, 95 % interval {gap.low:+.2f} to {gap.high:+.2f}"
    share = share_of_gap(teacher, plain, distilled)
    if share is None and gap.mean <= 0:
        return (
            f"There is no gap that {distilled.name} could close: {teacher.name} is not better than "
            f"{plain.name} ({interval}). Train the teacher longer, or take a better one."
        )
    if share is None:
        return (
            f"The share of the gap between {plain.name} and {teacher.name} that {distilled.name} "
            f"closes is not stated: the gap itself is not clear ({interval})."
        )
    return (
        f"{distilled.name} closes {share.mean:.0f} % of the gap between {plain.name} and "
        f"{teacher.name} (95 % interval {share.low:.0f} to {share.high:.0f} %; the gap is "
        f"{interval})."
    )


def seeds_statement(models: Sequence[TrainedModel]) -> str:
    """How many trainings the numbers rest on."""
    seeds = {model.name: sorted(model.seeds) for model in models}
    several = {name: own for name, own in seeds.items() if len(own) > 1}
    if not several:
        every = sorted({seed for own in seeds.values() for seed in own})
        which = f"seed {every[0]}" if len(every) == 1 else f"seeds {', '.join(map(str, every))}"
        return f"One training per model ({which}): the spread over seeds is unknown."
    text = "; ".join(
        f"{name}: {'seeds' if len(own) > 1 else 'seed'} {', '.join(map(str, own))}"
        for name, own in seeds.items()
    )
    return f"Trainings: {text}."


def latency_statement(models: Sequence[TrainedModel]) -> str:
    """A warning about unstable latencies; empty if there are none."""
    spreads = {
        model.name: (model.latency_ms[2] - model.latency_ms[0]) / model.latency_ms[1]
        for model in models
        if model.latency_ms is not None
    }
    unstable = [f"{name} {100 * s:.0f} %" for name, s in spreads.items() if s > STABLE_SPREAD]
    if not unstable:
        return ""
    return (
        f"The latencies are not stable: the middle half spreads over {', '.join(unstable)} of the "
        f"median, and {100 * STABLE_SPREAD:.0f} % is the limit. Other programs ran at the same "
        "time; measure again on an idle machine before you compare them."
    )


def data_statement(results: Mapping[str, Any], dataset_dicts: Sequence[Mapping[str, Any]]) -> str:
    """The size of the test set: pictures, people, queries."""
    gallery = sum(record.get("in_gallery", True) for record in dataset_dicts)
    people = {
        annotation["person_id"]
        for record in dataset_dicts
        for annotation in record["annotations"]
        if annotation["person_id"] >= 0
    }
    queries = results["queries"]
    wanted = {row.get("person_id") for row in queries}
    without = sum(row["AP"] is None for row in queries)
    text = (
        f"Test set {results.get('dataset') or 'without a name'}: {len(dataset_dicts):,} pictures "
        f"({gallery:,} in the gallery), {len(people):,} people with an identity, "
        f"{len(queries) - without:,} queries of {len(wanted):,} people."
    )
    if without:
        text += f" {without:,} more queries have no gallery, or no match in it, and do not count."
    return text


def _results_section(models, comparisons: Sequence[ModelComparison], dataset_dicts) -> str:
    columns = [c for c in _COLUMNS if any(model.values(c[1], c[0]) for model in models)]
    heads = ["Model", *(heading for *_, heading, _ in columns), "parameters", "latency"]
    rows, bars = [], ""
    for model in models:
        cells = [_metric(model, task, name, sampled) for task, name, _, sampled in columns]
        cells += [_millions(model.params), _milliseconds(model.latency_ms)]
        strong = model.role == DISTILLED
        rows.append((model.name, cells, strong))
        bars += _bar(model.name, model.mean("mAP"), strong)
    several = any(len(model.runs) > 1 for model in models)
    spread = " Several seeds: mean ± standard deviation." if several else ""
    return page.section(
        "Result",
        page.item_list(findings(models, comparisons)),
        page.paragraph(data_statement(models[0].runs[0].results, dataset_dicts)),
        f'<div class="bars"><span class="faint">mAP, percent</span><span></span>\n{bars}</div>\n',
        page.table_of_cells(heads, rows, "Results of the models"),
        page.paragraph(
            f"Search mAP and top-k accuracy, detection AP and recall, in percent.{spread} Small: "
            "95 % bootstrap interval over the queries. Latency: one image, median, and small the "
            "first to third quartile.",
            "note",
        ),
        page.paragraph(unstable, "warning") if (unstable := latency_statement(models)) else "",
    )


def _comparisons_section(comparisons: Sequence[ModelComparison]) -> str:
    rows = []
    for comparison in comparisons:
        result, difference = comparison.result, comparison.result.difference
        by_seed = ", ".join(f"{value:+.2f}" for value in comparison.differences)
        rows.append(
            [
                f"{comparison.model.name} − {comparison.baseline.name}",
                f"{difference.mean:+.2f}",
                f"{difference.low:+.2f} to {difference.high:+.2f}",
                f"{result.p_value:.4f}",
                _verdict(comparison),
                f"{result.num_different:,} of {result.num_queries:,}",
                by_seed if len(comparison.by_seed) > 1 else "one seed",
            ]
        )
    heads = ("Difference in mAP", "mean", "95 % interval", "p", "verdict", "queries that differ")
    return page.section(
        "Comparisons",
        page.table([*heads, "by seed"], rows, "Comparisons of the models"),
        page.paragraph(
            "Average precision of every query, one model minus the other. The interval is over "
            "resamples of the queries (bootstrap); p is the share of random swaps of the models "
            "per query that give a mean difference as large (paired permutation test, two-sided). "
            "Both describe the choice of the queries, not the variation between trainings.",
            "note",
        ),
    )


def _verdict(comparison: ModelComparison) -> str:
    if not comparison.result.num_different:
        return "the same"
    return "clear" if comparison.is_clear else "could be chance"


def _curves_section(models: Sequence[TrainedModel]) -> str:
    logs, missing = {}, []
    for label, log in _logs(models):
        try:
            logs[label] = read_metrics(log)
        except OSError:
            missing.append(f"{label} ({log})")
    figures = ""
    for term in loss_terms(logs):
        light, dark = (draw_loss_curves(logs, [term], dark=dark) for dark in (False, True))
        logged = [name for name, log in logs.items() if any(term in row for row in log.values())]
        alt = f"{term} over the iterations of {', '.join(logged)}"
        figures += f"<figure>{page.drawing(light, alt, dark)}</figure>\n"
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


def _logs(models: Sequence[TrainedModel]) -> Iterator[tuple[str, Any]]:
    for model in models:
        for run in model.runs:
            if run.log is not None:
                several = len(model.runs) > 1
                yield f"{model.name}, seed {run.seed}" if several else model.name, run.log


def _settings_section(settings: Mapping[str, Any], seconds: Mapping[str, float]) -> str:
    parts = [page.table(("Setting", "Value"), list(settings.items()), "Settings")]
    if seconds:
        rows = [(step, page.number(value)) for step, value in seconds.items()]
        total = page.number(sum(seconds.values()))
        parts.append(page.table(("Step", "Seconds"), [*rows, ("total", total)], "Durations"))
    return page.section("Settings", f'<div class="pair">\n{"".join(parts)}</div>\n')


def _metric(model: TrainedModel, task: str, name: str, sampled: bool) -> str:
    values = model.values(name, task)
    cell = page.number(model.mean(name, task))
    if len(values) > 1:
        cell += f" ± {page.number(statistics.stdev(values))}"
    ends = model.interval(name) if sampled else None
    if ends is not None:
        cell += f"<small>{page.number(ends[0])} to {page.number(ends[1])}</small>"
    return cell


def _bar(name: str, value: Optional[float], strong: bool) -> str:
    width = min(max(value or 0.0, 0.0), 100.0)
    style = ' class="strong"' if strong else ""
    return (
        f"<span>{escape(name)}</span>"
        f'<div{style}><i style="width: {width:.2f}%"></i>{page.number(value)}</div>\n'
    )


def _millions(params: Optional[int]) -> str:
    return "–" if params is None else f"{page.number(params / 1e6, 2)} M"


def _milliseconds(latency: Optional[tuple[float, float, float]]) -> str:
    if latency is None:
        return "–"
    first, median, third = map(page.number, latency)
    return f"{median} ms<small>{first} to {third}</small>"
