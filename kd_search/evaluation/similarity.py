"""Cosine similarities in float64, in blocks of queries: memory does not grow with the queries."""

from collections.abc import Iterator

import numpy as np

# Similarities are rounded to multiples of 2^-44 (6e-14): adding and subtracting 1.5 * 2^8 drops
# the bits below. A matrix product may sum in another order near the edge of the matrix, so that
# equal embeddings would differ in the last bit; rounded, they tie wherever they lie.
_ROUNDING = 384.0
# Bytes of one block of similarities; a block is as many queries as fit, but never few, since a
# product with few rows is slow.
_BLOCK_BYTES = 48 << 20
_MIN_QUERIES = 32
# Above this size the embeddings are not kept in float64, but converted part by part, each time.
_FLOAT64_BYTES = 256 << 20
# Entries that one maximum stands for when the best of a row are looked for.
CHUNK = 128


class Similarity:
    """Similarities of queries and N detections.

    Args:
        embeddings: (N, D) of the detections, unit length.
    """

    def __init__(self, embeddings: np.ndarray):
        self._count, dim = embeddings.shape
        #: Length of a row: N, filled up with -inf to whole chunks.
        self.columns = -(-max(self._count, 1) // CHUNK) * CHUNK
        self._parts = [(0, embeddings)]
        if 8 * dim * self.columns <= _FLOAT64_BYTES:
            # Padded: where the product is not, BLAS gives the last columns other bits.
            whole = np.zeros((self.columns, dim))
            whole[: self._count] = embeddings
            self._parts = [(0, whole)]
        else:
            step = max(CHUNK, (_FLOAT64_BYTES // 8 // (8 * dim)) // CHUNK * CHUNK)
            self._parts = [
                (first, embeddings[first : first + step]) for first in range(0, self._count, step)
            ]

    def blocks(self, queries: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Similarities of queries (Q, D), block by block.

        Yields:
            (number of the first query, (B, columns) float64). The array is used again for the
            next block.
        """
        size = max(_BLOCK_BYTES // (8 * self.columns), min(_MIN_QUERIES, len(queries)), 1)
        block = np.zeros((min(size, max(len(queries), 1)), self.columns))
        for start in range(0, len(queries), len(block)):
            embeddings = queries[start : start + len(block)]
            yield start, self._fill(embeddings.astype(np.float64), block[: len(embeddings)])

    def of_columns(self, embeddings: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """(B, C) similarities of embeddings (B, D) and some detections (C,)."""
        if len(self._parts) == 1:
            chosen = self._parts[0][1].take(columns, axis=0)
        else:
            step = len(self._parts[0][1])
            chosen = np.stack([self._parts[c // step][1][c % step] for c in columns])
        chosen = chosen.astype(np.float64, copy=False)
        return round_similarity(embeddings.astype(np.float64) @ chosen.T)

    def _fill(self, queries: np.ndarray, out: np.ndarray) -> np.ndarray:
        if self._count:
            for first, part in self._parts:
                columns = out[:, first : first + len(part)]
                if part.dtype == np.float64 and len(part) == self.columns:
                    np.matmul(queries, part.T, out=columns)
                else:
                    columns[:] = queries @ _padded(part).T[:, : len(part)]
        round_similarity(out)
        out[:, self._count :] = -np.inf
        return out


def round_similarity(similarity: np.ndarray) -> np.ndarray:
    """Round in place, see above, and return the array."""
    similarity += _ROUNDING
    similarity -= _ROUNDING
    return similarity


def _padded(rows: np.ndarray) -> np.ndarray:
    whole = np.zeros((-(-len(rows) // CHUNK) * CHUNK, rows.shape[1]))
    whole[: len(rows)] = rows
    return whole


def best_columns(row: np.ndarray, count: int) -> np.ndarray:
    """Columns of at least the ``count`` highest entries of a row, best first, equals in order.

    Fewer if the row has fewer above -inf; more where many are as high as the last.

    Args:
        row: (columns,), a multiple of ``CHUNK`` long.
    """
    candidates = candidates_of_best(row, count)
    return candidates[(-row[candidates]).argsort(kind="stable")]


def candidates_of_best(row: np.ndarray, count: int) -> np.ndarray:
    """Ascending columns that hold the ``count`` highest entries of a row, and some more.

    Fewer if the row has fewer above -inf.

    Args:
        row: (columns,), a multiple of ``CHUNK`` long.
    """
    maxima = row.reshape(-1, CHUNK).max(axis=1)
    # The count-th highest maximum cannot be above the count-th highest entry. With fewer chunks
    # than that, every searched column is a candidate.
    return above(row, np.partition(maxima, -count)[-count] if count <= len(maxima) else -np.inf)


def above(row: np.ndarray, bound: float) -> np.ndarray:
    """Ascending columns of the entries that are ``bound`` or higher, but not -inf."""
    return (row >= bound if bound > -np.inf else row > -np.inf).nonzero()[0]
