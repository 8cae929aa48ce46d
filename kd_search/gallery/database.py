"""The SQLite file of a gallery: which files are indexed, where their rows are, what is forgotten.

A commit to it is what acknowledges rows. SQLite has no checksums, therefore each table counts in a
sum of the CRC-32 of all rows, so that a changed, lost or repeated row is found when the tables are
read. They are read as a whole and looked up in memory: a damaged index of SQLite could hide rows.
The journal is a rollback journal and not a write-ahead log: it is gone after each commit, readers
need no write access, and it works on network disks.
"""

import contextlib
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Optional

from .manifest import GalleryError
from .segments import Block, Place

_SECONDS = 30.0
#: Parameters of one statement; SQLite allows 999 or more.
_VALUES = 500
_MODULUS = 1 << 62
DATABASE = "gallery.sqlite"

INDEXED, NOBODY, UNREADABLE = "indexed", "nobody", "unreadable"


class FileRow(NamedTuple):
    """State of one file that was looked at."""

    id: int
    #: Absolute.
    path: str
    size: int
    mtime_ns: int
    sha256: str
    #: :data:`INDEXED`, :data:`NOBODY` or :data:`UNREADABLE`.
    state: str
    #: People that the network found, those included that were removed later.
    found: int
    width: int
    height: int
    #: Length of a video; 0 for a picture.
    seconds: float
    camera: Optional[str]
    #: Seconds since 1970 on the wall clock of the camera: no time zone, no summer time.
    time: Optional[float]
    #: Number of the content: files with the same bytes have the same, and share their rows.
    content: int
    segment: int
    start: int
    count: int  # type: ignore[assignment]  # hides a method of tuples
    #: Seconds since 1970 when it was indexed.
    added: float
    #: Of the rules that gave camera and time, see :attr:`kd_search.gallery.capture.Capture.key`.
    rules: int
    #: Why it cannot be read; empty for others.
    message: str

    @property
    def place(self) -> Optional[Place]:
        """Where its rows are."""
        return Place(self.segment, self.start, self.count) if self.count else None


class StaleError(GalleryError):
    """A row is not the one that was read before."""


class DeadRow(NamedTuple):
    """A row that was removed, while others of its picture stay, until the next compaction."""

    segment: int
    row: int


class Forgotten(NamedTuple):
    """Content that must not be indexed again: as a whole, or the person in a box."""

    sha256: str
    x0: Optional[float]
    y0: Optional[float]
    x1: Optional[float]
    y1: Optional[float]
    #: Seconds since 1970.
    when: float


_TABLES: dict[str, Any] = {
    "files": FileRow,
    "blocks": Block,
    "dead": DeadRow,
    "do_not_index": Forgotten,
}
_STATE = "version, clock, next_id, pending, total"


@dataclass
class Tables:
    """All rows of the database."""

    files: list[FileRow] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    dead: list[DeadRow] = field(default_factory=list)
    do_not_index: list[Forgotten] = field(default_factory=list)
    #: Counts the commits of a generation.
    version: int = 0
    #: Clock of the last commit, seconds since 1970.
    clock: float = 0.0
    #: Ids and numbers of contents from here on were never used.
    next_id: int = 1
    #: Whether removed rows must be gone from the disk, and are not yet.
    pending: bool = False
    #: Sum of the checksums of all rows.
    total: int = 0


@dataclass
class Change:
    """What one commit adds and removes; ``next_id`` and ``pending`` of ``add`` are the new ones."""

    add: Tables = field(default_factory=Tables)
    #: File rows that were read from the database or written to it.
    remove: list[FileRow] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.remove or any(getattr(self.add, name) for name in _TABLES))


class Database:
    """An open SQLite file."""

    def __init__(self, folder: Path, *, create: bool = False, read_only: bool = False):
        self.path = folder / DATABASE
        if not create and not self.path.exists():
            raise GalleryError(f"{self.path}: is missing; restore the gallery from a copy")
        mode = "rwc" if create else "ro" if read_only and not os.access(folder, os.W_OK) else "rw"
        with self._errors():
            # Readers open for writing too where they can: the first to open the database after a
            # kill has to roll back.
            self._connection = sqlite3.connect(
                f"{self.path.resolve().as_uri()}?mode={mode}",
                uri=True,
                timeout=_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            if read_only:
                self._connection.execute("PRAGMA query_only = on")
                return
            for pragma in (
                "journal_mode = delete",
                "synchronous = extra",  # also waits until the folder has forgotten the journal
                "secure_delete = on",
                "temp_store = memory",
            ):
                self._connection.execute(f"PRAGMA {pragma}").fetchall()
            if create:
                self._create()

    def close(self) -> None:
        self._connection.close()

    def state(self) -> tuple[int, int]:
        """Number of the last commit, and the sum of the checksums of all rows after it."""
        with self._errors():
            (row,) = self._rows("SELECT version, total FROM state")
        return row[0], row[1]

    def files(self, checksums: Mapping[int, int]) -> dict[int, FileRow]:
        """Rows by their ids.

        Args:
            checksums: of the rows, by their ids.

        Raises:
            StaleError: one was removed or changed since its checksum was taken.
        """
        found, numbers = {}, list(checksums)
        with self._errors():
            for start in range(0, len(numbers), _VALUES):
                part = tuple(numbers[start : start + _VALUES])
                marks = ", ".join("?" * len(part))
                query = f"SELECT {_columns(FileRow)} FROM files WHERE id IN ({marks})"
                for row in map(FileRow._make, self._rows(query, part)):
                    if row_checksum(row) == checksums.get(row.id):
                        found[row.id] = row
        if len(found) != len(checksums):
            raise StaleError(f"{self.path}: rows differ from their checksums")
        return found

    def ids_with(self, sha256: str) -> list[int]:
        """Ids of the files with a content."""
        with self._errors():
            query = "SELECT id FROM files WHERE sha256 = ? ORDER BY id"
            return [number for (number,) in self._rows(query, (sha256,))]

    def load(self) -> Tables:
        """Read everything.

        Raises:
            GalleryError: something was changed by other means than :meth:`commit`.
        """
        tables = Tables()
        with self._errors():
            self._connection.execute("BEGIN")
            try:
                state = self._connection.execute(f"SELECT {_STATE}, crc FROM state").fetchall()
                for name, row_type in _TABLES.items():
                    rows = self._rows(f"SELECT {_columns(row_type)} FROM {name}")
                    setattr(tables, name, list(map(row_type._make, rows)))
            finally:
                self._connection.execute("ROLLBACK")
            ((version, clock, next_id, pending, total, crc),) = state
            if crc != _crc("state", state[0][:-1]) or total != _total(tables):
                raise ValueError("its rows differ from their checksum")
        tables.version, tables.clock, tables.next_id = version, clock, next_id
        tables.pending, tables.total = bool(pending), total
        self._total = total
        return tables

    def _rows(self, query: str, values: tuple = ()) -> list[tuple]:
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.OperationalError as error:
            if "decode" not in str(error):
                raise
        # Names of files that are not UTF-8. To decode all texts in Python takes several times as
        # long.
        self._connection.text_factory = os.fsdecode
        try:
            return self._connection.execute(query, values).fetchall()
        finally:
            self._connection.text_factory = str

    def commit(self, change: Change, version: int) -> None:
        """Write a change and wait until the disk has it.

        Args:
            change: adds and removes.
            version: of the tables that the change starts from.

        Raises:
            GalleryError: the disk is full or the file cannot be written; nothing was changed.
        """
        total = (self._total + _total(change.add)) % _MODULUS
        total = (total - sum(_crc("files", row) for row in change.remove)) % _MODULUS
        with self._errors():
            execute = self._connection.execute
            execute("BEGIN IMMEDIATE")
            try:
                removed = ((row.id,) for row in change.remove)
                self._connection.executemany("DELETE FROM files WHERE id = ?", removed)
                for name, row_type in _TABLES.items():
                    marks = ", ".join(
                        "CAST(? AS TEXT)" if f in _BYTES else "?" for f in row_type._fields
                    )
                    self._connection.executemany(
                        f"INSERT INTO {name} ({_columns(row_type)}) VALUES ({marks})",
                        _encoded(row_type, getattr(change.add, name)),
                    )
                execute("DELETE FROM state")
                self._write_state(version + 1, change.add, total)
                execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    execute("ROLLBACK")
                raise
        self._total = total

    def _create(self) -> None:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        for name, row_type in _TABLES.items():
            columns = _columns(row_type).replace("id,", "id INTEGER PRIMARY KEY,", 1)
            execute(f"CREATE TABLE {name} ({columns})")
        execute(f"CREATE TABLE state ({_STATE}, crc)")
        self._write_state(0, Tables(), 0)
        execute("COMMIT")
        self._total = 0

    def _write_state(self, version: int, tables: Tables, total: int) -> None:
        state = (version, time.time(), tables.next_id, int(tables.pending), total)
        self._connection.execute(
            "INSERT INTO state VALUES (?, ?, ?, ?, ?, ?)", (*state, _crc("state", state))
        )

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except GalleryError:
            raise
        except sqlite3.OperationalError as error:
            text = str(error)
            if "full" in text or "I/O" in text:
                remedy = "free space on the disk and run it again; what was acknowledged is safe"
            elif "locked" in text:
                remedy = "another process keeps it locked: run it again"
            elif "readonly" in text or "unable to open" in text:
                remedy = "the folder must be writable, after an interrupted run for readers too"
            else:
                remedy = "restore the gallery from a copy, or index into a new one"
            raise GalleryError(f"{self.path}: {text}; {remedy}") from None
        except (sqlite3.Error, ValueError, TypeError, OverflowError) as error:
            raise GalleryError(
                f"{self.path}: is damaged ({error}); restore the gallery from a copy, or index "
                "into a new one"
            ) from None


#: Columns with parts of paths, whose bytes need not be valid UTF-8.
_BYTES = {"path", "camera", "message"}


def _encoded(row_type: Any, rows: Iterable[tuple]) -> Iterable[tuple]:
    places = [place for place, name in enumerate(row_type._fields) if name in _BYTES]
    for row in rows:
        values = list(row)
        for place in places:
            if values[place] is not None:
                values[place] = os.fsencode(values[place])
        yield tuple(values)


def _columns(row_type: Any) -> str:
    return ", ".join(f'"{name}"' if name == "when" else name for name in row_type._fields)


def _crc(table: str, row: Sequence) -> int:
    return zlib.crc32(repr((table, *row)).encode())


def row_checksum(row: FileRow) -> int:
    """CRC-32 of a row of the files."""
    return _crc("files", row)


def _total(tables: Tables) -> int:
    total = 0
    for name in _TABLES:
        rows: Iterable[Sequence] = getattr(tables, name)
        total += sum(_crc(name, row) for row in rows)
    return total % _MODULUS
