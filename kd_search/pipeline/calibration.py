"""Calibration of a network's similarities on a set of annotated pictures, in numbers and words."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Optional

from kd_search.evaluation.search.calibration import (
    Calibration,
    OtherHalf,
    calibrate,
    check_on_other_half,
    detections_of_people,
)
from kd_search.evaluation.search.predictions import DetectionSet
from kd_search.evaluation.search.protocol import Protocol
from kd_search.evaluation.search.test_set import PreparedSet


def calibrate_set(
    detections: DetectionSet,
    dicts: Sequence[Mapping[str, Any]],
    dataset: str,
    *,
    score_thresh: float = 0.5,
    iou_thresh: float = 0.5,
    halves: int = 0,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[Calibration, list[list[OtherHalf]]]:
    """Thresholds of the detections of a set.

    Args:
        detections: of the network.
        dicts: of the set.
        dataset: its name.
        score_thresh, iou_thresh: see :func:`.calibration.detections_of_people`.
        halves: how often thresholds of half of the people are checked on the others.
        resamples, seed: of the intervals over people.

    Returns:
        The calibration, and for each pair of halves the rates that the first one reaches.

    Raises:
        ValueError: there is nothing to compare.
    """
    protocol = Protocol(score_thresh=score_thresh, iou_thresh=iou_thresh)
    people = detections_of_people(PreparedSet(detections, dicts, {}, ()), detections, protocol)
    result = calibrate(*people, dataset=dataset, resamples=resamples, seed=seed)
    checked = [
        check_on_other_half(*people, resamples=resamples, seed=seed + half)
        for half in range(halves)
    ]
    return result, checked


def calibration_document(
    result: Calibration, score_thresh: float, halves: Sequence[Sequence[OtherHalf]] = ()
) -> dict[str, Any]:
    """A calibration for a manifest or a file of JSON."""
    document = {**result.to_dict(), "score_thresh": score_thresh}
    if halves:
        document["halves"] = [[asdict(found) for found in half] for half in halves]
    return document


def describe(result: Calibration, halves: Sequence[Sequence[OtherHalf]] = ()) -> list[str]:
    """A calibration as lines of text."""
    lines = [
        f"{result.dataset}: {result.num_detections} detections of {result.num_people} people; "
        f"comparisons: {result.same:,} of the same, {result.different:,} of different people"
    ]
    for point in result.points:
        rate = f"1 false match in {round(1 / point.false_match_rate):,}"
        if point.threshold is None:
            lines.append(f"  {rate}: no threshold: {point.reason}")
            continue
        lines.append(
            f"  {rate}: similarity {point.threshold:.3f}{_interval(point.threshold_interval, 1)}, "
            f"keeps {100 * (point.true_match_rate or 0):.1f} % of the true matches"
            f"{_interval(point.true_match_interval, 100)}"
        )
    for number, half in enumerate(halves, start=1):
        lines += [f"  half {number}: {describe_half(found)}" for found in half]
    return lines


def describe_half(found: OtherHalf) -> str:
    """What a threshold of half of the people does on the others, as a line of text."""
    low, high = (1e4 * end for end in found.realised_interval)
    kept = "holds" if low <= 1e4 * found.false_match_rate <= high else "does not hold"
    return (
        f"{1e4 * found.false_match_rate:g} in 10,000 at {found.threshold:.3f}: on the others "
        f"{1e4 * found.realised:.1f} ({low:.1f} to {high:.1f}), {kept}"
    )


def _interval(ends: Optional[tuple[float, float]], factor: float) -> str:
    if ends is None:
        return ""
    digits = 3 if factor == 1 else 1
    return f" ({factor * ends[0]:.{digits}f} to {factor * ends[1]:.{digits}f})"
