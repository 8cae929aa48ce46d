"""Calibration of similarities: the threshold above which two detections are the same person.

From annotated pictures that training did not see: similarities of detections of the same and of
different people, thresholds at given rates of false matches, and the share of true matches that
each keeps, with bootstrap intervals over people (Bolle et al., "Error analysis of pattern
recognition systems: the subsets bootstrap", CVIU 2004: comparisons that share a person are not
independent, so that people are resampled, not comparisons).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Optional, Union

import numpy as np

from kd_search.evaluation.search.plot_data import person_of
from kd_search.evaluation.search.predictions import DetectionSet
from kd_search.evaluation.search.protocol import Protocol
from kd_search.evaluation.search.test_set import PreparedSet
from kd_search.evaluation.similarity import round_similarity

#: Share of comparisons of different people that reach a threshold.
FALSE_MATCH_RATES = (1e-2, 1e-3, 1e-4)
#: A rate is reached if it is at least this number of comparisons ("rule of 30", Doddington et al.,
#: Speech Communication 2000: within 30 % at 90 % confidence if comparisons were independent),
MIN_FALSE_MATCHES = 30
#: and if these are between at least this number of pairs of people.
MIN_PAIRS_OF_PEOPLE = 10
#: More detections are thinned, the most frequent people first: all pairs of these are compared.
MAX_DETECTIONS = 4000
_ROC_POINTS = 200
_TAIL = 4


@dataclass
class OperatingPoint:
    """The threshold at a rate of false matches; ends of 95 % intervals as (low, high).

    Attributes:
        false_match_rate: of :data:`FALSE_MATCH_RATES`.
        threshold: the lowest similarity that at most this share of the comparisons of different
            people reaches; None if the data do not reach the rate.
        true_match_rate: share of the comparisons of the same person that reach the threshold.
        reason: why there is no threshold.
    """

    false_match_rate: float
    threshold: Optional[float] = None
    threshold_interval: Optional[tuple[float, float]] = None
    true_match_rate: Optional[float] = None
    true_match_interval: Optional[tuple[float, float]] = None
    reason: str = ""


@dataclass
class Calibration:
    """Similarities of one network on one set of pictures.

    Attributes:
        points: by descending rate.
        same, different: numbers of comparisons, of two detections in different images.
        roc: false match rates ascending, and the true match rate at each.
        dataset: name of the set, if it has one.
    """

    points: list[OperatingPoint]
    num_people: int
    num_detections: int
    same: int
    different: int
    roc: dict[str, list[float]]
    resamples: int
    seed: int
    dataset: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return asdict(self)


@dataclass
class _Comparisons:
    """Comparisons as similarities, descending, with the two people of each by number."""

    similarity: np.ndarray  # (C,)
    first: np.ndarray  # (C,) int32
    second: np.ndarray  # (C,) int32

    def threshold(
        self, rate: float, people: Optional[np.ndarray] = None, total: float = 0.0
    ) -> Optional[float]:
        """The lowest similarity that at most this share of all comparisons reaches, if any.

        Args:
            people: weight of each person; None is 1.
            total: weight of all comparisons, for a resample of people.
        """
        ends = np.flatnonzero(np.diff(self.similarity, append=-np.inf))
        reached = ends + 1.0 if people is None else np.cumsum(self.weights(people))[ends]
        total = total or float(len(self.similarity))
        allowed = np.searchsorted(reached, rate * total * (1 + 1e-12), side="right")
        return float(self.similarity[ends[allowed - 1]]) if allowed else None

    def share(self, threshold: float, weight: Optional[np.ndarray] = None) -> float:
        """(Weighted) share that reaches a threshold; NaN without comparisons."""
        count = len(self.similarity) - np.searchsorted(self.similarity[::-1], threshold)
        if weight is None:
            return float(count / len(self.similarity)) if len(self.similarity) else float("nan")
        weights = self.weights(weight)
        total = weights.sum()
        return float(weights[:count].sum() / total) if total else float("nan")

    def weights(self, people: np.ndarray) -> np.ndarray:
        """Weight of each comparison: that of its person, or the product of those of its two."""
        first = people[self.first]
        weights: np.ndarray = np.where(
            self.first == self.second, first, first * people[self.second]
        )
        return weights

    def part(self, chosen: Union[np.ndarray, slice]) -> "_Comparisons":
        return _Comparisons(self.similarity[chosen], self.first[chosen], self.second[chosen])


def calibrate(
    embeddings: np.ndarray,
    person_ids: np.ndarray,
    image_ids: np.ndarray,
    *,
    rates: Sequence[float] = FALSE_MATCH_RATES,
    resamples: int = 1000,
    seed: int = 0,
    dataset: str = "",
) -> Calibration:
    """Find the thresholds of similarity at given rates of false matches.

    All detections in different images are compared with each other.

    Args:
        embeddings: (N, D) unit length.
        person_ids: (N,) of the annotated person of each.
        image_ids: (N,) number of its image.
        rates: of false matches.
        resamples, seed: of the intervals over people.
        dataset: written into the result.

    Raises:
        ValueError: there is no comparison of the same, or of different people.
    """
    keep = _thinned(person_ids, MAX_DETECTIONS)
    people, number = np.unique(person_ids[keep], return_inverse=True)
    pairs = _compare(embeddings[keep], number.astype(np.int32), image_ids[keep])
    same = pairs.first == pairs.second
    own, other = pairs.part(same), pairs.part(~same)
    if not len(own.similarity) or not len(other.similarity):
        raise ValueError(
            f"{len(keep)} detections of {len(people)} people in different images: "
            f"{len(own.similarity)} comparisons of the same and {len(other.similarity)} of "
            "different people; calibration needs both"
        )
    points = [_point(own, other, rate) for rate in sorted(rates, reverse=True)]
    _add_intervals(points, own, other, len(people), resamples, seed)
    return Calibration(
        points=points,
        num_people=len(people),
        num_detections=len(keep),
        same=len(own.similarity),
        different=len(other.similarity),
        roc=_roc(own, other),
        resamples=resamples,
        seed=seed,
        dataset=dataset,
    )


def detections_of_people(
    data: PreparedSet, detections: DetectionSet, protocol: Protocol
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings (N, D), person ids (N,) and image numbers (N,) for :func:`calibrate`.

    A detection is of the person whose annotated box it overlaps most, with IoU of at least
    ``protocol.iou_thresh``; other detections, and those of people without identity, are left out.
    """
    flat = data.flatten(detections)
    flat = flat.select(flat.scores >= protocol.score_thresh)
    person = person_of(flat, data, protocol.iou_thresh)
    flat, person = flat.select(person >= 0), person[person >= 0]
    assert flat.embeddings is not None  # of a DetectionSet
    return flat.embeddings, person, flat.image_index


@dataclass
class OtherHalf:
    """What a threshold found on half of the people does on the other half.

    Attributes:
        threshold: of the first half, for ``false_match_rate``.
        realised: share of the comparisons of different people of the other half that reach it.
        realised_interval: 95 % interval of that share over the people of the other half.
    """

    false_match_rate: float
    threshold: float
    realised: float
    realised_interval: tuple[float, float]


def check_on_other_half(
    embeddings: np.ndarray,
    person_ids: np.ndarray,
    image_ids: np.ndarray,
    *,
    rates: Sequence[float] = FALSE_MATCH_RATES,
    resamples: int = 1000,
    seed: int = 0,
) -> list[OtherHalf]:
    """Find thresholds on a random half of the people, and count false matches on the others.

    Rates that the first half does not reach are left out. Arguments as of :func:`calibrate`.
    """
    people = np.random.default_rng(seed).permutation(np.unique(person_ids))
    first = np.isin(person_ids, people[: len(people) // 2])
    found = calibrate(
        embeddings[first], person_ids[first], image_ids[first], rates=rates, resamples=0
    )
    keep = np.flatnonzero(~first)
    keep = keep[_thinned(person_ids[keep], MAX_DETECTIONS)]
    others, number = np.unique(person_ids[keep], return_inverse=True)
    pairs = _compare(embeddings[keep], number.astype(np.int32), image_ids[keep])
    pairs = pairs.part(pairs.first != pairs.second)
    rng, results = np.random.default_rng(seed), []
    weights = [_draw_people(rng, len(others)) for _ in range(resamples)]
    for point in found.points:
        if point.threshold is not None:
            shares = np.array([pairs.share(point.threshold, weight) for weight in weights])
            results.append(
                OtherHalf(
                    point.false_match_rate,
                    point.threshold,
                    pairs.share(point.threshold),
                    _ends(shares[~np.isnan(shares)]),
                )
            )
    return results


def _draw_people(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count,) number of times that a resample, with replacement, holds each person."""
    drawn = rng.integers(count, size=count)
    return np.bincount(drawn, minlength=count).astype(np.float64)


def _thinned(person_ids: np.ndarray, limit: int) -> np.ndarray:
    """Rows of at most so many detections, at equal steps within each person."""
    _, number, counts = np.unique(person_ids, return_inverse=True, return_counts=True)
    most = int(counts.max(initial=1))
    while most > 1 and np.minimum(counts, most).sum() > limit:
        most -= 1
    order = np.argsort(number, kind="stable")
    starts = np.cumsum(counts) - counts
    steps = [
        start + np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))
        for start, count in zip(starts, counts)
    ]
    return np.sort(order[np.concatenate(steps)]) if steps else order


def _compare(embeddings: np.ndarray, people: np.ndarray, images: np.ndarray) -> _Comparisons:
    rows, columns = np.triu_indices(len(embeddings), 1)
    apart = images[rows] != images[columns]
    rows, columns = rows[apart], columns[apart]
    vectors = embeddings.astype(np.float64)
    values = round_similarity(vectors @ vectors.T)[rows, columns]
    order = np.argsort(-values, kind="stable")
    return _Comparisons(values[order], people[rows[order]], people[columns[order]])


def _point(own: _Comparisons, other: _Comparisons, rate: float) -> OperatingPoint:
    expected = rate * len(other.similarity)
    threshold = other.threshold(rate)
    if expected < MIN_FALSE_MATCHES or threshold is None:
        reason = (
            f"{len(other.similarity):,} comparisons of different people; "
            f"{MIN_FALSE_MATCHES / rate:,.0f} are needed"
        )
        return OperatingPoint(rate, reason=reason)
    above = len(other.similarity) - np.searchsorted(other.similarity[::-1], threshold)
    pairs = np.sort(np.stack([other.first[:above], other.second[:above]]), axis=0)
    count = len(np.unique(pairs, axis=1).T)
    if count < MIN_PAIRS_OF_PEOPLE:
        reason = f"false matches of {count} pairs of people; {MIN_PAIRS_OF_PEOPLE} are needed"
        return OperatingPoint(rate, reason=reason)
    return OperatingPoint(rate, threshold, true_match_rate=own.share(threshold))


def _add_intervals(
    points: Sequence[OperatingPoint],
    own: _Comparisons,
    other: _Comparisons,
    num_people: int,
    resamples: int,
    seed: int,
) -> None:
    known = [point for point in points if point.threshold is not None]
    if not known or not resamples:
        return
    between = np.bincount(
        other.first.astype(np.int64) * num_people + other.second, minlength=num_people**2
    ).reshape(num_people, num_people)
    # No resample has a threshold far below: the rest of the comparisons counts in the total alone.
    tail = other.part(slice(int(_TAIL * points[0].false_match_rate * len(other.similarity)) + 1))
    rng = np.random.default_rng(seed)
    thresholds, kept = np.empty((2, resamples, len(known)))
    for sample in range(resamples):
        weight = _draw_people(rng, num_people)
        total = float(weight @ between @ weight)
        for column, point in enumerate(known):
            rate = point.false_match_rate
            found = tail.threshold(rate, weight, total)
            if found == tail.similarity[-1]:
                found = other.threshold(rate, weight, total)
            # Above all similarities, where a resample has too few comparisons.
            thresholds[sample, column] = np.inf if found is None else found
            kept[sample, column] = own.share(thresholds[sample, column], weight)
    for column, point in enumerate(known):
        point.threshold_interval = _ends(np.minimum(thresholds[:, column], 1.0))
        point.true_match_interval = _ends(kept[~np.isnan(kept[:, column]), column])


def _ends(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _roc(own: _Comparisons, other: _Comparisons) -> dict[str, list[float]]:
    count = len(other.similarity)
    ranks = np.unique(np.geomspace(1, count, min(_ROC_POINTS, count)).round().astype(int))
    thresholds = other.similarity[ranks - 1]
    false = (count - np.searchsorted(other.similarity[::-1], thresholds)) / count
    true = 1 - np.searchsorted(own.similarity[::-1], thresholds) / len(own.similarity)
    return {"false_match_rate": false.tolist(), "true_match_rate": true.tolist()}
