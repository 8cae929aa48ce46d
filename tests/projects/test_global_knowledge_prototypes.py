"""Contact sheets, boxes coloured by agreement, and the page of both: pictures say what is so."""

import numpy as np
import pytest
from agreement import (
    MeasuredScene,
    agreement_colour,
    draw_boxes_in_order,
    draw_scale,
    draw_scene,
    lowest_boxes,
    scale_start,
)
from contact_sheet import Cell, draw_cells, draw_sheet
from html_page import Page
from prototype_page import first_scenes, write_prototype_page

from kd_search.visualization.drawing import PANEL

RED, GREEN, BLUE = (200, 10, 10), (10, 200, 10), (10, 10, 200)


def flat(colour, height=20, width=20):
    return np.full((height, width, 3), colour, np.uint8)


def count(picture, colour, tolerance=0):
    near = np.abs(picture.astype(int) - np.array(colour)) <= tolerance
    return int(near.all(axis=2).sum())


def measured(name, agreement, scene=True, classes=None):
    boxes = [[5 + 30 * i, 10, 25 + 30 * i, 60] for i in range(len(agreement))]
    return MeasuredScene(
        name=name,
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        classes=list(classes or ["fish"] * len(agreement)),
        levels=["p3"] * len(agreement),
        agreement=np.array(agreement, dtype=np.float32),
        scene=flat((128, 128, 128), 80, 120) if scene else None,
    )


def test_cells_are_laid_out_row_by_row():
    sheet = draw_cells([Cell(flat(c)) for c in (RED, GREEN, BLUE)], columns=2, size=20)
    assert sheet.shape == (2 * 23 + 3, 2 * 23 + 3, 3)
    places = [(y, x) for y in (3, 26) for x in (3, 26)]
    found = [tuple(sheet[y + 10, x + 10]) for y, x in places]
    assert found == [RED, GREEN, BLUE, (255, 255, 255)]


def test_a_cell_keeps_the_shape_of_its_picture_and_has_a_frame():
    sheet = draw_cells([Cell(flat(RED, 10, 40), frame=GREEN), Cell(None)], columns=2, size=48)
    rows, columns = np.nonzero((sheet == np.array(RED, np.uint8)).all(axis=2))
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (11, 44)
    framed = np.nonzero((sheet == np.array(GREEN, np.uint8)).all(axis=2))
    assert framed[0].min() == rows.min() - 2 and framed[0].max() == rows.max() + 2
    # The second has no picture: its whole square is grey.
    assert (sheet[3:51, 3 + 51 : 3 + 51 + 48] == np.array(PANEL)).all()


def test_captions_stay_in_their_cell():
    cells = [Cell(flat(RED), "a very long caption indeed"), Cell(flat(RED), "b")]
    sheet = draw_cells(cells, columns=2, size=60)
    assert sheet.shape[0] > 66 and (sheet[66:, 63:66] == 255).all()
    with pytest.raises(ValueError, match="one picture"):
        draw_cells([], 3)


def test_sheet_has_classes_down_and_levels_across():
    rows = {"wheel": {"p2": [flat(RED)], "p3": [flat(GREEN)] * 2}, "pot": {"p2": [], "p3": [None]}}
    sheet = draw_sheet(rows, ["p2", "p3"], size=20)
    (red_y, red_x), (green_y, green_x) = (
        [axis.mean() for axis in np.nonzero((sheet == np.array(c)).all(axis=2))]
        for c in (RED, GREEN)
    )
    assert abs(red_y - green_y) < 1 and red_x < green_x
    assert count(sheet, RED) == 400 and count(sheet, GREEN) == 800
    with pytest.raises(ValueError, match="one row and one column"):
        draw_sheet({}, ["p2"])


def test_ten_pictures_are_two_lines_of_five():
    rows = {"wheel": {"p2": [flat(RED)] * 10}}
    sheet = draw_sheet(rows, ["p2"], size=20)
    ys = np.unique(np.nonzero((sheet == np.array(RED)).all(axis=2))[0])
    assert len(ys) == 40 and count(sheet, RED) == 4000


def test_colours_run_from_the_lowest_to_one():
    start = 0.6
    values = np.linspace(start, 1, 21)
    colours = np.array([agreement_colour(v, start) for v in values])
    # Red falls towards 1, blue rises beyond the middle; ends are kept beyond the scale.
    assert (np.diff(colours[:, 2][10:]) > 0).all() and (np.diff(colours[:, 1][:10]) > 0).all()
    assert agreement_colour(0.1, start) == tuple(colours[0])
    assert agreement_colour(1.3, start) == tuple(colours[-1])
    assert len({tuple(c) for c in colours}) == 21
    scale = draw_scale(start, 420)
    assert tuple(scale[5, 16]) == tuple(colours[0]) and tuple(scale[5, 403]) == tuple(colours[-1])


@pytest.mark.parametrize(
    "values, start", [([0.63, 1.0], 0.6), ([0.7, 0.8], 0.7), ([0.99], 0.9), ([0.0], 0.0), ([], 0.0)]
)
def test_start_of_the_scale(values, start):
    assert scale_start(np.array(values, dtype=np.float32)) == pytest.approx(start)


def test_boxes_of_a_scene_have_the_colour_of_their_agreement():
    scene = measured("a.jpg", [0.5, 1.0])
    picture = draw_scene(scene, 0.5, width=240)
    assert picture.shape == (160, 240, 3)
    low, high = agreement_colour(0.5, 0.5), agreement_colour(1.0, 0.5)
    for colour, x in ((low, 10), (high, 70)):
        ys, xs = np.nonzero((picture == np.array(colour)).all(axis=2))
        assert len(xs) > 100
        # Two pixels of the picture are one of the scene.
        assert np.percentile(xs, 1) >= x - 1 and ys.max() == pytest.approx(120, abs=2)


def test_lowest_agreement_comes_first():
    scenes = [measured("a", [0.9, 0.4, 0.8]), measured("b", []), measured("c", [0.2])]
    assert scenes[0].order() == [1, 2, 0] and scenes[1].lowest == 1.0
    assert scenes[0].label(1) == "0.40 p3 fish"
    assert [s.name for s in first_scenes(scenes, None)] == ["c", "a"]
    assert [s.name for s in first_scenes(scenes, 1)] == ["c"]
    order = [(s.name, box) for s, box in lowest_boxes(scenes, 3)]
    assert order == [("c", 0), ("a", 1), ("a", 2)]


def test_lowest_boxes_are_cut_out_of_their_scenes():
    scene = measured("a", [0.9, 0.4])
    scene.scene[10:60, 35:55] = RED
    sheet = draw_boxes_in_order([scene, measured("b", [0.5], scene=False)], 0.4, 2, size=80)
    # The box at 0.4 is red, the one at 0.5 has no picture, the one at 0.9 is not shown.
    assert count(sheet, RED, 2) > 1500 and count(sheet, (128, 128, 128)) == 0
    assert count(sheet, agreement_colour(0.4, 0.4)) > 200


def test_page_is_one_file_that_shows_everything(tmp_path):
    path = tmp_path / "new" / "page.html"
    prototypes = {"fish & chips": {"p3": [flat(RED)]}, "pot": {"p3": []}}
    scenes = [measured("a<b>.jpg", [0.9, 0.4]), measured("c.jpg", [0.95], classes=["leaf"])]
    write_prototype_page(str(path), "T & U", prototypes, ["p3"], scenes, ["A fact."], shown=1)
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert "T &amp; U" in html and "A fact." in html and "fish &amp; chips" in html
    assert "a&lt;b&gt;.jpg" in html and "c.jpg with" not in html
    assert "Without any prototype: pot." in html
    # Prototypes of a class, boxes of the lowest agreement, the scale and a scene.
    assert [image["alt"] for image in page.find("img")] == [
        "fish & chips on p3, prototype 1",
        *("Box of a<b>.jpg", "Box of a<b>.jpg", "Box of c.jpg"),
        "Colours from r = 0.40 to 1",
        "a<b>.jpg with its boxes",
    ]
    # Small boxes are shown large enough to see.
    assert int(page.find("img")[0]["height"]) >= 200
    assert html.index("0.40 p3 fish") < html.index("0.90 p3 fish")
    # Three boxes of a level; of the class "leaf" one, whose lowest is 0.95.
    rows = html.replace("</td><td>", " ").replace("</th><td>", " ")
    assert ">p3 3 0.75 0.50 0.40<" in rows and ">leaf 1 0.95 0.95 0.95<" in rows
    assert "http:" not in html and "https:" not in html
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]


def test_page_without_boxes(tmp_path):
    path = tmp_path / "page.html"
    write_prototype_page(str(path), "T", {"pot": {}}, ["p3"], [measured("a", [])], [])
    html = Page(path.read_text(encoding="utf-8")).text
    assert "No box was measured." in html and "Without any prototype: pot." in html
