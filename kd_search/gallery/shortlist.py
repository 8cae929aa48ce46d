"""Re-ranking of the best results of a search by a query-guided network."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Optional

import numpy as np

from kd_search.utils.pictures import ImageError

from .results import Hit
from .scenes import read_scene
from .tracklets import overlap

#: Intersection over union from which a detection is on a result.
SAME_PERSON = 0.5


def rerank(
    results: Sequence[dict[str, Any]], searcher: Any, query: Any, shortlist: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Order the first results by a network that compares their pictures with the query's.

    Each picture is read again, once. A result has the similarity of the detection that overlaps it
    most. Those on which the network finds nobody come after the others of the shortlist, in their
    order, and the remaining results after them.

    Args:
        results: of :func:`.ranking.ranked`, most similar first.
        searcher: a :class:`kd_search.runtime.QueryGuidedSearcher`.
        query: of its ``query``.
        shortlist: number of results to order.

    Returns:
        The results with ``query_guided_similarity``, which is ``None`` where there is none; and a
        line for each picture that cannot be read, whose results count as those without a person.
    """
    first = results[:shortlist]
    scenes: dict[tuple[str, Optional[float]], list[int]] = defaultdict(list)
    for place, result in enumerate(first):
        scenes[result["path"], result["second"]].append(place)
    found: list[Optional[float]] = [None] * len(first)
    errors = []
    names = [field.name for field in fields(Hit)]
    for places in scenes.values():
        hit = Hit(**{name: first[places[0]][name] for name in names})
        try:
            people = searcher.search(query, read_scene(hit, searcher.manifest["max_pixels"]))
        except ImageError as error:
            errors.append(str(error))
            continue
        if not len(people.boxes):
            continue
        for place in places:
            overlaps = overlap(np.array([first[place]["box"]]), people.boxes)[0]
            if overlaps.max() >= SAME_PERSON:
                found[place] = float(people.similarities[overlaps.argmax()])
    order = sorted(range(len(first)), key=lambda i: (found[i] is None, -(found[i] or 0)))
    ordered = [{**first[i], "query_guided_similarity": found[i]} for i in order]
    rest = [{**result, "query_guided_similarity": None} for result in results[shortlist:]]
    return ordered + rest, errors
