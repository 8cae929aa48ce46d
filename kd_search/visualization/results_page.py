"""Ranked search results as an HTML page, and as a part of one."""

import functools
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Callable

import numpy as np

from kd_search.data.io.image import read_image

from . import page
from .cards import card_list
from .drawing import write_file
from .search_results import CHOICE, result_tiles
from .tiles import Tile

#: How to read :func:`rankings_section`.
LEGEND = (
    "Every query is a person in a picture (blue frame). Below it are the people that each model "
    "found most similar in the other pictures, best first. A green frame and ✓ mean right; a red "
    "frame and ✗ mean wrong. Where a model found another person although the wanted one is in that "
    "picture, a dashed yellow frame shows the true place. A person who is in m pictures of the "
    "gallery can be found m times at most: all other ranks must be wrong."
)

# Many scenes: a page of six queries of three models holds a hundred.
_SCENE_WIDTH = 448


def rankings_section(
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    dataset_dicts: Sequence[Mapping[str, Any]],
    query_ids: Sequence[int],
    top_k: int = 5,
    *,
    note: str = CHOICE,
    read: Callable[[str], np.ndarray] = functools.partial(read_image, format="RGB"),
) -> str:
    """Ranked results of one model or several side by side, as a part of a page.

    Args:
        results: name of the model to its per-query results, of the same queries.
        dataset_dicts, query_ids, top_k, read: as :func:`.draw_search_results`.
        note: how the queries were chosen.

    Raises:
        ValueError: as :func:`.draw_search_results`.
    """
    parts = [page.paragraph(LEGEND), page.paragraph(note, "faint")]
    rows = {
        name: result_tiles(rankings, dataset_dicts, query_ids, top_k, read=read)
        for name, rankings in results.items()
    }
    for tiles in zip(*rows.values()):
        query = tiles[0][0]
        columns = "".join(
            f"<div><h4>{escape(name)}</h4>\n"
            + page.paragraph(", ".join(text for text, _ in own[0].lines), "faint")
            + _matches(own[1:])
            + "</div>\n"
            for name, own in zip(rows, tiles)
        )
        # The lines of a query are those of one model; the heading has its title.
        wanted = card_list([query], "wanted", ranked=False, captions=False, width=_SCENE_WIDTH)
        parts.append(
            f"<article><h3>{escape(query.title.capitalize())}</h3>\n"
            f'{wanted}<div class="models">\n{columns}</div></article>\n'
        )
    return page.section("Search results", *parts)


def _matches(tiles: Sequence[Tile]) -> str:
    if not tiles:
        return page.paragraph("Nobody was found.")
    return card_list(tiles, "ranks", width=_SCENE_WIDTH)


def write_results_page(
    path: str,
    title: str,
    documents: Mapping[str, Mapping[str, Any]],
    dataset_dicts: Sequence[Mapping[str, Any]],
    query_ids: Sequence[int],
    top_k: int = 5,
    *,
    note: str = CHOICE,
) -> None:
    """Write the ranked results of one model or several as one self-contained HTML file.

    Args:
        path: HTML file; readers see the old one or the whole new one.
        title: plain text, as all text here.
        documents: name of the model to what :func:`load_search_results` returns.
        dataset_dicts, query_ids, top_k, note: see :func:`rankings_section`.
    """
    metrics = {name: document.get("metrics", {}) for name, document in documents.items()}
    columns = list(
        dict.fromkeys(
            (task, name)
            for tasks in metrics.values()
            for task, values in tasks.items()
            for name in values
            if not name.startswith("queries")
        )
    )
    rows = [
        [name, *(page.number(tasks.get(task, {}).get(column)) for task, column in columns)]
        for name, tasks in metrics.items()
    ]
    heads = [name if task == "person_search" else f"{task} {name}" for task, name in columns]
    table = page.table(["Model", *heads], rows, "Results") + page.paragraph("Percent.", "note")
    rankings = {name: document["queries"] for name, document in documents.items()}
    content = page.page(
        title,
        [
            f"<header><h1>{escape(title)}</h1></header>\n",
            page.section("Result", table) if columns else "",
            rankings_section(rankings, dataset_dicts, query_ids, top_k, note=note),
        ],
    )
    write_file(path, content.encode("utf-8"))
