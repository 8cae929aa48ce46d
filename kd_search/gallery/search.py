"""Reading a gallery: exact filters, and the people most similar to a wanted one."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Optional

import numpy as np

from kd_search.utils.files import PathLike

from .database import Database, FileRow, Tables
from .exact import Matrix
from .manifest import GalleryError, Manifest, generation_folder, read_manifest
from .segments import PEOPLE, SegmentReader, valid_rows

#: What gives one result each.
PER = ("person", "picture", "camera")
_TRIES = 5


@dataclass(frozen=True)
class Filter:
    """Which people a search may find; empty fields do not restrict.

    Args:
        cameras: names.
        start, end: seconds since 1970 on the wall clock of the cameras, both included. Pictures of
            unknown time are not found then. A tracklet of a video is found if a part of it is in
            that time.
        folders: absolute; their subfolders are included.
        min_score: of the detector.
    """

    cameras: Collection[str] = ()
    start: Optional[float] = None
    end: Optional[float] = None
    folders: Collection[str] = ()
    min_score: Optional[float] = None

    def __bool__(self) -> bool:
        return bool(self.cameras or self.folders) or any(
            value is not None for value in (self.start, self.end, self.min_score)
        )


@dataclass(frozen=True)
class Hit:
    """A person that was found."""

    #: "content.person": stays the same as long as the picture is in the gallery.
    id: str
    path: str
    #: Other files with the same content.
    also: tuple[str, ...]
    #: XYXY, pixels of the upright picture or frame.
    box: tuple[float, ...]
    score: float
    similarity: float
    camera: Optional[str]
    #: Of the picture or of the frame, seconds since 1970 on the wall clock of the camera.
    time: Optional[float]
    #: Number and second of the frame in a video; ``None`` for pictures.
    frame: Optional[int]
    second: Optional[float]
    #: Seconds of the first and last frame of the tracklet.
    first: Optional[float]
    last: Optional[float]
    width: int
    height: int


class Gallery:
    """A gallery for searching. Several processes may read while one writes."""

    def __init__(self, folder: PathLike, *, use_faiss: bool = True):
        """
        Args:
            folder: of the gallery.
            use_faiss: if it is installed.

        Raises:
            GalleryError: it is none, or it is damaged; names the file.
        """
        self.folder = Path(folder)
        self._use_faiss = use_faiss
        self._readers: dict[int, SegmentReader] = {}
        self._state: tuple[int, int] = (0, -1)
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
        return self._matrix.num_live

    @property
    def files(self) -> Sequence[FileRow]:
        """State of every file that was looked at."""
        return self._tables.files

    @property
    def cameras(self) -> list[str]:
        """Names of the cameras, sorted."""
        return self._camera_names

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
        chosen = self._chosen(where, without)
        total = len(self) if chosen is None else len(chosen)
        count = top_k
        while True:
            rows, similarity = self._matrix.top(wanted, count, chosen, use_faiss=self._use_faiss)
            kept = self._first_of_each(rows, per, where)
            if len(kept) >= top_k or count >= total:
                break
            count *= 8
        return [self._hit(int(rows[i]), float(similarity[i]), where) for i in kept[:top_k]]

    def wanted(self, query: np.ndarray) -> np.ndarray:
        """(D,) unit embedding of (D,) or (Q, D)."""
        query = np.atleast_2d(np.asarray(query, np.float64))
        dim = self.manifest.embedding_dim
        if query.ndim != 2 or not len(query) or query.shape[1] != dim:
            raise ValueError(f"query of shape {query.shape}: the gallery's embeddings have {dim}")
        mean = query.mean(0)
        return (mean / np.linalg.norm(mean)).astype(np.float32)

    def embedding(self, hit_id: str) -> np.ndarray:
        """(D,) float32 embedding of a hit.

        Raises:
            GalleryError: it is not in the gallery (any more).
        """
        return self._matrix.take(np.array([self._row_of(hit_id)]))[0]

    def hit(self, hit_id: str, similarity: float = 1.0) -> Hit:
        """A hit by its id."""
        return self._hit(self._row_of(hit_id), similarity, None)

    def ids_of(self, sha256: str) -> list[str]:
        """Ids of the people in the files with that content."""
        for row in self.files:
            if row.sha256 == sha256 and row.count:
                start = self._first_row(row)
                rows = np.arange(start, start + row.count)
                if self._matrix.live is not None:
                    rows = rows[self._matrix.live[rows]]
                return [f"{row.content}.{person}" for person in self._people["person"][rows]]
        return []

    # -- inside ----------------------------------------------------------------------------------

    def _read(self, manifest: Manifest) -> bool:
        folder = generation_folder(self.folder, manifest.generation)
        database = Database(folder, read_only=True)
        try:
            if (manifest.generation, database.version()) == self._state:
                self.manifest = manifest
                return False
            tables = database.load()
        finally:
            database.close()
        blocks = defaultdict(list)
        for block in tables.blocks:
            blocks[block.segment].append(block)
        valid_rows(tables.blocks, database.path)
        readers = {}
        for segment, of_segment in sorted(blocks.items()):
            old = self._readers.get(segment)
            if old is not None and self._state[0] == manifest.generation:
                if len(old.people) == sum(block.count for block in of_segment):
                    readers[segment] = old
                    continue
            readers[segment] = SegmentReader(folder, segment, manifest.embedding_dim, of_segment)
        self._readers = readers
        self._arrange(tables, manifest)
        self.manifest, self._state = manifest, (manifest.generation, tables.version)
        return True

    def _arrange(self, tables: Tables, manifest: Manifest) -> None:
        """Make the arrays that filters and results need.

        A pair is a row and a file that has it: files with the same content share their rows.
        """
        readers = list(self._readers.values())
        empty = np.zeros((0, manifest.embedding_dim), np.float32)
        parts = [reader.rows for reader in readers] or [empty]
        self._people = np.concatenate([np.zeros(0, PEOPLE), *(reader.people for reader in readers)])
        starts = dict(zip(self._readers, np.cumsum([0, *map(len, parts)])))
        self._tables, files = tables, tables.files
        counts = np.array([row.count for row in files], np.int64)
        first = np.array([starts.get(row.segment, 0) + row.start for row in files], np.int64)
        if any(row.count and row.segment not in starts for row in files) or (
            len(files) and (first + counts).max() > len(self._people)
        ):
            raise GalleryError(f"{self.folder}: files name rows that are in no segment")
        before = np.cumsum(counts) - counts
        pair_file = np.repeat(np.arange(len(files)), counts)
        pair_row = np.arange(len(pair_file)) - np.repeat(before - first, counts)
        live = np.zeros(len(self._people), bool)
        live[pair_row] = True
        for entry in tables.dead:
            live[starts[entry.segment] + entry.row] = False
        if not live[pair_row].all():
            keep = live[pair_row]
            pair_file, pair_row = pair_file[keep], pair_row[keep]
        order = np.argsort(pair_row, kind="stable")
        self._pair_row, self._pair_file = pair_row[order], pair_file[order]
        self._matrix = Matrix(parts, None if live.all() else live)
        names = sorted({row.camera for row in files if row.camera is not None})
        self._camera_names = names
        codes = {name: code for code, name in enumerate(names)}
        camera = np.array([codes.get(row.camera, -1) for row in files], np.int32)
        times = np.array([np.nan if r.time is None else r.time for r in files], np.float64)
        self._pair_camera = camera[self._pair_file]
        self._pair_first = times[self._pair_file] + self._people["first"][self._pair_row]
        self._pair_last = times[self._pair_file] + self._people["last"][self._pair_row]
        for name in ("_folder_codes", "_places"):
            self.__dict__.pop(name, None)

    @cached_property
    def _folder_codes(self) -> tuple[list[str], np.ndarray]:
        """Names of the folders, and the folder of each file."""
        codes: dict[str, int] = {}
        of_file = [codes.setdefault(row.path.rpartition("/")[0], len(codes)) for row in self.files]
        return list(codes), np.array(of_file, np.int32)

    @cached_property
    def _places(self) -> dict[int, FileRow]:
        """A file of each content with rows."""
        return {row.content: row for row in reversed(self.files) if row.count}

    def _pairs(self, where: Filter) -> np.ndarray:
        """(P,) bool, which pairs a filter lets through."""
        mask = np.ones(len(self._pair_row), bool)
        if where.cameras:
            unknown = set(where.cameras) - set(self._camera_names)
            if unknown:
                known = ", ".join(self._camera_names) or "no camera"
                raise GalleryError(
                    f"camera {unknown.pop()!r} is not in the gallery: it has {known}"
                )
            codes = [self._camera_names.index(name) for name in where.cameras]
            if len(codes) == 1:
                mask &= self._pair_camera == codes[0]
            else:
                mask &= np.isin(self._pair_camera, codes)
        # Comparisons with NaN, an unknown time, are false.
        if where.start is not None:
            mask &= self._pair_last >= where.start
        if where.end is not None:
            mask &= self._pair_first <= where.end
        if where.start is not None or where.end is not None:
            mask &= self._pair_first == self._pair_first
        if where.folders:
            names, codes = self._folder_codes
            inside = [
                any(f"{name}/".startswith(f"{folder.rstrip('/')}/") for folder in where.folders)
                for name in names
            ]
            mask &= np.array(inside, bool)[codes[self._pair_file]]
        if where.min_score is not None:
            mask &= self._people["score"][self._pair_row] >= np.float32(where.min_score)
        return mask

    def _chosen(self, where: Optional[Filter], without: Collection[str]) -> Optional[np.ndarray]:
        """Rows that may be found, ascending; ``None`` for all."""
        if not where and not without:
            return None
        rows = self._pair_row if not where else self._pair_row[self._pairs(where)]
        if len(rows) and not (rows[1:] > rows[:-1]).all():
            rows = np.unique(rows)
        if without:
            rows = rows[~np.isin(rows, [self._row_of(hit_id) for hit_id in without])]
        return rows

    def _first_of_each(self, rows: np.ndarray, per: str, where: Optional[Filter]) -> list[int]:
        if per == "person":
            return list(range(len(rows)))
        seen, kept = set(), []
        for index, row in enumerate(rows):
            file = self._shown(int(row), where)
            frame = int(self._people["frame"][row])
            key = file.camera if per == "camera" else (file.content, frame)
            if key not in seen:
                seen.add(key)
                kept.append(index)
        return kept

    def _shown(self, row: int, where: Optional[Filter]) -> FileRow:
        """The first file with that row that the filter lets through."""
        span = slice(*np.searchsorted(self._pair_row, [row, row + 1]))
        files = self._pair_file[span]
        if len(files) > 1 and where:
            files = files[self._pairs(where)[span]]
        return self.files[files[0]]

    def _hit(self, row: int, similarity: float, where: Optional[Filter]) -> Hit:
        file = self._shown(row, where)
        box, score, frame, second, first, last, _, person = self._people[row].tolist()
        video = frame >= 0
        others = self._pair_file[slice(*np.searchsorted(self._pair_row, (row, row + 1)))]
        also = (self.files[index].path for index in others) if len(others) > 1 else ()
        return Hit(
            id=f"{file.content}.{person}",
            path=file.path,
            also=tuple(path for path in also if path != file.path),
            box=tuple(box),
            score=score,
            similarity=similarity,
            camera=file.camera,
            time=None if file.time is None else file.time + second,
            frame=frame if video else None,
            second=second if video else None,
            first=first if video else None,
            last=last if video else None,
            width=file.width,
            height=file.height,
        )

    def _row_of(self, hit_id: str) -> int:
        content, _, person = hit_id.partition(".")
        file = self._places.get(int(content)) if content.isdecimal() else None
        if file is not None and person.isdecimal():
            start = self._first_row(file)
            of_file = self._people["person"][start : start + file.count]
            for row in start + np.flatnonzero(of_file == int(person)):
                if self._matrix.live is None or self._matrix.live[row]:
                    return int(row)
        raise GalleryError(f"{hit_id!r}: no person in {self.folder} has that id (any more)")

    def _first_row(self, file: FileRow) -> int:
        return int(self._matrix.starts[list(self._readers).index(file.segment)]) + file.start
