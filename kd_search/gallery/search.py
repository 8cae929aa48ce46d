"""Reading a gallery: exact filters, and the people most similar to a wanted one."""

import os
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Callable, Optional, Union

import numpy as np

from kd_search.utils.files import PathLike

from .catalogue import Catalogue, read_catalogue
from .database import Database, FileRow, StaleError, Tables, row_checksum
from .exact import Matrix
from .manifest import GalleryError, Manifest, generation_folder, read_manifest
from .order import Order
from .results import PER, Filter, Hit, hit_of, mean_query, parts_of_id
from .segments import PEOPLE, SegmentReader, valid_rows

_TRIES = 5


class Gallery:
    """A gallery for searching. Several processes may read while one writes."""

    def __init__(self, folder: PathLike, *, use_faiss: bool = True, approximate: bool = False):
        """
        Args:
            folder: of the gallery.
            use_faiss: if it is installed.
            approximate: use the approximate index for searches without a filter; those with one
                are exact.

        Raises:
            GalleryError: it is none, or it is damaged, or has no approximate index; names the file.
        """
        self.folder = Path(folder)
        self._use_faiss, self._approximate = use_faiss, approximate
        self._index: Optional[Any] = None
        #: Searches with a filter for camera and time.
        self._filtered = 0
        self._readers: dict[int, SegmentReader] = {}
        self._database: Optional[Database] = None
        #: Generation, and version and checksum of its database.
        self._state: tuple[int, ...] = ()
        #: Embeddings of all rows.
        self.matrix = Matrix([])
        self.manifest: Manifest = read_manifest(folder)
        self.refresh()

    def refresh(self) -> bool:
        """Read what was written since; returns whether something was."""
        for attempt in range(_TRIES):
            manifest = read_manifest(self.folder)
            try:
                return self._read(manifest)
            except (GalleryError, FileNotFoundError):
                # A compaction may have removed the files that the manifest named.
                again = read_manifest(self.folder).generation != manifest.generation
                if not again or attempt == _TRIES - 1:
                    raise
        raise AssertionError("unreachable")

    def __len__(self) -> int:
        return self.matrix.num_live

    @property
    def files(self) -> Sequence[FileRow]:
        """State of every file that was looked at, read anew."""
        return self.tables().files

    @property
    def cameras(self) -> list[str]:
        """Names of the cameras, sorted."""
        return self._catalogue.cameras

    def search(
        self,
        query: np.ndarray,
        top_k: int = 20,
        where: Optional[Filter] = None,
        *,
        per: str = "picture",
        without: Collection[str] = (),
    ) -> list[Hit]:
        """Find the most similar people.

        Args:
            query: (D,) or (Q, D) embeddings of the wanted person in one or several pictures; the
                mean of several is searched for.
            top_k: number of results.
            where: restricts them.
            per: at most one result per ``"person"`` in a picture (none is left out), ``"picture"``
                (or frame of a video) or ``"camera"``.
            without: ids of hits to leave out.

        Raises:
            ValueError: ``per`` or the shape of ``query``.
        """
        if per not in PER:
            raise ValueError(f"per {per!r} is none of {', '.join(PER)}")
        wanted = self.wanted(query)
        for _ in range(_TRIES):
            try:
                return self._search(wanted, top_k, where, per, without)
            except StaleError:
                # A writer has removed a file of this view meanwhile.
                if not self.refresh():
                    raise
        raise GalleryError(f"{self.folder}: changes faster than it can be searched")

    def _search(
        self,
        wanted: np.ndarray,
        top_k: int,
        where: Optional[Filter],
        per: str,
        without: Collection[str],
    ) -> list[Hit]:
        pairs = self._pairs(where) if where else None
        hidden = np.array([self._row_of(hit_id) for hit_id in without], np.int64)
        chosen = None if pairs is None else self._chosen(pairs, hidden)
        total = len(self) if chosen is None else len(chosen)
        count = top_k + len(hidden)
        while True:
            rows, similarity = self._top(wanted, count, chosen)
            if len(hidden):
                seen = ~np.isin(rows, hidden)
                rows, similarity = rows[seen], similarity[seen]
            kept = self._first_of_each(rows, per, pairs)
            if len(kept) >= top_k or count >= total:
                break
            count *= 8
        return self._hits(rows[kept[:top_k]], similarity[kept[:top_k]], pairs)

    def use_index(self, index: Any) -> None:
        """Search approximately, by an index of :mod:`kd_search.gallery.approximate`."""
        self._index = index

    def some_ids(self, count: int) -> list[str]:
        """Ids of some people, from all over the gallery."""
        rows = self._pair_row[:: max(len(self._pair_row) // count, 1)][:count]
        content = self._catalogue.content[self._pair_file[self._shown(rows, None)]]
        return [f"{c}.{p}" for c, p in zip(content, self._people["person"][rows])]

    def wanted(self, query: Union[np.ndarray, Sequence[np.ndarray]]) -> np.ndarray:
        """(D,) float32 of unit length: the mean of (Q, D) embeddings, or (D,)."""
        return mean_query(query, self.manifest.embedding_dim)

    def embedding(self, hit_id: str) -> np.ndarray:
        """(D,) float32 embedding of a hit.

        Raises:
            GalleryError: it is not in the gallery (any more).
        """
        return self.matrix.take(np.array([self._row_of(hit_id)]))[0]

    def hit(self, hit_id: str, similarity: float = 1.0) -> Hit:
        """A hit by its id."""
        return self._hits(np.array([self._row_of(hit_id)]), np.array([similarity]), None)[0]

    def ids_of(self, sha256: str) -> list[str]:
        """Ids of the people in the files with that content."""
        assert self._database is not None
        numbers = self._database.ids_with(sha256)
        for index in np.flatnonzero(np.isin(self._catalogue.id, numbers)):
            rows = self._rows_of(int(index))
            if len(rows):
                content = self._catalogue.content[index]
                return [f"{content}.{person}" for person in self._people["person"][rows]]
        return []

    def people_of(self, file: FileRow) -> Optional[tuple[np.ndarray, np.ndarray]]:
        """Embeddings (N, D) and records (N,) of the people of a file.

        ``None`` for a row that is not the one of the view of the last :meth:`refresh`.
        """
        files = self._catalogue
        index = int(np.searchsorted(files.id, file.id))
        if index == len(files.id) or files.id[index] != file.id:
            return None
        if files.checksum[index] != row_checksum(file):
            return None
        rows = self._rows_of(index)
        return self.matrix.take(rows), self._people[rows]

    def tables(self) -> Tables:
        """All rows of the database, read anew."""
        self.refresh()
        assert self._database is not None
        return self._database.load()

    # -- inside ----------------------------------------------------------------------------------

    def _read(self, manifest: Manifest) -> bool:
        folder = generation_folder(self.folder, manifest.generation)
        database = self._database
        if database is None or database.path.parent != folder:
            database = Database(folder, read_only=True)
        try:
            state = database.state()
            if (manifest.generation, *state) == self._state:
                self.manifest = manifest
                return False
            catalogue = read_catalogue(folder, *state)
            if catalogue is None:
                tables = database.load()
                catalogue, state = Catalogue.of(tables), (tables.version, tables.total)
            readers = self._open_segments(folder, manifest, catalogue)
        except BaseException:
            if database is not self._database:
                database.close()
            raise
        self._readers, self._catalogue = readers, catalogue
        self._arrange(manifest)
        if self._approximate:
            from .approximate import read_index

            self._index = read_index(folder, self.matrix)
        if self._database is not None and self._database is not database:
            self._database.close()
        self._database = database
        self.manifest, self._state = manifest, (manifest.generation, *state)
        return True

    def _open_segments(
        self, folder: Path, manifest: Manifest, catalogue: Catalogue
    ) -> dict[int, SegmentReader]:
        """Map and verify the segments that are not open yet."""
        blocks = defaultdict(list)
        for block in catalogue.blocks:
            blocks[block.segment].append(block)
        readers = {}
        for segment, rows in sorted(valid_rows(catalogue.blocks, folder).items()):
            old = self._readers.get(segment)
            same = old is not None and self._state[0] == manifest.generation
            if old is not None and same and len(old.people) == rows:
                readers[segment] = old
            else:
                readers[segment] = SegmentReader(
                    folder, segment, manifest.embedding_dim, blocks[segment]
                )
        return readers

    def _arrange(self, manifest: Manifest) -> None:
        """Make the arrays that filters and results need.

        A pair is a row and a file that has it: files with the same content share their rows.
        """
        readers, files = list(self._readers.values()), self._catalogue
        parts = [np.zeros((0, manifest.embedding_dim), np.float32)]
        parts = [reader.rows for reader in readers] or parts
        self._people = np.concatenate([np.zeros(0, PEOPLE), *(reader.people for reader in readers)])
        # First row of each segment by its number.
        starts = np.full(max(self._readers, default=0) + 1, -1)
        starts[list(self._readers)] = np.cumsum([0, *map(len, parts)])[: len(readers)]
        counts, used = files.count, files.count > 0
        segments = np.where(used, files.segment, 0)
        known = (segments >= 0) & (segments < len(starts))
        first = np.where(known, starts[np.where(known, segments, 0)], -1)
        wrong = used & ((first < 0) | (first + files.start + counts > len(self._people)))
        if wrong.any():
            raise GalleryError(f"{self.folder}: files name rows that are in no segment")
        self._first_row = first + files.start
        before = np.cumsum(counts) - counts
        pair_file = np.repeat(np.arange(len(counts)), counts)
        pair_row = np.arange(len(pair_file)) - np.repeat(before - self._first_row, counts)
        live = np.zeros(len(self._people), bool)
        live[pair_row] = True
        for segment, row in files.dead.tolist():
            live[starts[segment] + row] = False
        if not live[pair_row].all():
            keep = live[pair_row]
            pair_file, pair_row = pair_file[keep], pair_row[keep]
        if len(pair_row) and not (pair_row[1:] > pair_row[:-1]).all():
            order = np.argsort(pair_row, kind="stable")
            pair_file, pair_row = pair_file[order], pair_row[order]
        self._pair_row, self._pair_file = pair_row, pair_file
        self.matrix = Matrix(parts, None if live.all() else live)
        self._pair_camera = files.camera[pair_file]
        self._pair_first = files.time[pair_file] + self._people["first"][pair_row]
        self._pair_last = files.time[pair_file] + self._people["last"][pair_row]
        self._order: Optional[Order] = None

    def _pairs(self, where: Filter) -> np.ndarray:
        """Indices of the pairs that a filter lets through, ascending."""
        files, row = self._catalogue, self._pair_row
        pairs = self._near(where)
        # Those have the camera, and are not later than the end.
        near = pairs is not None
        tests: list[tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]] = []
        if where.cameras:
            unknown = set(where.cameras) - set(self.cameras)
            if unknown:
                known = ", ".join(self.cameras) or "no camera"
                raise GalleryError(
                    f"camera {unknown.pop()!r} is not in the gallery: it has {known}"
                )
            codes = [self.cameras.index(name) for name in where.cameras]
            (code, *others) = codes
            if not near:
                tests.append(
                    (self._pair_camera, lambda v: np.isin(v, codes) if others else v == code)
                )
        # Comparisons with NaN, an unknown time, are false.
        if where.start is not None:
            tests.append((self._pair_last, lambda v: v >= where.start))
        if where.end is not None and not near:
            tests.append((self._pair_first, lambda v: v <= where.end))
        if where.folders:
            roots = tuple(os.path.join(folder, "") for folder in where.folders)
            inside = [os.path.join(name, "").startswith(roots) for name in files.folder_names]
            folders = files.folder[self._pair_file]
            tests.append((folders, lambda v: np.array(inside, bool)[v]))
        if where.min_score is not None:
            scores, least = self._people["score"][row], np.float32(where.min_score)
            tests.append((scores, lambda v: v >= least))
        for values, test in tests:  # of what is left: less than a look at all
            pairs = np.flatnonzero(test(values)) if pairs is None else pairs[test(values[pairs])]
        assert pairs is not None
        return pairs

    def _near(self, where: Filter) -> Optional[np.ndarray]:
        """Pairs of the cameras around the time, ascending; ``None`` where those are many.

        They are looked up in an order by camera and time. It takes as long as many searches, and
        is made when a second one has such a filter.
        """
        if not where.cameras or (where.start is None and where.end is None):
            return None
        self._filtered += 1
        if self._filtered == 1:
            return None
        if self._order is None:
            self._order = Order(self._pair_camera, self._pair_first, self._pair_last)
        codes = [self.cameras.index(name) for name in where.cameras if name in self.cameras]
        return self._order.near(codes, where.start, where.end)

    def _chosen(self, pairs: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        """Rows that may be found, ascending."""
        rows = self._pair_row[pairs]
        if len(rows) and not (rows[1:] > rows[:-1]).all():
            rows = np.unique(rows)
        return rows[~np.isin(rows, hidden)] if len(hidden) else rows

    def _top(
        self, wanted: np.ndarray, count: int, chosen: Optional[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        found = None
        if chosen is None and self._index is not None:
            found = self._index.top(wanted, count, self.matrix)
        if found is None:
            found = self.matrix.top(wanted, count, chosen, use_faiss=self._use_faiss)
        return found

    def _shown(self, rows: np.ndarray, pairs: Optional[np.ndarray]) -> np.ndarray:
        """Of each row the first pair that the filter lets through."""
        first = np.searchsorted(self._pair_row, rows)
        return first if pairs is None else pairs[np.searchsorted(pairs, first)]

    def _first_of_each(self, rows: np.ndarray, per: str, pairs: Optional[np.ndarray]) -> np.ndarray:
        """Which rows are the first of their picture or camera."""
        if per == "person":
            return np.arange(len(rows))
        files = self._pair_file[self._shown(rows, pairs)]
        if per == "camera":
            keys = self._catalogue.camera[files][:, None]
        else:
            keys = np.stack([self._catalogue.content[files], self._people["frame"][rows]], 1)
        return np.sort(np.unique(keys, axis=0, return_index=True)[1])

    def _hits(
        self, rows: np.ndarray, similarity: np.ndarray, pairs: Optional[np.ndarray]
    ) -> list[Hit]:
        shown = self._pair_file[self._shown(rows, pairs)].tolist()
        ends = np.searchsorted(self._pair_row, np.stack([rows, rows + 1])).T.tolist()
        having = [self._pair_file[first:end].tolist() for first, end in ends]
        files = self._files([index for indices in having for index in indices])
        people = self._people[rows]
        hits = []
        for index, indices, person, value in zip(
            shown, having, people.tolist(), similarity.tolist()
        ):
            also = tuple(files[other].path for other in indices if other != index)
            hits.append(hit_of(files[index], also, person, value))
        return hits

    def _files(self, indices: Sequence[int]) -> dict[int, FileRow]:
        """Rows of the database by their index in the catalogue."""
        assert self._database is not None
        files = self._catalogue
        places = np.array(indices, np.int64)
        numbers = files.id[places].tolist()
        rows = self._database.files(dict(zip(numbers, files.checksum[places].tolist())))
        return {index: rows[number] for index, number in zip(indices, numbers)}

    def _row_of(self, hit_id: str) -> int:
        parts = parts_of_id(hit_id)
        if parts is not None:
            content, person = parts
            files = np.flatnonzero(self._catalogue.content == content)
            rows = self._rows_of(files[0]) if len(files) else files
            for row in rows[self._people["person"][rows] == person]:
                return int(row)
        raise GalleryError(f"{hit_id!r}: no person in {self.folder} has that id (any more)")

    def _rows_of(self, index: int) -> np.ndarray:
        """Rows of a file that can be found."""
        start = self._first_row[index]
        rows = np.arange(start, start + self._catalogue.count[index])
        return rows if self.matrix.live is None else rows[self.matrix.live[rows]]
