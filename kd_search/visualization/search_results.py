"""Ranked search results as pictures: a row per query, found people framed as right or wrong."""

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable, Optional, Union

import numpy as np
from PIL import Image

from kd_search.data.io.image import ImageError, read_image
from kd_search.evaluation.matching import iou_of_pairs, search_iou_threshold
from kd_search.evaluation.search.compare_runs import load_results

from .drawing import FAINT_INK, INK, PANEL, PAPER, RIGHT, WRONG, Box
from .tiles import Tile, render_tile, tile_size

#: How :func:`choose_queries` chose, for the caption of a picture.
CHOICE = (
    "These queries were chosen by a rule: all queries that have a match in the gallery are sorted "
    "by average precision, and these stand at equal distances from the worst to the best."
)
#: How :func:`choose_good_queries` chose.
GOOD_CHOICE = (
    "These queries were chosen by a rule to show a search that works: their average precision is "
    "in the upper quarter of all queries, at least two of their best matches are right, and they "
    "stand at equal distances in the order of their numbers."
)

#: How to read a picture of :func:`draw_search_results`.
LEGEND = (
    "Each row is one query: the wanted person on the left (blue frame), then the people the model "
    "found most similar, best first. A green frame and a tick on a disc mean right; a red frame "
    "and a cross on a square mean wrong. Where the model found another person although the wanted "
    "person is in that scene, a dashed yellow frame shows the true place. A person "
    "who is in m gallery scenes can be found m times at most: all other ranks must be wrong."
)


def load_search_results(path: Union[str, "os.PathLike[str]"]) -> dict[str, Any]:
    """As :func:`~kd_search.evaluation.search.compare_runs.load_results`."""
    return load_results(path)


def choose_queries(results: Sequence[Mapping[str, Any]], count: int) -> list[int]:
    """Choose queries by a rule that covers good and bad results.

    Args:
        results: the per-query results of one model; draw the same ids for the others.
        count: how many to choose; fewer if there are fewer.

    Returns:
        ids of queries at equal distances from the worst to the best average precision, both
        ends included; ties in the order of the ids. Queries whose person is in no gallery image
        are left out.
    """
    ranked = sorted((r["AP"], r["query_id"]) for r in results if r["AP"] is not None)
    return _at_equal_distances([query_id for _, query_id in ranked], count)


def choose_good_queries(
    results: Sequence[Mapping[str, Any]], count: int, top_k: int = 5
) -> list[int]:
    """Choose queries that show a search that works; see :data:`GOOD_CHOICE`.

    Args:
        results: the per-query results of one model.
        count: how many to choose; fewer if there are fewer.
        top_k: matches that are shown, of which two must be right.

    Returns:
        ids of queries, ascending.
    """
    aps = [r["AP"] for r in results if r["AP"] is not None]
    if not aps:
        return []
    least = np.percentile(aps, 75)
    good = [
        r["query_id"]
        for r in results
        if r["AP"] is not None
        and r["AP"] >= least
        and sum(match["correct"] for match in r["matches"][:top_k]) >= 2
    ]
    return _at_equal_distances(sorted(good), count)


def _at_equal_distances(ids: Sequence[int], count: int) -> list[int]:
    places = np.linspace(0, len(ids) - 1, min(count, len(ids))).round().astype(int)
    return [ids[place] for place in places]


def draw_search_results(
    results: Sequence[Mapping[str, Any]],
    dataset_dicts: Sequence[Mapping[str, Any]],
    query_ids: Sequence[int],
    top_k: int = 5,
    *,
    tile_width: int = 300,
    read: Callable[[str], np.ndarray] = functools.partial(read_image, format="RGB"),
) -> np.ndarray:
    """Draw ranked results, one row per query; see :data:`LEGEND`.

    Args:
        results: per-query results, see :func:`load_search_results`.
        dataset_dicts: of the test set that was evaluated.
        query_ids: the rows, in this order.
        top_k: results per row; the evaluator saves ten.
        tile_width: pixels of one tile; text grows with it.
        read: file name to (H, W, 3) uint8 RGB. A picture that cannot be read becomes a grey tile.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: a query id is in none of the results, or the results are of another data set.
    """
    rows = result_tiles(results, dataset_dicts, query_ids, top_k, read=read)
    width, height = tile_size(tile_width)
    gap = tile_width // 30
    canvas = Image.new(
        "RGB",
        (width * (top_k + 1) + gap * (top_k + 2), (height + gap) * len(query_ids) + gap),
        PAPER,
    )
    for row, tiles in enumerate(rows):
        for column, tile in enumerate(tiles):
            place = (gap + column * (width + gap), gap + row * (height + gap))
            canvas.paste(render_tile(tile, tile_width), place)
    return np.asarray(canvas)


def result_tiles(
    results: Sequence[Mapping[str, Any]],
    dataset_dicts: Sequence[Mapping[str, Any]],
    query_ids: Sequence[int],
    top_k: int = 5,
    *,
    read: Callable[[str], np.ndarray] = functools.partial(read_image, format="RGB"),
) -> Iterator[list[Tile]]:
    """For every query its own tile and those of its best matches; see :func:`draw_search_results`
    for arguments and errors."""
    if not query_ids or top_k < 1:
        raise ValueError("nothing to draw: no query ids, or top_k below 1")
    by_query = {r["query_id"]: r for r in results}
    scenes = _Scenes(dataset_dicts, read)
    for query_id in query_ids:
        if query_id not in by_query:
            raise ValueError(f"query {query_id!r} is in none of the {len(by_query)} results")
        result = by_query[query_id]
        record, query = scenes.query(query_id)
        tiles = [_query_tile(result, query, scenes.image(record))]
        for rank, match in enumerate(result["matches"][:top_k], 1):
            found = scenes.record(match["image_id"])
            tiles.append(_match_tile(rank, match, query, found, scenes.image(found)))
        yield tiles


def _query_tile(result: Mapping[str, Any], query: Mapping[str, Any], scene) -> Tile:
    return Tile(
        title=f"query {result['query_id']}",
        scene=scene,
        box=tuple(query["bbox"]),
        lines=[
            ("AP n/a" if result["AP"] is None else f"AP {result['AP']:.1f} %", INK),
            (f"found {result['num_found']} of {result['num_gt']}", FAINT_INK),
        ],
        ground=PANEL,
    )


def _match_tile(rank: int, match, query, record, scene) -> Tile:
    correct = bool(match["correct"])
    truth = None if correct else _true_box(record, query["person_id"])
    repeated = truth is not None and _is_on(match["bbox"], truth)
    if correct:
        verdict = ("right", RIGHT)
    elif repeated:
        verdict = ("wrong: repeated", WRONG)
    else:
        verdict = ("wrong: see dashes" if truth else "wrong: not here", WRONG)
    return Tile(
        title=f"rank {rank}",
        scene=scene,
        box=tuple(match["bbox"]),
        correct=correct,
        truth=None if repeated else truth,
        lines=[
            verdict,
            (f"similarity {match['similarity']:.2f}", INK),
            (f"score {match['score']:.2f}", FAINT_INK),
        ],
    )


def _true_box(record: Mapping[str, Any], person_id: int) -> Optional[Box]:
    for annotation in record["annotations"]:
        if annotation["person_id"] == person_id:
            return tuple(annotation["bbox"])
    return None


def _is_on(box: Sequence[float], truth: Box) -> bool:
    """Whether a box matches the true one by the protocol; a second match counts as wrong."""
    boxes = np.asarray([box, truth], dtype=np.float64)
    overlap = iou_of_pairs(boxes[:1], boxes[1:])
    return bool(overlap[0] >= search_iou_threshold(boxes[1:])[0])


class _Scenes:
    """Dataset dicts and their pictures by id, with a cache of decoded pictures."""

    def __init__(self, dataset_dicts, read: Callable[[str], np.ndarray]) -> None:
        self._records = {record["image_id"]: record for record in dataset_dicts}
        self._queries = {
            query["query_id"]: (record, query)
            for record in dataset_dicts
            for query in record.get("queries", ())
        }
        self._read = functools.lru_cache(maxsize=16)(read)

    def query(self, query_id: int) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        if query_id not in self._queries:
            raise ValueError(f"query {query_id!r} is not in this data set: are these its results?")
        return self._queries[query_id]

    def record(self, image_id) -> Mapping[str, Any]:
        if image_id not in self._records:
            raise ValueError(f"image {image_id!r} is not in this data set: are these its results?")
        return self._records[image_id]

    def image(self, record: Mapping[str, Any]) -> Optional[np.ndarray]:
        try:
            return self._read(record["file_name"])
        except ImageError:
            return None
