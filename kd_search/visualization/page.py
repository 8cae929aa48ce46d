"""The frame of a self-contained HTML page: escaping, tables and pictures inside the file."""

import math
from collections.abc import Sequence
from html import escape
from typing import Optional

import numpy as np

from .drawing import data_uri, jpeg_bytes, png_bytes
from .style import style_sheet


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
<style>{style_sheet()}</style>
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
    items = "".join(f"<li>{escape(text)}</li>\n" for text in texts)
    return f'<ul class="points">\n{items}</ul>\n'


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


def photo(image: np.ndarray, alt: str, quality: int = 85) -> str:
    """(H, W, 3) uint8 RGB as an image inside the file, JPEG."""
    return _image(data_uri(jpeg_bytes(image, quality), "jpeg"), image, alt)


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
