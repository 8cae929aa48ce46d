"""Approximate searches: an index of FAISS for a gallery in a folder, and what an index misses.

The index (inverted lists, IndexIVFFlat) is a cache in the folder of a generation: it goes with it
when a compaction removes people, and can be built again. Rows that were added since are compared
one by one, and the similarities of all results are exact.
"""

import json
import zlib
from pathlib import Path
from typing import Any, Optional

import numpy as np

from kd_search.utils.files import atomic_write

from .exact import MORE, Matrix, faiss
from .manifest import GalleryError, generation_folder
from .opening import is_database, open_gallery, open_writer
from .search import Gallery

APPROXIMATE = "approximate.cache"
_MAGIC = b"kd_search approximate index 1\n"
#: Rows for each list that its centre is the mean of (FAISS asks for 39 or more), rounds of k-means.
_PER_LIST, _ROUNDS = 64, 10
#: Lists that are looked at are doubled until the recall is that, or half of all lists are.
_RECALL = 0.95
#: Searches and results of each for the recall.
_QUERIES, _RESULTS = 100, 10


class ApproximateIndex:
    """The rows of one generation in lists of similar ones."""

    def __init__(self, index: Any, path: Path):
        self.index, self.path = index, path
        self.rows = index.ntotal

    @classmethod
    def build(cls, matrix: Matrix, folder: Path) -> "ApproximateIndex":
        """Sort the rows into lists; as many lists as the root of the number of rows."""
        total, dim = int(matrix.starts[-1]), matrix.parts[0].shape[1]
        lists = max(1, min(int(total**0.5), total // _PER_LIST))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed, index.cp.niter, index.nprobe = 1, _ROUNDS, 1
        index.cp.min_points_per_centroid = 1
        chosen = np.unique(np.linspace(0, total - 1, min(total, lists * _PER_LIST)).astype(int))
        index.train(matrix.take(chosen))
        for part in matrix.parts:
            index.add(part)
        return cls(index, folder / APPROXIMATE)

    def write(self) -> None:
        """Keep it for :func:`read_index`."""
        head = json.dumps({"rows": self.rows, "lists_looked_at": self.index.nprobe}).encode()
        content = head + b"\n" + faiss.serialize_index(self.index).tobytes()
        with atomic_write(self.path) as file:
            file.write(_MAGIC + zlib.crc32(content).to_bytes(4, "little"))
            file.write(content)

    def top(
        self, query: np.ndarray, k: int, matrix: Matrix
    ) -> Optional[tuple[np.ndarray, np.ndarray]]:
        """As :meth:`Matrix.top`, without those in other lists; ``None`` if it finds too few."""
        total = int(matrix.starts[-1])
        want = (k + MORE) * total // max(matrix.num_live, 1) + 1
        found = self.index.search(query[None], min(want, self.rows))[1][0]
        found = found[found >= 0]
        if matrix.live is not None:
            found = found[matrix.live[found]]
        added = np.arange(self.rows, total)
        if len(added):
            added = added if matrix.live is None else added[matrix.live[added]]
            found = np.concatenate([found, matrix.top(query, k, added)[0]])
        if len(found) < min(k, matrix.num_live):
            return None
        return matrix.ranked(query, found, k)


def read_index(folder: Path, matrix: Matrix) -> ApproximateIndex:
    """Read the index of a generation.

    Raises:
        GalleryError: there is none, or it is damaged; names the file.
        ImportError: FAISS is not installed.
    """
    path = folder / APPROXIMATE
    _check_faiss()
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise GalleryError(f"{path}: is missing: kd-search index --approximate builds it") from None
    start = len(_MAGIC) + 4
    if content[:start] == _MAGIC + zlib.crc32(memoryview(content)[start:]).to_bytes(4, "little"):
        end = content.index(b"\n", start)
        rows = json.loads(content[start:end])["rows"]
        if rows <= matrix.starts[-1]:
            index = faiss.deserialize_index(np.frombuffer(content, np.uint8, offset=end + 1))
            return ApproximateIndex(index, path)
    raise GalleryError(f"{path}: is damaged: kd-search index --approximate builds it again")


def has_index(name: str) -> bool:
    """Whether a gallery in a folder has an approximate index (of a database: ``False``, since the
    server keeps its index up to date)."""
    if is_database(name):
        return False
    return any(Path(name).glob(f"generation-*/{APPROXIMATE}"))


def build_approximate_index(name: str) -> float:
    """Make the approximate index of a gallery, and return its recall.

    The recall is the share of the ten most similar people of an exact search that the approximate
    one finds, over a hundred people of the gallery who are searched for.

    Raises:
        GalleryError: the gallery is empty.
        ImportError: FAISS, or the driver of the database, is not installed.
    """
    with open_writer(name) as writer:
        exact = open_gallery(name)
        if not len(exact):
            raise GalleryError(f"{exact.folder}: nobody is in it: no approximate index was built")
        if is_database(name):
            writer.build_approximate_index()
            return recall(exact, open_gallery(name, approximate=True))
        _check_faiss()
        folder = generation_folder(exact.folder, exact.manifest.generation)
        index = ApproximateIndex.build(exact.matrix, folder)
        approximate = Gallery(name)
        approximate.use_index(index)
        while True:
            found = recall(exact, approximate)
            if found >= _RECALL or 2 * index.index.nprobe > index.index.nlist:
                break
            index.index.nprobe *= 2
        index.write()
        return found


def recall(exact: Any, approximate: Any) -> float:
    """Share of the results of an exact search that an approximate one has too."""
    both = total = 0
    for hit_id in exact.some_ids(_QUERIES):
        query = exact.embedding(hit_id)
        expected, found = (
            {hit.id for hit in gallery.search(query, _RESULTS, per="person", without=[hit_id])}
            for gallery in (exact, approximate)
        )
        both += len(expected & found)
        total += len(expected)
    return both / max(total, 1)


def _check_faiss() -> None:
    if faiss is None:
        raise ImportError("an approximate search needs FAISS: pip install faiss-cpu")
