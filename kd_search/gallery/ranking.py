"""A search with marks: ranked results as they are shown, printed and exported."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Optional

import numpy as np

from .capture import show_time
from .marks import Marks
from .results import Filter
from .search import Gallery


def ranked(
    gallery: Gallery,
    embeddings: Sequence[np.ndarray],
    marks: Marks,
    calibration: Optional[Mapping[str, Any]],
    where: Optional[Filter] = None,
    *,
    top_k: int = 20,
    per: str = "picture",
    without: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Search for a person, nearer to the results marked as right and without those marked as wrong.

    Args:
        gallery: to search.
        embeddings: of the wanted person, (D,) each.
        marks: of earlier results.
        calibration: of the network's manifest.
        where, top_k, per: as :meth:`Gallery.search`.
        without: ids of people to leave out, such as those of the query picture.

    Returns:
        The fields of :class:`Hit` with ``verdict``, ``mark`` ("right" or ``None``) and
        ``time_text``, most similar to the refined query first. ``similarity`` is that to the query
        itself: what it means is not known after marks have moved it.

    Raises:
        GalleryError: a marked person is not in the gallery (any more).
    """
    from kd_search.runtime.verdict import verdict  # imports onnxruntime

    query = gallery.wanted(embeddings)
    right, wrong = marks.right, marks.wrong
    moved = marks.refine(
        query, [gallery.embedding(i) for i in right], [gallery.embedding(i) for i in wrong]
    )
    results = []
    for hit in gallery.search(moved, top_k, where, per=per, without=[*without, *wrong]):
        similarity = hit.similarity
        if right or wrong:
            similarity = float(query @ gallery.embedding(hit.id))
        results.append(
            {
                **asdict(hit),
                "similarity": similarity,
                "verdict": verdict(calibration, similarity),
                "mark": "right" if hit.id in right else None,
                "time_text": None if hit.time is None else show_time(hit.time),
            }
        )
    return results
