"""Writing to a gallery in PostgreSQL."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Optional

import numpy as np

from ..database import UNREADABLE, FileRow, Forgotten
from ..manifest import GalleryError, Manifest
from ..new_file import NewFile
from ..removal import are_forgotten
from ..segments import PEOPLE, Place
from .connection import Connection, Vector, stored
from .reader import count_people
from .schema import (
    APPROXIMATE,
    FILE_COLUMNS,
    FILE_TYPES,
    PERSON_COLUMNS,
    PERSON_TYPES,
    RECORD_COLUMNS,
    TABLES,
    VERSION,
    columns,
    file_row,
    file_values,
    person_record,
    person_values,
    read_manifest,
)

#: First key of the advisory lock of the writer; the second is that of the schema.
_LOCK = 0x6B64
_KEYS = "(%s, hashtext(current_schema()))"
#: Files of one request of :meth:`PostgresWriter.files`.
_PAGE = 5000
_FILES = f"SELECT {columns(FILE_COLUMNS)} FROM files"
#: With :func:`_hashes`. Joined with hashes that the server computes, all files would be read.
_AT_PATHS = "sha256(path) = ANY(%s)"


class PostgresWriter:
    """As :class:`kd_search.gallery.GalleryWriter`, in a database: one commit is one transaction.

    A lock of the server, which it releases when the connection ends, keeps out other writers. What
    a call was given is acknowledged when it returns, as far as the server's ``synchronous_commit``
    promises.
    """

    def __init__(self, url: str, create: Optional[Manifest] = None):
        """
        Args:
            url: ``postgresql://USER@HOST/DATABASE``.
            create: the manifest of a new gallery, if the database holds none.

        Raises:
            GalleryError: there is no gallery, another process writes to it, or the role may not.
            ImportError: psycopg is not installed.
        """
        self._connection = Connection(url, reopens=False)
        self.folder = self._connection.name
        self._holds = False
        try:
            self._hold()
            manifest = read_manifest(self._connection)
            if manifest is None:
                if create is None:
                    raise GalleryError(
                        f"{self.folder}: holds no gallery (kd-search push makes one)"
                    )
                self._create(create)
                manifest = replace(create, generation=1)
            self.manifest = manifest
            _ = self._connection.vector_oid
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "PostgresWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the gallery."""
        if self._holds:
            # The server itself does so a moment after the connection was closed.
            with contextlib.suppress(GalleryError):
                self._connection.rows(f"SELECT pg_advisory_unlock{_KEYS}", (_LOCK,))
        self._connection.close()

    def set_options(self, rules: Mapping[str, Any], retention_days: Optional[float]) -> None:
        """Keep rules and retention for later runs."""
        manifest = replace(self.manifest, rules=dict(rules), retention_days=retention_days)
        if manifest != self.manifest:
            with self._connection.transaction() as cursor:
                cursor.execute(
                    "UPDATE gallery SET rules = %s, retention_days = %s",
                    (json.dumps(dict(rules)), retention_days),
                )
            self.manifest = manifest

    # -- what is in it ---------------------------------------------------------------------------

    @property
    def clock(self) -> float:
        """When it was last written to, seconds since 1970."""
        return self._connection.rows("SELECT clock FROM gallery")[0][0]

    def file(self, path: str) -> Optional[FileRow]:
        """State of a file that was looked at before."""
        return self._one(f"{_FILES} WHERE sha256(path) = sha256(%s)", stored(path))

    def content(self, sha256: str) -> Optional[FileRow]:
        """A file with that content that could be read."""
        query = f"{_FILES} WHERE sha256 = %s AND state <> '{UNREADABLE}' ORDER BY id LIMIT 1"
        return self._one(query, sha256)

    def files_at(self, paths: Sequence[str]) -> dict[str, FileRow]:
        """States of many files, by their paths."""
        query = f"{_FILES} WHERE {_AT_PATHS}"
        rows = map(file_row, self._connection.rows(query, (_hashes(paths),)))
        return {row.path: row for row in rows}

    def files(self) -> Iterator[FileRow]:
        """Every file."""
        last = 0
        while True:
            rows = self._connection.rows(
                f"{_FILES} WHERE id > %s ORDER BY id LIMIT {_PAGE}", (last,)
            )
            yield from map(file_row, rows)
            if len(rows) < _PAGE:
                return
            last = rows[-1][0]

    def forgotten(self, sha256: str) -> Optional[list[tuple[float, float, float, float]]]:
        """Boxes of people in that content that must not be indexed; ``None``: nothing of it may."""
        return self.forgotten_of([sha256])[sha256]

    def forgotten_of(
        self, contents: Sequence[str]
    ) -> dict[str, Optional[list[tuple[float, float, float, float]]]]:
        """As :meth:`forgotten`, of many contents, by their SHA-256."""
        found: dict[str, Optional[list]] = {sha256: [] for sha256 in contents}
        for sha256, *box in self._connection.rows(
            "SELECT sha256, x0, y0, x1, y1 FROM do_not_index WHERE sha256 = ANY(%s)",
            (list(found),),
        ):
            boxes = found[sha256]
            if box[0] is None:
                found[sha256] = None
            elif boxes is not None:
                boxes.append(tuple(box))
        return found

    def people(self, file: FileRow) -> np.ndarray:
        """(N,) of :data:`~kd_search.gallery.segments.PEOPLE`, the people of a file with rows."""
        rows = self._connection.rows(
            f"SELECT {columns(RECORD_COLUMNS)} FROM people WHERE file = %s ORDER BY person",
            (file.id,),
        )
        return np.array([person_record(row) for row in rows], PEOPLE)

    @property
    def rows(self) -> int:
        """People that a search can find."""
        return count_people(self._connection)

    @property
    def rows_to_remove(self) -> int:
        """Rows that were removed since the last :meth:`compact`."""
        return self._connection.rows("SELECT removed FROM gallery")[0][0]

    # -- changes ---------------------------------------------------------------------------------

    def add(self, new: Sequence[NewFile]) -> None:
        """Add files, or replace those of the same paths, in one transaction.

        Raises:
            ValueError: embeddings are not finite or not of unit length; names the file.
            GalleryError: it could not be written; nothing was added.
        """
        for file in new:
            file.check(self.manifest.embedding_dim)
        with self._change() as cursor:
            number = self._next_id(cursor)
            rows, people, copies = [], [], []
            for file in {file.path: file for file in new}.values():
                known = None
                if file.embeddings is None and not file.message:
                    known = self.content(file.sha256)
                count = 0 if file.embeddings is None else len(file.embeddings)
                row = file.row(number, known, Place(0, 0, count))
                rows.append(row)
                number += 1
                if known is not None:
                    copies.append((known.id, row))
                elif file.embeddings is not None and file.people is not None:
                    people.append((row, file.people, file.embeddings))
            self._write(cursor, rows, people, copies)
            cursor.execute("UPDATE gallery SET next_id = %s", (number,))

    def _write(
        self,
        cursor: Any,
        rows: Sequence[FileRow],
        people: Sequence[tuple[FileRow, np.ndarray, np.ndarray]],
        copies: Sequence[tuple[int, FileRow]] = (),
    ) -> None:
        """Replace files within a transaction.

        Args:
            cursor: of it.
            rows: new ones; files with the same paths are removed.
            people: of a file its people and their embeddings (N, D).
            copies: id of the file that has the people already, and the new one.
        """
        # Of copies first: the file that has the people may be replaced.
        kept = []
        for number, row in copies:
            cursor.execute(
                f"SELECT {columns(RECORD_COLUMNS)}, embedding FROM people WHERE file = %s",
                (number,),
            )
            kept += [(row, person_record(values[:-1]), values[-1]) for values in cursor.fetchall()]
        cursor.execute(
            f"DELETE FROM files WHERE {_AT_PATHS} RETURNING count",
            (_hashes(row.path for row in rows),),
        )
        _note_removed(cursor, cursor.fetchall())
        with cursor.copy(_copy("files", FILE_COLUMNS)) as copy:
            copy.set_types(FILE_TYPES)
            for row in rows:
                copy.write_row(file_values(row))
        longest, types = 0.0, [*PERSON_TYPES, self._connection.vector_oid]
        with cursor.copy(_copy("people", (*PERSON_COLUMNS, "embedding"))) as copy:
            copy.set_types(types)
            for row, records, embeddings in people:
                for record, embedding in zip(records, np.asarray(embeddings)):
                    copy.write_row((*person_values(row, record), Vector(embedding)))
                    longest = max(longest, float(record["last"]) - float(record["first"]))
            for row, record, text in kept:
                embedding = np.array(json.loads(text), np.float32)
                copy.write_row((*person_values(row, record), Vector(embedding)))
        cursor.execute("UPDATE gallery SET longest = greatest(longest, %s)", (longest,))

    def remove(self, files: Sequence[FileRow], *, for_good: bool = False) -> None:
        """Remove files in one transaction; indexing finds them again.

        Args:
            files: of the gallery.
            for_good: the bytes must be gone after the next :meth:`compact`, also if it is the one
                of a later run.
        """
        if files:
            with self._change(pending=for_good) as cursor:
                ids = [file.id for file in files]
                cursor.execute("DELETE FROM files WHERE id = ANY(%s) RETURNING count", (ids,))
                _note_removed(cursor, cursor.fetchall())

    def forget(
        self, contents: Iterable[str], people: Iterable[tuple[FileRow, int]] = ()
    ) -> tuple[int, int]:
        """Remove content, or people in it, that must not be indexed again, in one transaction.

        The rows are overwritten by :meth:`compact`.

        Args:
            contents: SHA-256 of files, in the gallery or not.
            people: a file and the number of a person in it.

        Returns:
            Numbers of removed files and removed people.
        """
        contents, people, now = sorted(set(contents)), list(people), time.time()
        if not contents and not people:
            return 0, 0
        before = self.rows
        with self._change(pending=True) as cursor:
            cursor.executemany(
                'INSERT INTO do_not_index (sha256, "when") VALUES (%s, %s)',
                [(sha256, now) for sha256 in contents],
            )
            cursor.execute("DELETE FROM files WHERE sha256 = ANY(%s) RETURNING count", (contents,))
            removed = cursor.fetchall()
            _note_removed(cursor, removed)
            for file, person in people:
                cursor.execute(
                    "DELETE FROM people WHERE content = %s AND person = %s "
                    "RETURNING file, x0::float8, y0::float8, x1::float8, y1::float8",
                    (file.content, person),
                )
                gone = cursor.fetchall()
                if gone:
                    cursor.execute(
                        "UPDATE files SET count = count - 1 WHERE id = ANY(%s)",
                        ([number for number, *_ in gone],),
                    )
                    cursor.execute(
                        "INSERT INTO do_not_index VALUES (%s, %s, %s, %s, %s, %s)",
                        (file.sha256, *gone[0][1:], now),
                    )
                    _note_removed(cursor, [(len(gone),)])
        return len(removed), before - self.rows

    def take_forgotten(self, entries: Sequence[Forgotten]) -> int:
        """Forget what another gallery has forgotten; returns the number of removed files."""
        known = "SELECT sha256, x0, y0, x1, y1 FROM do_not_index"

        def missing() -> list[Forgotten]:
            there = set(self._connection.rows(known))
            return [entry for entry in entries if entry[:5] not in there]

        new = missing()
        files, _ = self.forget(entry.sha256 for entry in new if entry.x0 is None)
        for entry in new:
            file = self.content(entry.sha256)
            if file is not None and entry.x0 is not None:
                people = self.people(file)
                again = people["person"][are_forgotten(people, [entry[1:5]])]
                self.forget([], [(file, int(person)) for person in again])
        new = missing()  # boxes that nobody was found in, and slightly different ones
        if new:
            with self._change(pending=True) as cursor:
                cursor.executemany("INSERT INTO do_not_index VALUES (%s, %s, %s, %s, %s, %s)", new)
        return files

    def copy(self, files: Sequence[tuple[FileRow, np.ndarray, np.ndarray]]) -> None:
        """Add the files of another gallery, or replace those of the same paths.

        Args:
            files: of each the row, its people, and their embeddings (N, D).
        """
        with self._change() as cursor:
            first = self._next_id(cursor)
            contents = dict(
                self._connection.rows(
                    f"SELECT sha256, content FROM files WHERE sha256 = ANY(%s) AND state <> "
                    f"'{UNREADABLE}'",
                    ([file.sha256 for file, _, _ in files],),
                )
            )
            new = []
            for number, (file, people, embeddings) in enumerate(files, first):
                content = number
                if file.state != UNREADABLE:
                    content = contents.setdefault(file.sha256, number)
                new.append((file._replace(id=number, content=content), people, embeddings))
            self._write(cursor, [row for row, _, _ in new], new)
            cursor.execute("UPDATE gallery SET next_id = %s", (first + len(files),))

    def compact(self, *, if_worth_it: bool = False) -> int:
        """Rewrite the tables without the removed rows, and let the server drop its old log.

        Tables and indices become new files, and the old ones are gone after the checkpoint. They
        are locked meanwhile. What the server keeps elsewhere (an archive of the write-ahead log,
        backups, replicas that lag) it does not reach.

        Args:
            if_worth_it: do nothing unless removed rows must be gone; the server uses their space
                again.

        Returns:
            Number of removed rows.

        Raises:
            GalleryError: the role must not run CHECKPOINT or pg_switch_wal; the rows are removed,
                but the log has them until the next checkpoint.
        """
        removed, pending = self._connection.rows("SELECT removed, pending FROM gallery")[0]
        if if_worth_it and not pending:
            return 0
        for table in ("people", "files", "do_not_index"):
            self._connection.rows(f"VACUUM (FULL, ANALYZE) {table}")
        # Statistics hold examples of values. Other owners' tables are skipped with a warning.
        self._connection.rows("VACUUM (FULL) pg_catalog.pg_statistic")
        try:
            self._connection.rows("SELECT pg_switch_wal()")
            self._connection.rows("CHECKPOINT")
        except GalleryError as error:
            raise GalleryError(
                f"{error}; the rows are removed, but the server's log has them until its next "
                "checkpoints: GRANT pg_checkpoint and EXECUTE on pg_switch_wal, and forget again"
            ) from None
        with self._connection.transaction() as cursor:
            cursor.execute("UPDATE gallery SET removed = 0, pending = false")
        return removed

    def build_approximate_index(self) -> None:
        """Make the index of an approximate search (HNSW), which the server keeps up to date."""
        self._connection.rows(f"DROP INDEX IF EXISTS {APPROXIMATE}")
        self._connection.rows(
            f"CREATE INDEX {APPROXIMATE} ON people USING hnsw (embedding vector_ip_ops)"
        )

    # -- inside ----------------------------------------------------------------------------------

    def _hold(self) -> None:
        ((free,),) = self._connection.rows(f"SELECT pg_try_advisory_lock{_KEYS}", (_LOCK,))
        if not free:
            raise GalleryError(f"{self.folder}: another process writes to it: wait until it ends")
        self._holds = True

    def _create(self, manifest: Manifest) -> None:
        with self._connection.transaction() as cursor:
            cursor.execute("CREATE EXTENSION IF NOT EXISTS vector")
            cursor.execute(TABLES % manifest.embedding_dim)
            cursor.execute(
                "INSERT INTO gallery (version, model_sha256, model, embedding_dim, rules, "
                "retention_days, created, clock) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
                (
                    VERSION,
                    manifest.model_sha256,
                    manifest.model,
                    manifest.embedding_dim,
                    json.dumps(dict(manifest.rules)),
                    manifest.retention_days,
                    manifest.created,
                    time.time(),
                ),
            )

    def _next_id(self, cursor: Any) -> int:
        cursor.execute("SELECT next_id FROM gallery")
        return cursor.fetchone()[0]

    @contextlib.contextmanager
    def _change(self, pending: bool = False) -> Iterator[Any]:
        """A transaction that changes what readers see."""
        with self._connection.transaction() as cursor:
            cursor.execute(
                "UPDATE gallery SET changes = changes + 1, clock = %s, pending = pending OR %s",
                (time.time(), pending),
            )
            yield cursor

    def _one(self, query: str, value: Any) -> Optional[FileRow]:
        rows = self._connection.rows(query, (value,))
        return file_row(rows[0]) if rows else None


def _copy(table: str, names: Sequence[str]) -> str:
    return f"COPY {table} ({columns(names)}) FROM STDIN (FORMAT BINARY)"


def _hashes(paths: Iterable[str]) -> list[bytes]:
    return [hashlib.sha256(os.fsencode(path)).digest() for path in paths]


def _note_removed(cursor: Any, counts: Iterable[tuple[int]]) -> None:
    number = sum(count for (count,) in counts)
    if number:
        cursor.execute("UPDATE gallery SET removed = removed + %s", (number,))
