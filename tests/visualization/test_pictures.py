"""Ranked search results as pictures: colours, marks and dashes say what the results say."""

import json

import numpy as np
import pytest
from PIL import Image

from kd_search.visualization import (
    choose_good_queries,
    choose_queries,
    draw_search_results,
    load_search_results,
)
from kd_search.visualization.drawing import (
    QUERY,
    RIGHT,
    TRUTH,
    WRONG,
    crop,
    fit,
    jpeg_bytes,
    png_bytes,
    write_picture,
)
from kd_search.visualization.tiles import Tile, render_tile, tile_size

TILE = 200
GREY = 128


def scene(image_id, people, queries=()):
    """Dataset dict of a grey 160 x 120 scene; ``people`` maps person ids to boxes."""
    return {
        "file_name": f"{image_id}.png",
        "image_id": image_id,
        "height": 120,
        "width": 160,
        "annotations": [{"bbox": list(box), "person_id": i} for i, box in people.items()],
        "queries": [dict(query_id=q, bbox=people[i], person_id=i) for q, i in queries],
    }


BOX, ELSEWHERE = [20, 20, 50, 90], [90, 30, 120, 100]
SCENES = [
    scene("a", {0: BOX, 1: ELSEWHERE}, queries=[(0, 0), (1, 1)]),
    scene("b", {0: BOX, 1: ELSEWHERE}),
    scene("c", {1: BOX}),
]


def match(image_id, bbox, correct):
    return {
        "image_id": image_id,
        "bbox": bbox,
        "score": 0.9,
        "similarity": 0.5,
        "correct": correct,
    }


def result(query_id, matches, ap=50.0):
    found = {"num_gt": 1, "num_found": 1, "first_hit_rank": 1}
    return {"query_id": query_id, "AP": ap, **found, "matches": matches}


def draw(matches, top_k=None, query_id=0, **kwargs):
    """Tiles of one row: the query's, then the matches'."""
    top_k = len(matches) if top_k is None else top_k
    kwargs.setdefault("read", lambda name: np.full((120, 160, 3), GREY, np.uint8))
    picture = draw_search_results(
        [result(query_id, matches)], SCENES, [query_id], top_k, tile_width=TILE, **kwargs
    )
    gap = TILE // 30
    width, height = tile_size(TILE)
    assert picture.shape == (height + 2 * gap, (top_k + 1) * (width + gap) + gap, 3)
    starts = [gap + i * (width + gap) for i in range(top_k + 1)]
    return [picture[gap : gap + height, x : x + width] for x in starts]


def count(tile, colour):
    return int((tile == np.array(colour, np.uint8)).all(axis=2).sum())


@pytest.mark.parametrize("correct", [True, False])
def test_frames_follow_correct(correct):
    _, tile = draw([match("b", BOX if correct else ELSEWHERE, correct)])
    shown, hidden = (RIGHT, WRONG) if correct else (WRONG, RIGHT)
    assert count(tile, shown) > 300
    assert count(tile, hidden) == 0


def test_each_match_gets_its_own_colour_in_the_order_of_the_ranks():
    order = [True, False, False, True]
    matches = [match("b", BOX if c else ELSEWHERE, c) for c in order]
    tiles = draw(matches)[1:]
    assert [count(t, RIGHT) > 300 for t in tiles] == order
    assert [count(t, WRONG) > 300 for t in tiles] == [not c for c in order]


def test_right_and_wrong_differ_without_colour():
    """The marks have different shapes: a disc leaves its corners free, a square does not."""
    right, wrong = (
        np.asarray(render_tile(Tile("rank 1", correct=c), TILE).convert("RGB"))
        for c in (True, False)
    )
    areas = [
        np.argwhere((t == np.array(colour, np.uint8)).all(axis=2))
        for t, colour in ((right, RIGHT), (wrong, WRONG))
    ]
    filled = [len(a) / np.prod(np.ptp(a, axis=0) + 1) for a in areas]
    assert filled[0] < filled[1] - 0.05
    white = [(t == 255).all(axis=2) for t in (right, wrong)]
    assert (white[0] != white[1]).sum() > 20


def test_missed_person_is_dashed_where_it_is():
    _, tile = draw([match("b", ELSEWHERE, False)])
    rows, columns = np.nonzero((tile == np.array(TRUTH, np.uint8)).all(axis=2))
    pad = TILE // 50
    zoom = (TILE - 2 * pad) / 160
    assert columns.min() == pytest.approx(pad + zoom * BOX[0], abs=2)
    assert columns.max() == pytest.approx(pad + zoom * BOX[2], abs=2)
    # Dashed: along its left side, the frame has gaps.
    left = (tile[rows.min() : rows.max(), columns.min()] == np.array(TRUTH, np.uint8)).all(axis=1)
    assert 0.2 < left.mean() < 0.8


def test_nothing_is_dashed_where_the_person_is_not_or_was_found():
    tiles = draw([match("c", BOX, False), match("b", BOX, True)])
    assert [count(tile, TRUTH) for tile in tiles] == [0, 0, 0]


def test_second_box_on_the_same_person_is_wrong_but_not_missed():
    _, tile = draw([match("b", [21, 21, 51, 91], False)])
    assert count(tile, WRONG) > 300
    assert count(tile, TRUTH) == 0


def test_query_tile_is_neither_right_nor_wrong():
    query, _ = draw([match("b", BOX, True)])
    assert count(query, QUERY) > 300
    assert count(query, RIGHT) == count(query, WRONG) == 0


def test_person_is_cut_out_of_the_scene():
    picture = np.full((120, 160, 3), GREY, np.uint8)
    picture[20:90, 20:50] = (200, 10, 200)
    query, _ = draw([match("b", BOX, True)], read=lambda name: picture)
    bottom = query[tile_size(TILE)[0] * 3 // 4 + 10 :]
    assert count(bottom, (200, 10, 200)) > 500


def test_fewer_matches_than_top_k_leave_the_rest_empty():
    tiles = draw([match("b", BOX, True)], top_k=3)
    assert (tiles[2] == 255).all() and (tiles[3] == 255).all()


def test_top_k_cuts_the_list():
    assert len(draw([match("b", BOX, True)] * 5, top_k=2)) == 3


def test_unreadable_scene_becomes_a_tile_without_picture(tmp_path):
    from kd_search.data import ImageError

    def read(name):
        raise ImageError(f"{name}: no such image file")

    _, tile = draw([match("b", BOX, True)], read=read)
    assert count(tile, RIGHT) > 100  # the mark


def test_results_of_another_data_set_are_refused():
    with pytest.raises(ValueError, match="image 'zebra'"):
        draw([match("zebra", BOX, True)])
    with pytest.raises(ValueError, match="query 7"):
        draw([match("b", BOX, True)], query_id=7)
    with pytest.raises(ValueError, match="query 5"):
        draw_search_results([result(0, [])], SCENES, [5])
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_search_results([result(0, [])], SCENES, [])


def test_chosen_queries_span_worst_to_best():
    results = [result(i, [], ap) for i, ap in enumerate([90.0, 10.0, 50.0, 70.0, 30.0])]
    assert choose_queries(results, 3) == [1, 2, 0]
    assert choose_queries(results, 5) == [1, 4, 2, 3, 0]
    assert choose_queries(results, 99) == [1, 4, 2, 3, 0]


def test_chosen_queries_leave_out_those_that_nothing_could_answer():
    results = [result(0, [], None), result(1, [], 0.0), result(2, [], 100.0)]
    assert choose_queries(results, 5) == [1, 2]
    assert choose_queries([], 5) == []


def test_good_queries_are_of_the_upper_quarter_with_two_right_matches():
    def found(query_id, ap, *correct):
        return result(query_id, [match("b", BOX, c) for c in correct], ap)

    results = [
        *(found(i, 10.0 * i, True, True) for i in range(6)),
        *(found(i, 80.0, True, False, i == 7) for i in (8, 7)),
        found(9, None, True, True),
    ]
    # The 75th percentile of the eight is 57.5; the others with 80 have one right match.
    assert choose_good_queries(results, 3) == [7]
    assert choose_good_queries(results, 3, top_k=2) == []
    many = [found(i, 90.0, True, True) for i in (5, 1, 4, 2, 3)]
    assert choose_good_queries(many, 3) == [1, 3, 5]
    assert choose_good_queries([found(0, None)], 3) == []


def test_load_results_reads_folder_or_file_and_names_bad_files(tmp_path):
    path = tmp_path / "person_search_results.json"
    with pytest.raises(FileNotFoundError, match="person_search_results.json"):
        load_search_results(tmp_path)
    path.write_text(json.dumps({"dataset": "d", "queries": [result(0, [])]}))
    assert load_search_results(tmp_path) == load_search_results(path)
    assert load_search_results(path)["queries"][0]["query_id"] == 0
    for text in ('{"dataset": ', '{"dataset": "d"}', "[]"):
        path.write_text(text)
        with pytest.raises(ValueError, match="person_search_results.json"):
            load_search_results(path)


def test_load_results_looks_one_folder_down_if_that_is_unambiguous(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    file = tmp_path / "one" / "person_search_results.json"
    file.write_text(json.dumps({"dataset": "d", "queries": []}))
    assert load_search_results(tmp_path)["dataset"] == "d"
    (tmp_path / "two" / file.name).write_text(file.read_text())
    with pytest.raises(ValueError, match="several sets.*one, .*two"):
        load_search_results(tmp_path)


def test_crop_keeps_to_the_image():
    image = np.arange(10 * 12 * 3, dtype=np.uint8).reshape(10, 12, 3)
    assert (crop(image, (-5, 2, 4.5, 99)) == image[2:10, 0:5]).all()
    assert crop(image, (20, 2, 30, 9)) is None
    assert crop(image, (5, 2, 5, 9)) is None


def test_fit_keeps_the_aspect_ratio():
    assert fit(np.zeros((100, 200, 3), np.uint8), 50, 50).size == (50, 25)
    assert fit(np.zeros((1, 900, 3), np.uint8), 90, 90).size == (90, 1)


def test_pictures_are_written_whole_and_read_back(tmp_path):
    image = np.zeros((8, 9, 3), np.uint8)
    image[2:5] = RIGHT
    write_picture(str(tmp_path / "new" / "a.png"), image)
    assert (np.asarray(Image.open(tmp_path / "new" / "a.png")) == image).all()
    write_picture(str(tmp_path / "a.jpg"), image)
    assert Image.open(tmp_path / "a.jpg").format == "JPEG"
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["a.jpg", "a.png"]


@pytest.mark.parametrize("encode", [png_bytes, jpeg_bytes])
def test_other_arrays_than_rgb_are_refused(encode):
    with pytest.raises(ValueError, match="uint8 RGB"):
        encode(np.zeros((4, 4, 3), np.float32))
    with pytest.raises(ValueError, match="uint8 RGB"):
        encode(np.zeros((4, 4), np.uint8))
