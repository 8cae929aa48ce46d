"""Bars of means: their lengths, and the line they are compared with."""

import numpy as np
import pytest
from bars import _BAR, _REFERENCE, draw_bars


def painted(picture, colour):
    """Rows and columns of the pixels of a colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return np.nonzero((np.abs(picture.astype(int) - wanted) <= 2).all(axis=2))


def test_bars_are_as_long_as_their_means():
    picture = draw_bars({"teacher": [80.0, 90.0], "student": [42.5]}, "accuracy (%)", "Title")
    ys, xs = painted(picture, _BAR)
    lengths = {y: np.ptp(xs[ys == y]) + 1 for y in np.unique(ys)}
    upper, lower = max(lengths.values()), np.median([lengths[y] for y in lengths if y > ys.mean()])
    assert lower / upper == pytest.approx(0.5, abs=0.02)
    assert not len(painted(picture, _REFERENCE)[0])


def test_reference_is_a_line():
    picture = draw_bars({"a": [60.0]}, "x", "Title", reference=("chance", 30.0))
    ys, xs = painted(picture, _REFERENCE)
    bar = painted(picture, _BAR)[1]
    line = np.bincount(xs).argmax()
    assert (line - bar.min()) / np.ptp(bar) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("values", [{}, {"a": [1.0], "b": []}])
def test_nothing_to_draw_is_told(values):
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_bars(values, "x", "Title")
