"""Cosine similarities in float64, computed in blocks of queries to bound memory."""

from collections.abc import Iterator
from typing import Optional, Union

import numpy as np

# Similarities are rounded to multiples of 2^-44 (6e-14): adding and subtracting 1.5 * 2^8 drops
# the bits below. A matrix product may sum in another order near the edge of the matrix, so that
# equal embeddings would differ in the last bit; after rounding they tie.
_ROUNDING = 384.0
# Bytes of one block of similarities, and its minimum of queries: products with few rows are slow.
_BLOCK_BYTES = 48 << 20
_MIN_QUERIES = 16
# Above this size the embeddings are not kept in float64, but converted in parts for each block.
_FLOAT64_BYTES = 128 << 20
#: Lower bound of all similarities, which the padding -inf does not reach.
LOWEST = np.finfo(np.float64).min
# Entries per maximum in the search for the best of a row.
CHUNK = 128


class Similarity:
    """Similarities of queries and N detections.

    Args:
        embeddings: (M, D) unit length.
        rows: (N,) the rows that are the detections; None for all.
        weights: (N,) factors of the similarities of each detection; None for none.
    """

    def __init__(
        self,
        embeddings: np.ndarray,
        rows: Optional[np.ndarray] = None,
        weights: Optional[np.ndarray] = None,
    ):
        self._embeddings, self._weights = embeddings, weights
        # All rows in order need no copy: there may be half a million.
        self._rows = None if rows is None or len(rows) == len(embeddings) else rows
        self._count = len(embeddings) if rows is None else len(rows)
        #: Length of a row: N, padded with -inf to whole chunks.
        self.columns = -(-max(self._count, 1) // CHUNK) * CHUNK
        bytes_per_row = 8 * max(embeddings.shape[1], 1)
        self._step = self.columns
        if bytes_per_row * self.columns > _FLOAT64_BYTES:
            self._step = max(CHUNK, _FLOAT64_BYTES // 8 // bytes_per_row // CHUNK * CHUNK)
        self._whole = self._part(0) if self._step == self.columns else None

    def blocks(self, queries: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Compute the similarities of queries (Q, D), block by block.

        Yields:
            (first query, (B, columns) float64). The next block overwrites the array.
        """
        size = max(_BLOCK_BYTES // (8 * self.columns), min(_MIN_QUERIES, len(queries)), 1)
        block = np.zeros((min(size, max(len(queries), 1)), self.columns))
        for start in range(0, len(queries), len(block)):
            embeddings = queries[start : start + len(block)]
            yield start, self._fill(embeddings.astype(np.float64), block[: len(embeddings)])

    def of_columns(self, embeddings: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """(B, C) similarities of embeddings (B, D) and some detections (C,)."""
        if self._whole is not None:
            chosen = self._whole.take(columns, axis=0)
        else:
            chosen = self._float64(columns)
        return round_similarity(embeddings.astype(np.float64) @ chosen.T)

    def _fill(self, queries: np.ndarray, out: np.ndarray) -> np.ndarray:
        if not self._count:
            # Without detections, the length of the embeddings may be unknown.
            out[:] = -np.inf
            return out
        if self._whole is not None:
            np.matmul(queries, self._whole.T, out=out)
        else:
            for first in range(0, self.columns, self._step):
                part = self._part(first)
                out[:, first : first + len(part)] = queries @ part.T
        round_similarity(out)
        out[:, self._count :] = -np.inf
        return out

    def _part(self, first: int) -> np.ndarray:
        """Detections from ``first`` on in float64, at most a step of them, padded to whole chunks.

        In a product of other sizes, BLAS computes the last columns with other rounding.
        """
        last = min(first + self._step, self.columns)
        rows = np.zeros((last - first, self._embeddings.shape[1]))
        found = max(0, min(last, self._count) - first)
        rows[:found] = self._float64(slice(first, first + found))
        return rows

    def _float64(self, columns: Union[np.ndarray, slice]) -> np.ndarray:
        rows = columns if self._rows is None else self._rows[columns]
        chosen: np.ndarray = self._embeddings[rows].astype(np.float64)
        if self._weights is not None:
            chosen *= self._weights[columns, None]
        return chosen


def round_similarity(similarity: np.ndarray) -> np.ndarray:
    """Round to multiples of 2^-44 in place, and return the array."""
    similarity += _ROUNDING
    similarity -= _ROUNDING
    return similarity


def best_columns(row: np.ndarray, count: int) -> np.ndarray:
    """Columns of at least the ``count`` highest entries of a row, best first, equals in order.

    Fewer if the row has fewer above -inf.

    Args:
        row: (columns,), a multiple of ``CHUNK`` long.
    """
    candidates = candidates_of_best(row, count)
    best: np.ndarray = candidates[(-row[candidates]).argsort(kind="stable")]
    return best


def candidates_of_best(row: np.ndarray, count: int) -> np.ndarray:
    """Ascending columns that hold the ``count`` highest entries of a row, and some more.

    Fewer if the row has fewer above -inf.

    Args:
        row: (columns,), a multiple of ``CHUNK`` long.
    """
    maxima = row.reshape(-1, CHUNK).max(axis=1)
    # The count-th highest maximum is not above the count-th highest entry. With fewer chunks,
    # every searched column is a candidate.
    bound = np.partition(maxima, -count)[-count] if count <= len(maxima) else LOWEST
    return np.flatnonzero(row >= max(bound, LOWEST))
