"""Contrast of the style sheet's colours, by the formula of WCAG 2.1."""

import itertools
import re

import pytest

from kd_search.visualization.style import COLOURS, GROUNDS, RULES, TEXTS, style_sheet


def luminance(colour):
    """Relative luminance of "#rrggbb" (WCAG 2.1)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def sheet_colours(scheme):
    """Variables as the sheet sets them, which need not be what the tables say."""
    light, dark = re.findall(r":root \{([^}]*)\}", style_sheet())
    values = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", light))
    if scheme == "dark":
        values.update(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", dark))
    return values


def test_contrast_of_black_and_white():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_on_every_ground(scheme):
    colours = sheet_colours(scheme)
    assert colours == COLOURS[scheme]
    for text, ground in itertools.product(TEXTS, GROUNDS):
        ratio = contrast(colours[text], colours[ground])
        assert ratio >= 4.5, f"{text} on {ground}: {ratio:.2f}"
    # What a bar shows is graphics, for which 3 is enough.
    for bar in ("bar", "accent"):
        assert contrast(colours[bar], colours["paper"]) >= 3


def test_rules_use_the_variables_that_were_checked():
    assert not re.search(r"#[0-9a-fA-F]{3}|rgb|hsl", RULES)
    used = set(re.findall(r"[^-]color: var\(--([\w-]+)\)", RULES))
    assert used <= set(TEXTS)
    grounds = set(re.findall(r"background: var\(--([\w-]+)\)", RULES))
    # White lies behind pictures and printed text, and a bar has no text on it.
    assert grounds <= {*GROUNDS, "white", "bar", "accent"}
    assert set(re.findall(r"var\(--([\w-]+)\)", RULES)) <= set(COLOURS["light"])
    assert COLOURS["light"].keys() == COLOURS["dark"].keys()
