"""The frame of a self-contained HTML page: style, escaping, tables and pictures inside the file."""

import math
from collections.abc import Sequence
from html import escape
from typing import Optional

import numpy as np

from .drawing import data_uri, jpeg_bytes, png_bytes

_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ground: #f4f5f8; --ink: #1b2433;
  --faint: #5b6678; --line: #dfe3ea; --accent: #0a63c9; --accent-ground: #e8f1fc;
  --bar: #9aa7b8; --good: #0e7a3a; --bad: #c22121; }
@media (prefers-color-scheme: dark) { :root { --paper: #1b2130; --ground: #11151e; --ink: #e4e8ef;
  --faint: #9ba6b8; --line: #323a4b; --accent: #6cb2ff; --accent-ground: #1f3352;
  --bar: #5b6880; --good: #4cc97f; --bad: #ff8080; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.55;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans",
  "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
header { margin-bottom: 1.75rem; }
h1 { font-size: clamp(1.5rem, 1.1rem + 2vw, 2.2rem); line-height: 1.2; margin: 0 0 .5rem;
  letter-spacing: -.015em; text-wrap: balance; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 0 0 .75rem; letter-spacing: -.005em; }
h3 { font-size: 1rem; margin: 1.75rem 0 .5rem; }
h3:first-child { margin-top: 0; }
p { margin: 0 0 .9rem; max-width: 46rem; overflow-wrap: anywhere; }
p:last-child { margin-bottom: 0; }
.faint { color: var(--faint); }
.note { color: var(--faint); font-size: .875rem; margin-top: .9rem; }
.lead { font-size: 1.1rem; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 12px;
  padding: 1.5rem; margin: 0 0 1.25rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .75rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); vertical-align: baseline; }
th:first-child { text-align: left; padding-left: .25rem; position: sticky; left: 0;
  background: var(--paper); }
thead th { font-size: .8125rem; font-weight: 600; color: var(--faint); }
tbody th { font-weight: 600; }
tbody tr:last-child > * { border-bottom: 0; }
tr.strong > * { background: var(--accent-ground); }
td small { display: block; font-size: .75rem; line-height: 1.2; color: var(--faint); }
td small.good { color: var(--good); } td small.bad { color: var(--bad); }
.bars { display: grid; grid-template-columns: max-content 1fr; gap: .5rem .9rem;
  align-items: center; margin: 1.25rem 0 1.5rem; }
.bars > div { display: flex; align-items: center; gap: .6rem; font-weight: 600;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.bars i { display: block; height: 1.1rem; background: var(--bar); border-radius: 3px;
  min-width: 2px; max-width: calc(100% - 4.2rem); }
.bars .strong i { background: var(--accent); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr));
  gap: 1rem; }
.pair td { white-space: normal; overflow-wrap: anywhere; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr));
  gap: 1.25rem 2.5rem; }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; border-radius: 6px; }
.scroll > img { min-width: 860px; }
.card { background: #ffffff; border: 1px solid var(--line); border-radius: 8px; padding: 4px; }
figcaption { color: var(--faint); font-size: .875rem; margin-top: .5rem; }
.swipe { display: none; }
@media (max-width: 900px) { .swipe { display: block; } }
@media (max-width: 640px) { main { padding: 1.5rem .75rem 3rem; } section { padding: 1.1rem; }
  th, td { padding: .45rem .5rem; } tbody th:first-child { white-space: normal; }
  .bars { grid-template-columns: 1fr; gap: .1rem; } .bars > div { margin-bottom: .5rem; } }
.hits { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr));
  gap: 1rem; list-style: none; margin: 0; padding: 0; }
.hits li { border: 1px solid var(--line); border-radius: 8px; padding: .6rem; display: grid;
  grid-template-columns: minmax(4.5rem, max-content) 1fr; gap: .6rem .9rem;
  align-content: start; font-size: .9rem; }
.hits img:first-child { grid-column: 1 / -1; }
.hits img + img { width: auto; height: 9.5rem; max-width: 9rem; object-fit: contain;
  object-position: left top; border-radius: 3px; }
.hits b { font-size: 1rem; }
.hits div { min-width: 0; }
.hits span { display: block; overflow-wrap: anywhere; }
@media print { body { background: #ffffff; } section { break-inside: avoid; } }
"""


def page(title: str, sections: Sequence[str]) -> str:
    """A whole HTML document.

    Args:
        title: plain text.
        sections: HTML, as the functions here make it.
    """
    # The policy makes browsers enforce it: pictures and style come from this file alone.
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
{"".join(sections)}
</main>
</body>
</html>
"""


def section(heading: str, *parts: str) -> str:
    """A card with a heading (plain text) and HTML."""
    return f"<section>\n<h2>{escape(heading)}</h2>\n{''.join(parts)}</section>\n"


def paragraph(text: str, style: str = "") -> str:
    """Plain text as a paragraph of class ``style``."""
    return f'<p class="{style}">{escape(text)}</p>\n' if style else f"<p>{escape(text)}</p>\n"


def item_list(texts: Sequence[str]) -> str:
    """Plain texts as a list."""
    return f"<ul>\n{''.join(f'<li>{escape(text)}</li>' for text in texts)}\n</ul>\n"


def table(head: Sequence[str], rows: Sequence[Sequence[object]], label: str) -> str:
    """Plain values as a table; the first column names the rows.

    Args:
        label: of the table, plain text, for screen readers.
    """
    cells = [(row[0], [escape(str(cell)) for cell in row[1:]], False) for row in rows]
    return table_of_cells(head, cells, label)


def table_of_cells(
    head: Sequence[str], rows: Sequence[tuple[object, Sequence[str], bool]], label: str
) -> str:
    """A table that scrolls sideways where it must.

    Args:
        head: plain texts.
        rows: the name of each (plain), its cells (HTML), and whether it is emphasized.
        label: see :func:`table`.
    """
    heads = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in head)
    body = "".join(
        f'<tr{" class=strong" if strong else ""}><th scope="row">{escape(str(name))}</th>'
        f"{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>\n"
        for name, cells, strong in rows
    )
    table = f"<table><thead><tr>{heads}</tr></thead>\n<tbody>\n{body}</tbody></table>"
    return scrollable(table, label)


def scrollable(content: str, label: str) -> str:
    """HTML in a region that scrolls sideways, also with the keyboard."""
    return (
        f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0">'
        f"{content}</div>\n"
    )


def photo(image: np.ndarray, alt: str) -> str:
    """(H, W, 3) uint8 RGB as an image inside the file, JPEG."""
    return _image(data_uri(jpeg_bytes(image), "jpeg"), image, alt)


def drawing(image: np.ndarray, alt: str, dark: Optional[np.ndarray] = None) -> str:
    """The same as PNG, with another version for dark screens."""
    light = _image(data_uri(png_bytes(image), "png"), image, alt)
    if dark is None:
        return light
    source = data_uri(png_bytes(dark), "png")
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{source}">{light}</picture>'
    )


def number(value: object, digits: int = 1) -> str:
    """A number for people; a dash for nothing and for NaN."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        return "–"
    return f"{value:,.{digits}f}"


def _image(uri: str, image: np.ndarray, alt: str) -> str:
    height, width = image.shape[:2]
    return f'<img src="{uri}" width="{width}" height="{height}" alt="{escape(alt)}">'
