"""A page with the prototypes of a distilled training and the boxes of low agreement."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Optional

import numpy as np
from agreement import MeasuredScene, draw_boxes_in_order, draw_scale, draw_scene, scale_start
from contact_sheet import draw_sheet

from kd_search.visualization import page
from kd_search.visualization.drawing import write_file

_PROTOTYPES = (
    "Annotated (or detected) boxes of the training set whose features can express those of the "
    "others of their class, for teacher and student, by class and feature map, in the order of "
    "their selection. Each picture is the content of the box."
)
_AGREEMENT = (
    "The number r is the agreement of student and teacher that a box is typical of its class: 1 "
    "where it is equally near to the nearest prototype of both, less where it is near to one of "
    "them only. In training, the loss of a box is multiplied by it. The method takes low numbers "
    "for noise; the pictures show whether they are."
)


def write_prototype_page(
    path: str,
    title: str,
    prototypes: Mapping[str, Mapping[str, Sequence[Optional[np.ndarray]]]],
    levels: Sequence[str],
    scenes: Sequence[MeasuredScene],
    facts: Sequence[str],
    *,
    findings: Sequence[str] = (),
    shown: Optional[int] = None,
    boxes: int = 40,
) -> None:
    """Write one self-contained HTML file.

    Args:
        path: HTML file; readers see the old one or the whole new one.
        title: plain text, as all text here.
        prototypes: class to level to the pictures of its prototypes, as :func:`draw_sheet` takes
            them.
        levels: their names, finest first.
        scenes: all measured images; ``scene`` is needed only for those shown.
        facts: how the page was made, a paragraph each.
        findings: correlations of the agreement, a paragraph each.
        shown: number of scenes, those of the lowest agreement first; ``None`` for all.
        boxes: number of boxes that are cut out, those of the lowest agreement first.
    """
    every = np.concatenate([s.agreement for s in scenes]) if scenes else np.zeros(0)
    start = scale_start(every)
    sections = [
        f"<header><h1>{escape(title)}</h1>"
        f"{''.join(page.paragraph(fact, 'faint') for fact in facts)}</header>\n",
        _prototypes_section(prototypes, levels),
        _agreement_section(scenes, levels, start, boxes, findings),
        _scenes_section(first_scenes(scenes, shown), start),
    ]
    write_file(path, page.page(title, sections).encode("utf-8"))


def first_scenes(scenes: Sequence[MeasuredScene], count: Optional[int]) -> list[MeasuredScene]:
    """Scenes with a box, those of the lowest agreement first; ``count`` of them, or all."""
    return sorted((s for s in scenes if len(s.boxes)), key=lambda s: s.lowest)[:count]


def _prototypes_section(prototypes, levels: Sequence[str]) -> str:
    parts = [page.paragraph(_PROTOTYPES)]
    for name, row in prototypes.items():
        count = sum(len(row.get(level, ())) for level in levels)
        if not count:
            continue
        picture = page.photo(
            draw_sheet({name: row}, levels, align_with=prototypes), f"{count} prototypes of {name}"
        )
        parts.append(
            f'<figure class="card"><div class="scroll" tabindex="0">{picture}</div></figure>\n'
        )
    without = [n for n, row in prototypes.items() if not any(row.get(level) for level in levels)]
    if without:
        parts.append(page.paragraph(f"Without any prototype: {', '.join(without)}.", "faint"))
    return page.section("Prototypes", *parts)


def _agreement_section(
    scenes: Sequence[MeasuredScene],
    levels: Sequence[str],
    start: float,
    boxes: int,
    findings: Sequence[str],
) -> str:
    parts = [page.paragraph(_AGREEMENT)]
    if not any(len(s.boxes) for s in scenes):
        return page.section("Agreement", *parts, page.paragraph("No box was measured.", "faint"))
    heads = ("", "boxes", "mean r", "10th percentile", "lowest")
    by_level = {level: _values(scenes, "levels", level) for level in levels}
    by_class = {
        name: _values(scenes, "classes", name)
        for name in sorted({c for s in scenes for c in s.classes})
    }
    parts += [
        page.table(heads, [_statistics(name, values) for name, values in by_level.items()]),
        page.table(heads, [_statistics(name, values) for name, values in by_class.items()]),
        *(page.paragraph(finding) for finding in findings),
        "<h3>Lowest agreement</h3>\n",
        page.photo(draw_boxes_in_order(scenes, start, boxes), "Boxes of the lowest agreement"),
    ]
    return page.section("Agreement", *parts)


def _scenes_section(scenes: Sequence[MeasuredScene], start: float) -> str:
    scale = page.drawing(draw_scale(start), f"Colours from r = {start:.2f} to 1")
    parts = [
        page.paragraph("The image with the lowest number of all comes first.", "faint"),
        f'<figure class="card" style="max-width: 430px; margin-bottom: 1rem">{scale}</figure>\n',
        f'<ul class="hits">\n{"".join(_item(scene, start) for scene in scenes)}</ul>\n',
    ]
    return page.section("Images", *parts)


def _item(measured: MeasuredScene, start: float) -> str:
    picture = ""
    if measured.scene is not None:
        picture = page.photo(draw_scene(measured, start), f"{measured.name} with its boxes")
    lines = "".join(f"<span>{escape(measured.label(box))}</span>" for box in measured.order())
    return f"<li>{picture}<div><b>{escape(measured.name)}</b>{lines}</div></li>\n"


def _values(scenes: Sequence[MeasuredScene], key: str, name: str) -> np.ndarray:
    return np.array(
        [r for s in scenes for r, own in zip(s.agreement, getattr(s, key)) if own == name],
        dtype=np.float64,
    )


def _statistics(name: str, values: np.ndarray) -> list:
    if not len(values):
        return [name, 0, "–", "–", "–"]
    numbers = (values.mean(), np.percentile(values, 10), values.min())
    return [name, len(values), *(page.number(float(v), 2) for v in numbers)]
