"""The rows most similar to an embedding, exactly."""

import threading
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np

try:
    import faiss  # type: ignore[import-not-found,unused-ignore]
except ImportError:
    faiss: Any = None  # type: ignore[no-redef]

#: Rows that are looked at beyond those wanted, and how much less similar the last must be: products
#: in float32 depend on the order of their sums.
MORE, _ROUNDING = 16, 2e-6
#: Rows that are copied at once, so that they stay in the cache of the processor.
_BLOCK = 512
#: From that number of neighbours on, FAISS's heap is slower than a whole product.
_HEAP = 512


class Matrix:
    """The embeddings of several segments as one matrix of N rows, without copying them."""

    def __init__(self, parts: Sequence[np.ndarray], live: Optional[np.ndarray] = None):
        """
        Args:
            parts: each (rows, D) float32.
            live: (N,) bool, rows that may be found; ``None`` for all.
        """
        self.parts = parts
        self._local = threading.local()
        self.live = live
        self.starts = np.cumsum([0, *map(len, parts)])
        self.num_live = int(self.starts[-1] if live is None else np.count_nonzero(live))

    def top(
        self,
        query: np.ndarray,
        k: int,
        rows: Optional[np.ndarray] = None,
        *,
        use_faiss: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the most similar rows.

        Args:
            query: (D,) float32.
            k: how many; fewer if there are fewer.
            rows: row numbers to choose from, ascending; ``None`` for all that are live.
            use_faiss: if it is installed. The result is the same without.

        Returns:
            (K,) row numbers, most similar first, rows of equal similarity in their order, and (K,)
            float64 dot products.
        """
        query = np.ascontiguousarray(query, np.float32)
        total = self.num_live if rows is None else len(rows)
        k = min(k, total)
        if not k:
            return np.zeros(0, np.int64), np.zeros(0)
        want = min(k + MORE, total)
        while True:
            best = self._candidates(query, want, rows, use_faiss and faiss is not None)
            best, exact = self.ranked(query, best, want)
            if want == total or exact[k - 1] - exact[-1] > _ROUNDING:
                return best[:k], exact[:k]
            want = min(4 * want, total)  # rows that are left out may be equal to the last

    def ranked(self, query: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` most similar of some rows, as :meth:`top` returns them."""
        exact = self.take(rows).astype(np.float64) @ query.astype(np.float64)
        order = np.lexsort((rows, -exact))[:k]
        return rows[order], exact[order]

    def _candidates(
        self, query: np.ndarray, want: int, rows: Optional[np.ndarray], use_faiss: bool
    ) -> np.ndarray:
        """The ``want`` most similar rows up to rounding, in any order."""
        if rows is None and use_faiss and want <= _HEAP:
            return self._by_faiss(query, want)
        if rows is None:
            return _largest(self._product(query), want)
        ends = np.searchsorted(rows, self.starts)
        similarity = np.empty(len(rows), np.float32)
        buffer = self._buffer(len(query))
        for part, start, first, end in zip(self.parts, self.starts, ends, ends[1:]):
            for begin in range(first, end, _BLOCK):
                block = slice(begin, min(begin + _BLOCK, end))
                local = rows[block] - start
                chosen = part.take(local, axis=0, out=buffer[: len(local)], mode="clip")
                np.dot(chosen, query, out=similarity[block])
        return rows[_largest(similarity, want)]

    def _buffer(self, dim: int) -> np.ndarray:
        """(_BLOCK, D) of this thread: new memory would cost more time than what is put into it."""
        buffer = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = self._local.buffer = np.empty((_BLOCK, dim), np.float32)
        return buffer

    def take(self, rows: np.ndarray) -> np.ndarray:
        """(K, D) float32 embeddings of rows."""
        part = np.searchsorted(self.starts, rows, "right") - 1
        found = np.empty((len(rows), self.parts[0].shape[1]), np.float32)
        for index in np.unique(part):
            of_part = part == index
            found[of_part] = self.parts[index][rows[of_part] - self.starts[index]]
        return found

    def _product(self, query: np.ndarray) -> np.ndarray:
        """(N,) float32 dot products; -inf for rows that are not live."""
        similarity = np.empty(self.starts[-1], np.float32)
        for part, start in zip(self.parts, self.starts):
            # Twice as fast as BLAS's product of a matrix and a vector on one thread: the rows come
            # from the memory, not from the cache of the processor.
            np.einsum("ij,j->i", part, query, out=similarity[start : start + len(part)])
        if self.live is not None:
            similarity[~self.live] = -np.inf
        return similarity

    def _by_faiss(self, query: np.ndarray, want: int) -> np.ndarray:
        found, scores = [], []
        for part, start in zip(self.parts, self.starts):
            live = None if self.live is None else self.live[start : start + len(part)]
            dead = 0 if live is None else len(part) - int(np.count_nonzero(live))
            score, index = faiss.knn(
                query[None], part, min(want + dead, len(part)), metric=faiss.METRIC_INNER_PRODUCT
            )
            if live is not None:
                keep = live[index[0]]
                score, index = score[:, keep], index[:, keep]
            found.append(index[0] + start)
            scores.append(score[0])
        rows = np.concatenate(found)
        return rows[np.argsort(-np.concatenate(scores), kind="stable")[:want]]


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    if count >= len(values):
        return np.arange(len(values))
    return np.argpartition(-values, count - 1)[:count]
