"""A page with the prototypes of a distilled training and the boxes of low agreement."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Optional

import numpy as np
from agreement import (
    MeasuredScene,
    agreement_colour,
    draw_scale,
    draw_scene,
    lowest_boxes,
    scale_start,
)
from PIL import ImageOps

from kd_search.visualization import page
from kd_search.visualization.drawing import Colour, crop, fit, write_file

#: Largest width and height of the pictures of prototypes and boxes; they are shown at half of it.
_THUMBNAIL = (240, 320)

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
        filled = {level: row[level] for level in levels if row.get(level)}
        if not filled:
            continue
        parts.append(f"<h3>{escape(name)}</h3>\n")
        for level, pictures in filled.items():
            thumbnails = [
                _thumbnail(picture, f"{name} on {level}, prototype {number}")
                for number, picture in enumerate(pictures, 1)
            ]
            parts.append(f"<h4>{escape(level)}: {len(pictures)}</h4>\n{_list(thumbnails)}")
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
    heads = ("boxes", "mean r", "10th percentile", "lowest")
    by_level = {level: _values(scenes, "levels", level) for level in levels}
    by_class = {
        name: _values(scenes, "classes", name)
        for name in sorted({c for s in scenes for c in s.classes})
    }
    cut_out = []
    for scene, box in lowest_boxes(scenes, boxes):
        part = None if scene.scene is None else crop(scene.scene, tuple(scene.boxes[box]))
        colour = agreement_colour(float(scene.agreement[box]), start)
        cut_out.append(_thumbnail(part, f"Box of {scene.name}", scene.label(box), colour))
    parts += [
        page.table(
            ("Feature map", *heads),
            [_statistics(name, values) for name, values in by_level.items()],
            "Agreement by feature map",
        ),
        page.table(
            ("Class", *heads),
            [_statistics(name, values) for name, values in by_class.items()],
            "Agreement by class",
        ),
        *(page.paragraph(finding) for finding in findings),
        f"<h3>Lowest agreement</h3>\n{_list(cut_out)}",
    ]
    return page.section("Agreement", *parts)


def _scenes_section(scenes: Sequence[MeasuredScene], start: float) -> str:
    scale = page.drawing(draw_scale(start), f"Colours from r = {start:.2f} to 1")
    parts = [
        page.paragraph("The image with the lowest number of all comes first.", "faint"),
        f'<figure class="card scale">{scale}</figure>\n',
        _list([_item(scene, start) for scene in scenes], "scenes"),
    ]
    return page.section("Images", *parts)


def _item(measured: MeasuredScene, start: float) -> str:
    picture = ""
    if measured.scene is not None:
        picture = page.photo(draw_scene(measured, start, 800), f"{measured.name} with its boxes")
    lines = "".join(f"<span>{escape(measured.label(box))}</span>" for box in measured.order())
    return f"<li>{picture}<div><b>{escape(measured.name)}</b>{lines}</div></li>\n"


def _list(items: Sequence[str], style: str = "thumbnails") -> str:
    return f'<ul class="{style}" role="list">\n{"".join(items)}</ul>\n'


def _thumbnail(
    picture: Optional[np.ndarray], alt: str, caption: str = "", frame: Optional[Colour] = None
) -> str:
    text = f"<span>{escape(caption)}</span>" if caption else ""
    if picture is None:
        return f'<li><p class="missing">no picture</p>{text}</li>\n'
    scaled = fit(picture, *_THUMBNAIL)
    if frame is not None:
        scaled = ImageOps.expand(scaled, 8, frame)
    return f"<li>{page.photo(np.asarray(scaled), alt)}{text}</li>\n"


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
