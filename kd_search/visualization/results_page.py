"""Ranked search results as an HTML page, and as a part of one."""

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from . import page
from .drawing import write_file
from .search_results import CHOICE, LEGEND

#: Names of the three models of a distillation experiment, in the order of every table.
MODELS = {
    "teacher": "Teacher",
    "student": "Student",
    "student_distilled": "Student, distilled",
}


def pictures_section(pictures: Mapping[str, np.ndarray], note: str = CHOICE) -> str:
    """Pictures of ranked results, and how to read them, as a part of a page.

    Args:
        pictures: label (a key of :data:`MODELS`, or any text) to the (H, W, 3) uint8 RGB of
            :func:`draw_search_results`.
        note: how the queries were chosen.
    """
    parts = [page.paragraph(LEGEND), page.paragraph(note, "faint")]
    if not pictures:
        parts.append(page.paragraph("No pictures were made.", "faint"))
    elif len(pictures) > 1:
        parts.append(page.paragraph("The queries are the same for all models.", "faint"))
    parts.append('<p class="swipe faint">Swipe the pictures sideways.</p>\n')
    for label, image in pictures.items():
        name = MODELS.get(label, label)
        picture = page.photo(image, f"Ranked search results: {name}")
        parts.append(
            f"<h3>{escape(name)}</h3>\n"
            f'<figure class="card"><div class="scroll" tabindex="0">{picture}</div></figure>\n'
        )
    return page.section("Search results", *parts)


def write_results_page(
    path: str,
    title: str,
    pictures: Mapping[str, np.ndarray],
    documents: Mapping[str, Mapping[str, Any]],
    note: str = CHOICE,
) -> None:
    """Write the ranked results of one model or several as one self-contained HTML file.

    Args:
        path: HTML file; readers see the old one or the whole new one.
        title: plain text, as all text here.
        pictures, note: see :func:`pictures_section`.
        documents: label to what :func:`load_search_results` returns, for the table.
    """
    names = list(
        dict.fromkeys(
            (task, name)
            for document in documents.values()
            for task, values in document.get("metrics", {}).items()
            for name in values
            if not name.startswith("queries")
        )
    )
    rows = [
        [MODELS.get(label, label)]
        + [page.number(document.get("metrics", {}).get(task, {}).get(name)) for task, name in names]
        for label, document in documents.items()
    ]
    heads = [name if task == "person_search" else f"{task} {name}" for task, name in names]
    table = page.table(["Model", *heads], rows) + page.paragraph("Percent.", "note")
    content = page.page(
        title,
        [
            f"<header><h1>{escape(title)}</h1></header>\n",
            page.section("Result", table) if names else "",
            pictures_section(pictures, note),
        ],
    )
    write_file(path, content.encode("utf-8"))
