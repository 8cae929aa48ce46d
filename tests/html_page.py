"""An HTML parser that refuses pages with a wrong structure."""

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "source", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """What a page holds, after checks that hold for all pages.

    Tags match; the language is set; there is one h1 and no level of headings is skipped; images
    have alternative texts and sizes; header cells have a scope; regions that scroll can be reached
    with the keyboard and have a name; nothing is loaded from elsewhere, and there is no script.
    """

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.rows, self.headings = [], [], [], []
        self._open = []
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {self._open}"
        assert not re.search(r"https?:|[\"'(=]//|@import|url\(|file:", html)
        self._check()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif re.fullmatch("h[1-6]", tag):
            self.headings.append([int(tag[1]), ""])

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" in self._open:
            return
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] += (" " if "small" in self._open else "") + data
        if self._open and re.fullmatch("h[1-6]", self._open[-1]):
            self.headings[-1][1] += data
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(self.texts)

    @property
    def cells(self):
        """Name of a row to its cells."""
        return {row[0]: row[1:] for row in self.rows}

    def find(self, tag):
        """Attributes of every such tag."""
        return [attributes for name, attributes in self.tags if name == tag]

    def _check(self):
        assert self.find("html")[0]["lang"] == "en"
        assert "width=device-width" in str(self.find("meta"))
        levels = [level for level, _ in self.headings]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(b <= a + 1 for a, b in zip(levels, levels[1:])), levels
        assert all(text.strip() for _, text in self.headings)
        for image in self.find("img"):
            assert image["alt"].strip() and image["src"].startswith("data:image/")
            assert int(image["width"]) > 0 and int(image["height"]) > 0
        assert all(cell.get("scope") in ("col", "row") for cell in self.find("th"))
        assert all(row and row[0].strip() for row in self.rows)
        for region in self.find("div"):
            if region.get("class") == "scroll":
                assert region["tabindex"] == "0" and region["aria-label"].strip()
        assert not {"script", "link", "iframe"} & {tag for tag, _ in self.tags}
