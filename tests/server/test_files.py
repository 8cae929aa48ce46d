"""The files of the page: colours, nothing from elsewhere, nothing inside of the page that runs."""

import re

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from kd_search.server.serving import files
from kd_search.visualization.style import COLOURS, GROUNDS, TEXTS

TEXT = {path: content.decode() for path, (content, _) in files().items()}
SHEETS = "\n".join(text for path, text in TEXT.items() if path in ("/page.css", "/viewer.css"))
SCRIPTS = {path: text for path, text in TEXT.items() if path.endswith(".js")}


def test_sheets_use_the_colours_whose_contrast_was_checked():
    rules = re.sub(r"/\*.*?\*/", "", SHEETS, flags=re.DOTALL)
    assert not re.search(r":[^;{}]*(#[0-9a-fA-F]{3}|rgb|hsl)", rules)
    used = set(re.findall(r"(?<![-\w])color: ([^;}]+?)\s*[;}]", rules))
    # Paper on the ground of the accent is the contrast of the accent on paper.
    assert used <= {*(f"var(--{name})" for name in TEXTS), "var(--paper)", "inherit"}
    for rule in re.findall(r"[^{}]*\{[^{}]*\}", rules):
        if re.search(r"(?<![-\w])color: var\(--paper\)", rule):
            assert "background: var(--accent)" in rule
    grounds = set(re.findall(r"background: var\(--([\w-]+)\)", rules))
    # Bars, lines, placeholders of pictures and the shade behind a dialog have no text on them.
    assert grounds <= {*GROUNDS, "accent", "bar", "line", "ink"}
    assert set(re.findall(r"var\(--([\w-]+)\)", rules)) <= {*COLOURS["light"], "ratio"}
    assert TEXT["/colours.css"].count("--ink: ") == 2


def test_nothing_comes_from_elsewhere():
    for path, text in TEXT.items():
        found = re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", text)
        # Names of XML, which nothing is loaded from.
        assert {name for name in found if "www.w3.org" not in name} == set(), path
    for script in SCRIPTS.values():
        for name in re.findall(r'from "([^"]+)"', script):
            assert name.startswith("./") and name[1:] in TEXT


def test_the_page_has_no_script_and_no_style_inside():
    page = TEXT["/"]
    assert re.findall(r"<script[^>]*>(.*?)</script>", page) == [""]
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", page)
    for name in re.findall(r'(?:src|href)="([^"#]+)"', page):
        assert f"/{name}" in TEXT
    for path, script in SCRIPTS.items():
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script
        ), path


def test_scripts_and_page_agree_on_ids():
    ids = re.findall(r'\sid="([^"]+)"', TEXT["/"])
    assert len(ids) == len(set(ids))
    named = {name for text in SCRIPTS.values() for name in re.findall(r'\$\("([\w-]+)"\)', text)}
    assert named <= set(ids) and {"results", "viewer"} < named
    for label in re.findall(r'aria-labelledby="([^"]+)"', TEXT["/"]):
        assert label in ids
