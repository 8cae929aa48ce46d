"""Context bipartite graph matching (CBGM): re-ranking by the people around the query.

Li and Miao, "Sequential End-to-end Network for Efficient Person Search" (SeqNet), AAAI 2021,
section 3.4. The images that hold the k1 most similar detections of a gallery are matched again:

1. The context of a query is its own box and the k2 - 1 highest-scoring detections of its image.
   Their embeddings count in full, even where similarities to the gallery are weighted by the score:
   the authors' code switches its weighting off for query images.
2. In a gallery image, the context and the detections are matched one to one, so that the sum of
   their similarities is as large as possible.
3. The detection that is matched to the query itself gets the largest similarity of that matching.

The paper does not specify the choice among matchings of equal sum; here it is the one that gives
the query, then the first of its neighbours, and so on, a detection as similar as possible, of
equals the first. All matchings of a block of queries are tried at once. Only contexts of more than
4, and images with fewer detections than people, go to scipy's ``linear_sum_assignment``, which
makes its own choice.
"""

import itertools

import numpy as np

from kd_search.evaluation.flat_arrays import Contexts
from kd_search.evaluation.similarity import Similarity

from ._block import GalleryMask, RerankedScores

# Largest context whose 4^4 choices are all tried; scipy is faster above it.
_TRY_ALL = 4


def rerank(
    rows: np.ndarray, mask: GalleryMask, similarity: Similarity, contexts: Contexts, k1: int
) -> dict[int, RerankedScores]:
    """Compute new similarities of a block of queries, for each set of a re-ranked protocol.

    Args:
        rows: (B, columns) similarities of the block.
        contexts: of all queries.
        k1: number of detections whose images are matched again.
    """
    size, count, sets = len(rows), mask.index.num_images, mask.index.reranked_sets
    offsets = contexts.offsets[mask.start : mask.start + size + 1]
    # A query without neighbours gets its most similar detection, which keeps its similarity.
    accompanied = np.flatnonzero(np.diff(offsets))
    tops = [mask.most_similar(int(q), rows[q], sets, k1) for q in accompanied]
    # One row for each image to match again: set, query, image; sorted.
    lengths = [len(top[k]) for top in tops for k in sets]
    columns = np.concatenate([top[k] for top in tops for k in sets] or [np.zeros(0, np.int64)])
    number = np.repeat(np.tile(np.arange(len(sets)), len(accompanied)), lengths)
    query = np.repeat(np.repeat(accompanied, len(sets)), lengths)
    keys = np.unique((number * size + query) * count + mask.index.image_index[columns])
    number, pair = np.divmod(keys, size * count)
    # Several sets share a pair of query and image.
    pairs, pair = np.unique(pair, return_inverse=True)
    query, images = np.divmod(pairs, count)
    columns, counts = mask.columns_of_images(images)
    start = np.cumsum(counts) - counts
    image = np.repeat(np.arange(len(images)), counts)
    place = np.arange(len(columns)) - start[image]
    people = 1 + int(np.diff(offsets).max(initial=0))
    blocks = np.full((people, len(images), counts.max(initial=1)), -np.inf)
    blocks[0, image, place] = rows[query[image], columns]
    bounds = np.searchsorted(query[image], np.arange(size + 1))
    for q in np.unique(query):
        part = slice(bounds[q], bounds[q + 1])
        around = similarity.of_columns(
            contexts.embeddings[offsets[q] : offsets[q + 1]], columns[part]
        )
        blocks[1 : 1 + len(around), image[part], place[part]] = around
    matched, new = _match_context(blocks, counts, 1 + np.diff(offsets)[query])
    column = np.full(len(images), -1, np.int64)
    column[matched >= 0] = columns[(start + matched)[matched >= 0]]
    reranked = {}
    for n, k in enumerate(sets):
        own = pair[number == n]
        own = own[column[own] >= 0]
        own = own[~mask.is_junk(k, query[own], column[own])]
        slot = np.arange(len(own)) - np.searchsorted(query[own], query[own], side="left")
        place = query[own], slot
        change = reranked[k] = RerankedScores(
            np.full((size, k1), -1), np.full((size, k1), -np.inf), np.full((size, k1), -np.inf)
        )
        change.column[place] = column[own]
        change.old[place] = rows[query[own], column[own]]
        change.new[place] = new[own]
    return reranked


def _match_context(
    similarity: np.ndarray, counts: np.ndarray, people: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Match contexts with the detections of images, for many pairs of query and image at once.

    Args:
        similarity: (K, I, M) of the up to K people of the query's context, the query first, and
            the up to M detections of the image, for I pairs; -inf beyond either.
        counts: (I,) detections of the image, at least 1.
        people: (I,) people of the context, at least 1.

    Returns:
        (I,) the detection matched to the query, -1 for none, which can happen where there are fewer
        detections than people; (I,) the largest similarity of the matching.
    """
    # Absent people get choices of their own, which conflict with no other.
    number = np.arange(len(similarity))[:, None]
    choice = np.where(number >= people, -1 - number, similarity.argmax(axis=2))
    value = similarity.max(axis=(0, 2))
    matched = choice[0].copy()
    ranked = np.sort(choice, axis=0)
    conflict = (ranked[1:] == ranked[:-1]).any(axis=0) | (counts < people)
    small = conflict & (counts >= people) & (people <= _TRY_ALL)
    for size in np.unique(people[small]):
        pairs = np.flatnonzero(small & (people == size))
        matched[pairs], value[pairs] = _try_all(similarity[:size, pairs])
    conflict &= ~small
    if conflict.any():
        # Imported here, so that evaluation without re-ranking does not need scipy.
        from scipy.optimize import linear_sum_assignment

        for pair in np.flatnonzero(conflict):
            block = similarity[: people[pair], pair, : counts[pair]]
            rows, columns = linear_sum_assignment(block, maximize=True)
            matched[pair] = columns[0] if rows[0] == 0 else -1
            value[pair] = block[rows, columns].max()
    return matched, value


def _try_all(similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """:func:`_match_context` for (K, I, M) with at least K detections in each image.

    K choices a person are enough: of a person's K most similar detections, the K - 1 others leave
    one free, which is at least as good as any beyond them.
    """
    people, count, _ = similarity.shape
    # A stable sort, so that equal detections are tried in the given order.
    choices = np.argsort(-similarity, axis=2, kind="stable")[:, :, :people]
    values = np.take_along_axis(similarity, choices, axis=2)
    combinations = np.array(list(itertools.product(range(people), repeat=people)))
    total = np.zeros((len(combinations), count))
    for person in range(people):
        total += values[person][:, combinations[:, person]].T
    for one, other in itertools.combinations(range(people), 2):
        same = choices[one][:, combinations[:, one]] == choices[other][:, combinations[:, other]]
        total[same.T] = -np.inf
    best = combinations[total.argmax(axis=0)]  # (I, K)
    pair = np.arange(count)
    value = np.stack([values[k, pair, best[:, k]] for k in range(people)]).max(axis=0)
    return choices[0, pair, best[:, 0]], value
