"""A gallery list of few queries and pictures, for networks whose search of a set is expensive."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kd_search.evaluation.search.test_set import Annotations

# The sample of a set is the same in every evaluation.
_SEED = 0


@dataclass(frozen=True)
class GallerySample:
    """Number of queries, and of pictures for each of them."""

    queries: int
    pictures: int

    def __post_init__(self) -> None:
        for name, least in (("queries", 1), ("pictures", 4)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"TEST.PERSON_SEARCH.SAMPLE_{name.upper()} {getattr(self, name)} must be at "
                    f"least {least}"
                )

    @property
    def name(self) -> str:
        """Of the list among those of a set."""
        return f"sample{self.queries}x{self.pictures}"

    def lists(self, annotations: Annotations) -> Mapping[str, Any]:
        """The list, as :func:`galleries_from_metadata` reads it.

        Queries are drawn among those whose person is in another picture. The gallery of each has
        pictures of the person, a quarter of all at most, and others; its own picture is left out.
        A set with fewer queries or pictures is in the list as a whole.
        """
        rng = np.random.default_rng(_SEED)
        truth = annotations.ground_truth
        pool = np.flatnonzero(annotations.in_gallery)
        found = []
        for query in range(len(annotations.query_ids)):
            own = annotations.query_image_index[query]
            rows = np.flatnonzero(truth.person_ids == annotations.query_person_ids[query])
            rows = rows[truth.image_index[rows] != own]
            # An identity that was annotated twice in a picture counts once.
            found.append(rows[np.unique(truth.image_index[rows], return_index=True)[1]])
        able = np.flatnonzero([len(rows) > 0 for rows in found])
        chosen = np.sort(rng.permutation(able)[: self.queries])
        images, boxes, offsets = [], [], [0]
        for query in chosen:
            rows = np.sort(rng.permutation(found[query])[: self.pictures // 4])
            others = np.setdiff1d(pool, truth.image_index[found[query]])
            others = others[others != annotations.query_image_index[query]]
            others = np.sort(rng.permutation(others)[: self.pictures - len(rows)])
            images += [truth.image_index[rows], others]
            boxes += [truth.boxes[rows], np.full((len(others), 4), np.nan)]
            offsets.append(offsets[-1] + len(rows) + len(others))
        arrays = {
            "query_ids": annotations.query_ids[chosen],
            "offsets": np.array(offsets),
            "images": np.concatenate([np.zeros(0, np.int64), *images]),
            "boxes": np.concatenate([np.zeros((0, 4)), *boxes]),
        }
        return {self.name: arrays}
