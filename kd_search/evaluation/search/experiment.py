"""Models of one experiment, each trained with one seed or more, compared on one test set."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np

from kd_search.evaluation.flat_arrays import AnyPath
from kd_search.evaluation.query_results import (
    Interval,
    PairedComparison,
    bootstrap_intervals,
    resampling_weights,
)
from kd_search.evaluation.search.compare_runs import compare_runs
from kd_search.evaluation.search.protocol import TableOptions

TEACHER, PLAIN, DISTILLED = ROLES = ("teacher", "plain", "distilled")
#: Differences with a larger p value are not called clear.
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class TrainedRun:
    """One training of a model, evaluated."""

    seed: int
    #: Of :func:`.compare_runs.load_results`.
    results: Mapping[str, Any]
    #: ``metrics.json`` of the training.
    log: Optional[AnyPath] = None


@dataclass(frozen=True)
class TrainedModel:
    """A model of an experiment, and its trainings, which differ in the seed alone."""

    name: str
    #: One of :data:`ROLES`. "plain" is the student without distillation.
    role: str
    runs: Sequence[TrainedRun]
    #: Number of parameters.
    params: Optional[int] = None
    #: Milliseconds per image: first quartile, median, third quartile.
    latency_ms: Optional[tuple[float, float, float]] = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"{self.name}: role {self.role!r} is none of {', '.join(ROLES)}")
        if not self.runs or len(set(self.seeds)) < len(self.runs):
            raise ValueError(f"{self.name}: needs runs with different seeds, not {self.seeds}")

    @property
    def seeds(self) -> list[int]:
        """Of the runs, in their order."""
        return [run.seed for run in self.runs]

    def values(self, metric: str, task: str = "person_search") -> list[float]:
        """A metric (percent) of every run that has it."""
        found = (run.results.get("metrics", {}).get(task, {}).get(metric) for run in self.runs)
        return [value for value in found if value is not None]

    def mean(self, metric: str, task: str = "person_search") -> Optional[float]:
        """Mean over the runs; None where none has the metric."""
        values = self.values(metric, task)
        return statistics.fmean(values) if values else None

    def interval(self, metric: str) -> Optional[tuple[float, float]]:
        """Ends of the 95 % bootstrap interval over the queries, of "mAP" or "top1".

        Of one run: as its evaluation stored it. Of several: of the per-query values averaged over
        the runs. None where no query has a match.
        """
        if len(self.runs) == 1:
            stored = self.runs[0].results.get("intervals", {}).get(metric)
            if stored is not None:
                return stored[0], stored[1]
        values = _averaged([_per_query(run.results, metric) for run in self.runs])
        if not values:
            return None
        options = TableOptions()
        column = np.array([list(values.values())]).T
        low, high = bootstrap_intervals(column, options.bootstrap or 1000, options.seed)
        return float(low[0]), float(high[0])


@dataclass(frozen=True)
class ModelComparison:
    """``model`` minus ``baseline``, on the same queries."""

    baseline: TrainedModel
    model: TrainedModel
    #: Of the average precisions, averaged over the runs of each model.
    result: PairedComparison
    #: Seed to the comparison of the runs with that seed, or with a baseline's only run.
    by_seed: Mapping[int, PairedComparison] = field(default_factory=dict)

    @property
    def is_clear(self) -> bool:
        """Whether the difference is hardly chance of the choice of queries."""
        return self.result.p_value < SIGNIFICANCE

    @property
    def differences(self) -> list[float]:
        """Difference in mAP of every seed."""
        return [result.difference.mean for result in self.by_seed.values()]


def compare_models(baseline: TrainedModel, model: TrainedModel) -> ModelComparison:
    """Compare two models query by query, seed by seed and over all their seeds.

    Runs of the same seed make a pair; a model with one run, as a teacher, is compared with every
    run of the other.

    Raises:
        ValueError: no seed is in both, or as of :func:`.compare_runs.compare_runs`.
    """
    pairs = _pairs(baseline, model)
    names = (baseline.name, model.name)
    by_seed = {
        seed: compare_runs(a.results, b.results, names=names) for seed, (a, b) in pairs.items()
    }
    if len(pairs) == 1:
        (result,) = by_seed.values()
    else:
        sides = zip(*((a.results, b.results) for a, b in pairs.values()))
        result = compare_runs(*(_mean_results(side) for side in sides), names=names)
    return ModelComparison(baseline, model, result, by_seed)


def comparisons_of(models: Sequence[TrainedModel]) -> list[ModelComparison]:
    """Every distilled model against the plain student, then every model against the teacher."""
    pairs = [
        (baseline, model)
        for role, compared in ((PLAIN, (DISTILLED,)), (TEACHER, (PLAIN, DISTILLED)))
        for baseline in models
        if baseline.role == role
        for model in models
        if model.role in compared
    ]
    return [compare_models(*pair) for pair in pairs]


def share_of_gap(
    teacher: TrainedModel, plain: TrainedModel, distilled: TrainedModel
) -> Optional[Interval]:
    """Percent of the gap in mAP between student and teacher that distillation closes.

    The 95 % interval is over resamples of the queries, the same for all three models (percentile
    bootstrap of the ratio).

    Returns:
        None where the gap itself is not clear: the teacher is not better than the plain student,
        or the difference could be chance, or the interval has no end.
    """
    gap = compare_models(plain, teacher)
    if not gap.is_clear:
        return None
    gain = compare_models(plain, distilled)
    aps = [
        _averaged([_per_query(run.results, "mAP") for run in model.runs])
        for model in (teacher, plain, distilled)
    ]
    high, low, taught = (np.array([ap[query] for query in aps[0]]) for ap in aps)
    weights = resampling_weights(len(high), 10000, 0).astype(np.float64)
    # Resamples without a gap have no share: they count as the farthest. Where they are more than
    # one in forty, as with a teacher that is worse, the interval has no end.
    gaps, gains = weights @ (high - low), weights @ (taught - low)
    has_gap = gaps > 0
    shares = 100 * gains / np.where(has_gap, gaps, 1)
    shares = np.where(has_gap, shares, np.copysign(np.inf, gains))
    ends = np.percentile(shares, [2.5, 97.5], method="nearest")
    if not np.isfinite(ends).all():
        return None
    share = 100 * gain.result.difference.mean / gap.result.difference.mean
    return Interval(share, float(ends[0]), float(ends[1]))


def _pairs(a: TrainedModel, b: TrainedModel) -> dict[int, tuple[TrainedRun, TrainedRun]]:
    if len(a.runs) == 1:
        return {run.seed: (a.runs[0], run) for run in b.runs}
    if len(b.runs) == 1:
        return {run.seed: (run, b.runs[0]) for run in a.runs}
    others = {run.seed: run for run in b.runs}
    pairs = {run.seed: (run, others[run.seed]) for run in a.runs if run.seed in others}
    if not pairs:
        raise ValueError(f"{a.name} (seeds {a.seeds}) and {b.name} ({b.seeds}) share no seed")
    return pairs


def _per_query(results: Mapping[str, Any], metric: str) -> dict[int, float]:
    """Percent of every query that has a match in the gallery."""
    rows = (row for row in results["queries"] if row["AP"] is not None)
    if metric == "mAP":
        return {row["query_id"]: row["AP"] for row in rows}
    k = int(metric.removeprefix("top"))
    return {row["query_id"]: 100.0 * (0 < (row["first_hit_rank"] or 0) <= k) for row in rows}


def _averaged(runs: Sequence[Mapping[int, float]]) -> dict[int, float]:
    return {query: statistics.fmean(run[query] for run in runs) for query in runs[0]}


def _mean_results(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The first document with the average precisions averaged over all."""
    aps = _averaged([_per_query(run, "mAP") for run in runs])
    rows = [{**row, "AP": aps.get(row["query_id"])} for row in runs[0]["queries"]]
    return {**runs[0], "queries": rows}
