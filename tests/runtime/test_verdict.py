"""Verdicts on similarities."""

import pytest

from kd_search.runtime.verdict import verdict


def calibrated(*thresholds):
    rates = (1e-2, 1e-3, 1e-4)
    return {"points": [{"false_match_rate": r, "threshold": t} for r, t in zip(rates, thresholds)]}


@pytest.mark.parametrize(
    ("thresholds", "words"),
    [
        ((0.3, 0.5, 0.7), ("unlikely", "unsure", "unsure", "likely")),
        ((0.3, 0.5, None), ("unlikely", "unsure", "likely", "likely")),
        ((0.3, None, None), ("unlikely", "unsure", "unsure", "unsure")),
        ((None, None, None), ("not calibrated",) * 4),
    ],
)
def test_verdicts_by_what_the_data_reached(thresholds, words):
    assert tuple(verdict(calibrated(*thresholds), s) for s in (0.2, 0.3, 0.5, 0.7)) == words


def test_without_a_calibration():
    assert verdict(None, 0.9) == "not calibrated"
