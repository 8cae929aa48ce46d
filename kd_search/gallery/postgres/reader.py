"""Searching a gallery in PostgreSQL."""

import os
from collections.abc import Collection, Sequence
from typing import Any, Callable, Optional, TypeVar, Union

import numpy as np

from ..database import FileRow
from ..manifest import GalleryError, Manifest
from ..results import PER, Filter, Hit, hit_of, mean_query, parts_of_id
from .connection import Connection, Vector, rows_of_vectors, stored
from .schema import (
    APPROXIMATE,
    FILE_COLUMNS,
    RECORD_COLUMNS,
    columns,
    file_row,
    person_record,
    read_manifest,
)

T = TypeVar("T")
#: Rows that are looked at beyond those wanted, and how much less similar the last must be: pgvector
#: adds in float32.
_MORE, _ROUNDING = 16, 2e-6
#: Candidates of the graph of an approximate search at least, and at most (a limit of pgvector).
_EF, _EF_MOST = 100, 1000
#: Pairs of a file and a person. The sum keeps the planner from the index of an approximate search,
#: which belongs to the operator alone.
_EXACT = """
    SELECT file, person FROM people p WHERE {where}
    ORDER BY (p.embedding <#> %(query)s) + 0, p.file, p.person LIMIT %(limit)s"""
_APPROXIMATE = """
    SELECT file, person FROM people p WHERE {where}
    ORDER BY p.embedding <#> %(query)s LIMIT %(limit)s"""
_OF_EACH_CAMERA = """
    SELECT file, person FROM (
        SELECT file, person, row_number() OVER (
            PARTITION BY p.camera ORDER BY (p.embedding <#> %(query)s) + 0, p.file, p.person
        ) AS place FROM people p WHERE {where}
    ) ranked WHERE place <= %(limit)s"""
_PEOPLE = f"""
    SELECT p.file, p.content, p.camera, vector_send(p.embedding), {columns(RECORD_COLUMNS, "p")}
    FROM ({{pairs}}) chosen JOIN people p USING (file, person)"""


class PostgresGallery:
    """As :class:`kd_search.gallery.Gallery`, in a database. Threads may share it."""

    def __init__(self, url: str, *, approximate: bool = False):
        """
        Args:
            url: ``postgresql://USER@HOST/DATABASE``.
            approximate: use the index of an approximate search (HNSW). The planner decides: with a
                filter that keeps few rows it reads these, exactly.

        Raises:
            GalleryError: the server cannot be reached, or there is no gallery, or no such index.
            ImportError: psycopg is not installed.
        """
        self._connection = Connection(url)
        #: The database, without a password.
        self.folder = self._connection.name
        self._approximate = approximate
        self._state: Optional[int] = None
        self._cameras: list[str] = []
        self._longest = 0.0
        self._count: Optional[int] = None
        self.manifest: Manifest = self._read_manifest()
        self.refresh()
        if approximate and not has_approximate_index(self._connection):
            raise GalleryError(
                f"{self.folder}: has no approximate index: kd-search index or push with "
                "--approximate builds it"
            )

    def refresh(self) -> bool:
        """Read what was written since; returns whether something was."""
        return self._retried(self._refresh)

    def _refresh(self) -> bool:
        rows = self._connection.rows("SELECT changes, longest FROM gallery")
        state = rows[0][0] if rows else None
        if state is not None and state == self._state:
            return False
        self.manifest = self._read_manifest()
        self._longest = rows[0][1] if rows else 0.0
        found = self._connection.rows(_CAMERAS)
        self._cameras = sorted(os.fsdecode(bytes(name)) for (name,) in found)
        self._state, self._count = state, None
        return True

    def _read_manifest(self) -> Manifest:
        manifest = read_manifest(self._connection)
        if manifest is None:
            raise GalleryError(f"{self.folder}: holds no gallery (kd-search push makes one)")
        return manifest

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __len__(self) -> int:
        if self._count is None:
            self._count = self._retried(lambda: count_people(self._connection))
        return self._count

    @property
    def files(self) -> Sequence[FileRow]:
        """State of every file that was looked at, read anew."""
        self.refresh()
        query = f"SELECT {columns(FILE_COLUMNS)} FROM files ORDER BY id"
        return [file_row(values) for values in self._connection.rows(query)]

    @property
    def cameras(self) -> list[str]:
        """Names of the cameras, sorted."""
        return self._cameras

    def search(
        self,
        query: np.ndarray,
        top_k: int = 20,
        where: Optional[Filter] = None,
        *,
        per: str = "picture",
        without: Collection[str] = (),
    ) -> list[Hit]:
        """Find the most similar people, as :meth:`kd_search.gallery.Gallery.search`.

        The order is by the similarity in float64 of at least the ``top_k`` most similar rows that
        PostgreSQL finds. What was written until now is seen.
        """
        if per not in PER:
            raise ValueError(f"per {per!r} is none of {', '.join(PER)}")
        wanted = self.wanted(query)
        self.refresh()
        conditions, values = self._conditions(where or Filter(), without)
        values["query"] = Vector(wanted)

        def ask() -> list[Hit]:
            self._connection.vector_oid  # noqa: B018  prepares a connection that was opened again
            with self._connection.transaction(read_only=True) as cursor:
                return self._search(cursor, wanted, top_k, per, conditions, values)

        return self._retried(ask)

    def some_ids(self, count: int) -> list[str]:
        """Ids of some people, from all over the gallery."""
        rows = self._connection.rows(
            "SELECT content, min(person) FROM people GROUP BY content "
            "ORDER BY hashint8(content), content LIMIT %s",
            (count,),
        )
        return [f"{content}.{person}" for content, person in rows]

    def wanted(self, query: Union[np.ndarray, Sequence[np.ndarray]]) -> np.ndarray:
        """(D,) float32 of unit length: the mean of (Q, D) embeddings, or (D,)."""
        return mean_query(query, self.manifest.embedding_dim)

    def embedding(self, hit_id: str) -> np.ndarray:
        """(D,) float32 embedding of a hit.

        Raises:
            GalleryError: it is not in the gallery (any more).
        """
        content, person = self._checked(hit_id)
        found = self._connection.rows(
            "SELECT vector_send(embedding) FROM people WHERE content = %s AND person = %s LIMIT 1",
            (content, person),
        )
        if not found:
            raise self._no_such(hit_id)
        return rows_of_vectors([found[0][0]], self.manifest.embedding_dim)[0]

    def hit(self, hit_id: str, similarity: float = 1.0) -> Hit:
        """A hit by its id."""
        pair = "SELECT file, person FROM people WHERE content = %s AND person = %s ORDER BY file"
        with self._connection.transaction(read_only=True) as cursor:
            cursor.execute(f"{_PEOPLE.format(pairs=pair)} LIMIT 1", self._checked(hit_id))
            found = cursor.fetchall()
            if not found:
                raise self._no_such(hit_id)
            return self._hits(cursor, found, [similarity])[0]

    def ids_of(self, sha256: str) -> list[str]:
        """Ids of the people in the files with that content."""
        rows = self._connection.rows(
            "SELECT DISTINCT p.content, p.person FROM people p JOIN files f ON f.id = p.file "
            "WHERE f.sha256 = %s ORDER BY 1, 2",
            (sha256,),
        )
        return [f"{content}.{person}" for content, person in rows]

    # -- inside ----------------------------------------------------------------------------------

    def _retried(self, ask: Callable[[], T]) -> T:
        """Ask again, once, if the server has closed the connection: reading may be repeated."""
        with self._connection.lock:
            opened = self._connection.opened()
            try:
                return ask()
            except GalleryError:
                if not opened.closed:
                    raise
            return ask()

    def _checked(self, hit_id: str) -> tuple[int, int]:
        parts = parts_of_id(hit_id)
        if parts is None:
            raise self._no_such(hit_id)
        return parts

    def _no_such(self, hit_id: str) -> GalleryError:
        return GalleryError(f"{hit_id!r}: no person in {self.folder} has that id (any more)")

    def _conditions(self, where: Filter, without: Collection[str]) -> tuple[str, dict[str, Any]]:
        """The filter as SQL, and its parameters."""
        tests: list[str] = []
        values: dict[str, Any] = {}
        if where.cameras:
            unknown = set(where.cameras) - set(self._cameras)
            if unknown:
                known = ", ".join(self._cameras) or "no camera"
                raise GalleryError(
                    f"camera {unknown.pop()!r} is not in the gallery: it has {known}"
                )
            values["cameras"] = [stored(name) for name in where.cameras]
            tests.append("p.camera = ANY(%(cameras)s)")
        if where.start is not None:
            # The first time is bounded too, so that the index is read from there and not from its
            # begin: no tracklet is longer. A second more is for rounding.
            values |= {"start": where.start, "earliest": where.start - self._longest - 1}
            tests.append("p.last_time >= %(start)s AND p.first_time >= %(earliest)s")
        if where.end is not None:
            values["end"] = where.end
            tests.append("p.first_time <= %(end)s")
        if where.folders:
            values["roots"] = [stored(os.path.join(folder, "")) for folder in where.folders]
            tests.append(
                "p.file IN (SELECT f.id FROM files f, unnest(%(roots)s) AS root "
                "WHERE substring(f.path FOR length(root)) = root)"
            )
        if where.min_score is not None:
            values["score"] = where.min_score
            tests.append("p.score >= %(score)s::real")
        if without:
            parts = [self._checked(hit_id) for hit_id in without]
            found = self._connection.rows(
                "SELECT DISTINCT content || '.' || person FROM people WHERE content = ANY(%s)",
                ([content for content, _ in parts],),
            )
            for hit_id, (content, person) in zip(without, parts):
                if (f"{content}.{person}",) not in found:
                    raise self._no_such(hit_id)
            values["contents"] = [content for content, _ in parts]
            values["ids"] = [f"{content}.{person}" for content, person in parts]
            tests.append(
                "NOT (p.content = ANY(%(contents)s)"
                " AND (p.content || '.' || p.person) = ANY(%(ids)s))"
            )
        return " AND ".join(tests) or "true", values

    def _search(
        self,
        cursor: Any,
        wanted: np.ndarray,
        top_k: int,
        per: str,
        where: str,
        values: dict[str, Any],
    ) -> list[Hit]:
        approximate, count = self._approximate and per != "camera", top_k + _MORE
        while True:
            found = self._candidates(cursor, per, where, {**values, "limit": count}, approximate)
            rows = rows_of_vectors([row[3] for row in found], self.manifest.embedding_dim)
            similarity = rows.astype(np.float64) @ wanted.astype(np.float64)
            order = sorted(range(len(found)), key=lambda i: (-similarity[i], *_pair(found[i])))
            found, similarity = [found[i] for i in order], similarity[order]
            # Rows that were left out may be as similar as the last ones that were found.
            if per == "camera":
                certain = _cameras_are_certain(found, similarity, count)
                first, complete = _first_of_each(found, per), certain
            else:
                complete = len(found) < count
                last = similarity[-1] + _ROUNDING if len(found) else 0.0
                sure = len(found) if complete or approximate else int((similarity > last).sum())
                first = _first_of_each(found[:sure], per)
            if complete and approximate and len(first) < top_k:
                approximate = False  # the graph leads no further
            elif complete or (per != "camera" and len(first) >= top_k):
                first = first[:top_k]
                return self._hits(cursor, [found[i] for i in first], similarity[first].tolist())
            else:
                count *= 4

    def _candidates(
        self, cursor: Any, per: str, where: str, values: dict[str, Any], approximate: bool
    ) -> list[tuple]:
        pairs = _OF_EACH_CAMERA if per == "camera" else _APPROXIMATE if approximate else _EXACT
        if approximate:
            ef = str(min(max(values["limit"], _EF), _EF_MOST))
            cursor.execute(
                "SELECT set_config('hnsw.iterative_scan', 'strict_order', true), "
                "set_config('hnsw.ef_search', %s, true)",
                (ef,),
            )
        cursor.execute(_PEOPLE.format(pairs=pairs.format(where=where)), values)
        return cursor.fetchall()

    def _hits(self, cursor: Any, found: Sequence[tuple], similarity: Sequence[float]) -> list[Hit]:
        cursor.execute(
            f"SELECT {columns(FILE_COLUMNS)} FROM files WHERE content = ANY(%s) ORDER BY id",
            ([content for _, content, *_ in found],),
        )
        files: dict[int, list[FileRow]] = {}
        for values in cursor.fetchall():
            row = file_row(values)
            files.setdefault(row.content, []).append(row)
        hits = []
        for (number, content, _, _, *record), value in zip(found, similarity):
            (file,) = (row for row in files[content] if row.id == number)
            also = tuple(row.path for row in files[content] if row is not file)
            hits.append(hit_of(file, also, person_record(record).tolist(), value))
        return hits


#: The b-tree is read once for each name, not for each row.
_CAMERAS = """
    WITH RECURSIVE names AS (
        (SELECT camera FROM files WHERE camera IS NOT NULL ORDER BY camera LIMIT 1)
        UNION ALL
        SELECT (SELECT f.camera FROM files f WHERE f.camera > n.camera ORDER BY 1 LIMIT 1)
        FROM names n WHERE n.camera IS NOT NULL
    ) SELECT camera FROM names WHERE camera IS NOT NULL"""


def count_people(connection: Connection) -> int:
    """Number of people; those of files with the same content count once."""
    query = "SELECT count(*) FROM (SELECT DISTINCT content, person FROM people) once"
    return connection.rows(query)[0][0]


def has_approximate_index(connection: Connection) -> bool:
    """Whether there is the index of an approximate search."""
    return connection.rows("SELECT to_regclass(%s)", (APPROXIMATE,)) != [(None,)]


def _pair(row: tuple) -> tuple[int, int]:
    return row[0], row[-1]


def _first_of_each(found: Sequence[tuple], per: str) -> list[int]:
    """Which rows are the first of their person, picture (or frame) or camera."""
    seen, first = set(), []
    for index, (_, content, camera, _, *record) in enumerate(found):
        person, frame = record[-1], record[5]
        key = {
            "person": (content, person),
            "picture": (content, frame),
            "camera": None if camera is None else bytes(camera),
        }[per]
        if key not in seen:
            seen.add(key)
            first.append(index)
    return first


def _cameras_are_certain(found: Sequence[tuple], similarity: np.ndarray, count: int) -> bool:
    """Whether nobody who was left out may be as similar as the first of a camera."""
    of_camera: dict[Any, list[float]] = {}
    for row, value in zip(found, similarity.tolist()):
        of_camera.setdefault(row[2], []).append(value)
    return all(
        len(values) < count or values[0] - values[-1] > _ROUNDING for values in of_camera.values()
    )
