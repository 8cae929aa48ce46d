"""Re-ranking of a block of queries by context, for all searched sets at once; see :mod:`.cbgm`."""

import numpy as np

from kd_search.evaluation.search.cbgm import (
    Contexts,
    match_context,
)
from kd_search.evaluation.search.ranking.gallery_mask import SearchedColumns
from kd_search.evaluation.search.ranking.hits import Moved
from kd_search.evaluation.search.ranking.top_k import best_of_sets
from kd_search.evaluation.similarity import Similarity


class Reranker:
    """Finds the detections whose similarities the context of a query changes.

    Args:
        contexts: of all queries.
        k1: how many detections lead to the images that are looked at again.
        sets: the searched sets of re-ranked views.
        columns: what they search.
        similarity: of the detections.
        image_index: (N,) image of each detection.
    """

    def __init__(
        self,
        contexts: Contexts,
        k1: int,
        sets: list[int],
        columns: SearchedColumns,
        similarity: Similarity,
        image_index: np.ndarray,
    ):
        self._contexts, self._k1, self._sets = contexts, k1, sets
        self._columns, self._similarity = columns, similarity
        self._image_index = image_index

    def move(self, start: int, rows: np.ndarray) -> dict[int, Moved]:
        """New similarities by context, for each set that a re-ranked view searches.

        Args:
            start: first query of the block; rows: (B, columns) similarities of the block.
        """
        size, offsets = len(rows), self._contexts.offsets[start : start + len(rows) + 1]
        # Alone, a query is matched to its most similar detection, which keeps its value.
        accompanied = np.flatnonzero(np.diff(offsets))
        sets = self._sets
        tops = [best_of_sets(self._columns, q, rows[q], sets, self._k1) for q in accompanied]
        # One row for each image to look at again: set, query, image; sorted.
        lengths = [len(top[k]) for top in tops for k in sets]
        columns = np.concatenate([top[k] for top in tops for k in sets] or [np.zeros(0, np.int64)])
        number = np.repeat(np.tile(np.arange(len(sets)), len(accompanied)), lengths)
        query = np.repeat(np.repeat(accompanied, len(sets)), lengths)
        count = self._columns.num_images
        keys = np.unique((number * size + query) * count + self._image_index[columns])
        number, pair = np.divmod(keys, size * count)
        # Several sets share a pair of query and image.
        pairs, pair = np.unique(pair, return_inverse=True)
        column, new = self._match(rows, *np.divmod(pairs, count), offsets)
        moved = {}
        for n, k in enumerate(sets):
            own = pair[number == n]
            own = own[column[own] >= 0]
            query = pairs[own] // count
            wanted = ~self._columns.is_junk(k, query, column[own])
            own, query = own[wanted], query[wanted]
            slot = np.arange(len(own)) - np.searchsorted(query, query, side="left")
            change = Moved.nothing(size, self._k1)
            change.column[query, slot] = column[own]
            change.old[query, slot] = rows[query, column[own]]
            change.new[query, slot] = new[own]
            moved[k] = change
        return moved

    def _match(self, rows, query, images, offsets):
        """(I,) matched column, -1 for none, and (I,) its new similarity, of queries and images."""
        columns, counts = self._columns.columns_of_images(images)
        start = np.cumsum(counts) - counts
        image = np.repeat(np.arange(len(images)), counts)
        place = np.arange(len(columns)) - start[image]
        people = 1 + int(np.diff(offsets).max(initial=0))
        similarity = np.full((people, len(images), counts.max(initial=1)), -np.inf)
        similarity[0, image, place] = rows[query[image], columns]
        bounds = np.searchsorted(query[image], np.arange(len(rows) + 1))
        for q in np.unique(query):
            part = slice(bounds[q], bounds[q + 1])
            context = self._contexts.embeddings[offsets[q] : offsets[q + 1]]
            similarity[1 : 1 + len(context), image[part], place[part]] = (
                self._similarity.of_columns(context, columns[part])
            )
        matched, new = match_context(similarity, counts, 1 + np.diff(offsets)[query])
        # An image of which nobody is matched to the query, or a block without images.
        there = matched >= 0
        column = np.full(len(images), -1, np.int64)
        column[there] = columns[start[there] + matched[there]]
        return column, new
