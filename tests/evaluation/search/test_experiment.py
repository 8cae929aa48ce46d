"""Models compared over queries and seeds, against slow references in plain Python."""

import math
import statistics

import numpy as np
import pytest

from kd_search.evaluation.search.compare_runs import compare_runs
from kd_search.evaluation.search.experiment import (
    TrainedModel,
    TrainedRun,
    compare_models,
    comparisons_of,
    share_of_gap,
)

QUERIES = 15
BASE = np.random.default_rng(0).uniform(20, 60, QUERIES)
NOISE = np.random.default_rng(1).normal(0, 4, QUERIES)


def results(aps, ranks=None, intervals=None):
    rows = [
        {
            "query_id": i,
            "AP": None if math.isnan(ap) else float(ap),
            "first_hit_rank": None if ranks is None else ranks[i],
            "num_gt": 0 if math.isnan(ap) else 1,
        }
        for i, ap in enumerate(aps)
    ]
    rated = [ap for ap in aps if not math.isnan(ap)]
    mean_ap = float(np.mean(rated)) if rated else None
    metrics = {"person_search": {"mAP": mean_ap}, "detection": {"AP": None}}
    return {"metrics": metrics, "intervals": intervals or {}, "queries": rows}


def model(role, *aps, seeds=None, name=None):
    runs = [TrainedRun(s, results(a)) for s, a in zip(seeds or range(1, 9), aps)]
    return TrainedModel(name or role, role, runs)


def bootstrap(values, resamples):
    """Ends of the percentile interval of a mean, by one resample after the other."""
    rng = np.random.default_rng(0)
    means = []
    for _ in range(resamples):
        drawn = rng.integers(len(values), size=len(values))
        means.append(statistics.fmean(float(values[i]) for i in drawn))
    return np.percentile(means, [2.5, 97.5])


def test_metrics_are_means_over_the_runs_that_have_them():
    student = model("plain", BASE, BASE + 3)
    assert student.values("mAP") == [np.mean(BASE), np.mean(BASE + 3)]
    assert student.mean("mAP") == pytest.approx(np.mean(BASE) + 1.5)
    assert student.mean("AP", "detection") is None and student.values("top1") == []


def test_interval_is_that_of_the_evaluation_or_made_from_its_queries():
    stored = TrainedModel("m", "plain", [TrainedRun(1, results(BASE, intervals={"mAP": [1, 2]}))])
    assert stored.interval("mAP") == (1, 2)
    ours = model("plain", np.append(BASE, math.nan))
    assert ours.interval("mAP") == pytest.approx(tuple(bootstrap(BASE, 1000)), rel=1e-6)
    # Of several runs: of the means of each query.
    aps = (BASE, BASE + 2 * NOISE)
    runs = [TrainedRun(i, results(ap, intervals={"mAP": [1, 2]})) for i, ap in enumerate(aps)]
    both = TrainedModel("m", "plain", runs)
    assert both.interval("mAP") == pytest.approx(tuple(bootstrap(BASE + NOISE, 1000)), rel=1e-6)


def test_interval_of_top_1_counts_the_first_ranks():
    ranks = [1, 2, None, *[1] * (QUERIES - 3)]
    ours = TrainedModel("m", "plain", [TrainedRun(1, results(BASE, ranks))])
    hits = np.array([100.0 * (rank == 1) for rank in ranks])
    assert ours.interval("top1") == pytest.approx(tuple(bootstrap(hits, 1000)), rel=1e-6)
    nothing = TrainedModel("m", "plain", [TrainedRun(1, results([math.nan]))])
    assert nothing.interval("mAP") is None


def test_one_run_each_is_compared_as_the_runs_are():
    plain, ours = model("plain", BASE), model("distilled", BASE + 5 + NOISE)
    found = compare_models(plain, ours)
    assert found.result == compare_runs(plain.runs[0].results, ours.runs[0].results)
    assert found.is_clear == (found.result.p_value < 0.05)
    assert found.by_seed == {1: found.result}


def test_seeds_are_paired_by_number_and_averaged_per_query():
    plain = model("plain", BASE, BASE + 1, BASE + 7, seeds=[1, 2, 3])
    ours = model("distilled", BASE + 9, BASE + 2 + NOISE, seeds=[3, 1])
    found = compare_models(plain, ours)
    assert sorted(found.by_seed) == [1, 3]
    assert found.by_seed[3].difference.mean == pytest.approx(2)
    assert found.by_seed[1].difference.mean == pytest.approx(2 + NOISE.mean())
    assert found.differences == [c.difference.mean for c in found.by_seed.values()]
    difference = ((2 + NOISE) + 2) / 2
    assert found.result.difference.mean == pytest.approx(difference.mean())
    ends = bootstrap(difference, 10000)
    assert (found.result.difference.low, found.result.difference.high) == pytest.approx(
        tuple(ends), rel=1e-5
    )


def test_a_single_teacher_is_compared_with_every_seed():
    teacher = model("teacher", BASE + 20, seeds=[7])
    ours = model("distilled", BASE, BASE + 4, seeds=[1, 2])
    assert compare_models(teacher, ours).differences == pytest.approx([-20, -16])
    assert compare_models(ours, teacher).differences == pytest.approx([20, 16])


def test_models_without_a_common_seed_are_refused():
    one = model("plain", BASE, BASE, seeds=[1, 2])
    other = model("distilled", BASE, BASE, seeds=[3, 4])
    with pytest.raises(ValueError, match="share no seed"):
        compare_models(one, other)


def test_comparisons_are_against_the_plain_student_then_the_teacher():
    models = [model(role, BASE) for role in ("teacher", "plain")]
    models += [model("distilled", BASE, name=name) for name in ("a", "b")]
    pairs = [(c.model.name, c.baseline.name) for c in comparisons_of(models)]
    assert pairs == [
        *(("a", "plain"), ("b", "plain")),
        *(("plain", "teacher"), ("a", "teacher"), ("b", "teacher")),
    ]


def test_share_of_the_gap_and_its_interval():
    teacher, plain = model("teacher", BASE + 20 - NOISE), model("plain", BASE)
    ours = model("distilled", BASE + 8 + NOISE)
    share = share_of_gap(teacher, plain, ours)
    gain, gap = 8 + NOISE, 20 - NOISE
    assert share.mean == pytest.approx(100 * gain.mean() / gap.mean())
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(10000):
        drawn = rng.integers(QUERIES, size=QUERIES)
        shares.append(100 * math.fsum(gain[drawn]) / math.fsum(gap[drawn]))
    ends = np.percentile(shares, [2.5, 97.5], method="nearest")
    assert (share.low, share.high) == pytest.approx(tuple(ends), rel=1e-6)


@pytest.mark.parametrize("gap", [-20 + NOISE, 0.1 + NOISE - NOISE.mean()])
def test_share_of_a_gap_that_is_not_clear_is_not_stated(gap):
    plain, ours = model("plain", BASE), model("distilled", BASE + 8)
    assert share_of_gap(model("teacher", BASE + gap), plain, ours) is None


@pytest.mark.parametrize("role, seeds", [("pupil", [1]), ("plain", [1, 1]), ("plain", [])])
def test_unknown_roles_and_repeated_seeds_are_refused(role, seeds):
    with pytest.raises(ValueError, match="^m: "):
        TrainedModel("m", role, [TrainedRun(seed, results(BASE)) for seed in seeds])
