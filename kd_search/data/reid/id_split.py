"""Splits the identities of one folder into train and test, and chooses queries among the test."""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, TypeVar

from kd_search.data.person_search.id_map import OriginalID

Item = TypeVar("Item", bound=Hashable)

#: Share of the identities that are tested on, and seed of the choice, unless others are asked for.
TEST_SHARE = 1 / 3
SEED = 0


def split_ids(
    ids: Iterable[OriginalID], test_share: float = TEST_SHARE, seed: int = SEED
) -> tuple[list[OriginalID], list[OriginalID]]:
    """Train and test identities, each ascending.

    The order of the lot is that of the SHA-256 digests of ``"<seed>/<id>"``, so it is the same on
    every machine and in every version of every library.

    Args:
        ids: identities, repeats allowed.
        test_share: share of them that go to the test, rounded; at least one goes to each side.
        seed: another one gives another split.

    Raises:
        ValueError: there are fewer than two identities, or the share is not between 0 and 1.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"the share {test_share} of test identities is not between 0 and 1")
    ordered = sorted(set(ids))
    if len(ordered) < 2:
        raise ValueError(f"{len(ordered)} identities cannot be split into train and test")
    count = min(max(round(test_share * len(ordered)), 1), len(ordered) - 1)
    test = set(sorted(ordered, key=lambda original: _lot(seed, original))[:count])
    return [i for i in ordered if i not in test], [i for i in ordered if i in test]


def choose_queries(items: Sequence[tuple[OriginalID, int, Item]], seed: int = SEED) -> set[Item]:
    """One item of each identity in each of its cameras, as Market-1501 chose its queries.

    Identities seen by one camera only have no match elsewhere and give no query.

    Args:
        items: (identity, camera, item); items are told apart by their text.
        seed: of the choice, which is made as in :func:`split_ids`.
    """
    by_place: dict[tuple[OriginalID, int], list[Item]] = defaultdict(list)
    cameras: dict[OriginalID, set[int]] = defaultdict(set)
    for original, camera, item in items:
        by_place[original, camera].append(item)
        cameras[original].add(camera)
    return {
        min(candidates, key=lambda item: _lot(seed, item))
        for (original, _), candidates in by_place.items()
        if len(cameras[original]) > 1
    }


def _lot(seed: int, what: Any) -> tuple[bytes, str]:
    return hashlib.sha256(f"{seed}/{what}".encode()).digest(), str(what)
