"""The tables of a gallery in PostgreSQL, and what one row of each becomes.

One database (or schema, by ``search_path``) holds one gallery. ``people`` has a row for each person
and file: files with the same content repeat the rows, so that a search with a filter for camera and
time reads one table. All tables but the small ones can be distributed by the id of the file.
"""

import json
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np

from ..database import FileRow
from ..manifest import GalleryError, Manifest
from ..segments import PEOPLE
from .connection import Connection, shown, stored

VERSION = 1
#: Name of the index of an approximate search.
APPROXIMATE = "people_embedding"

#: Columns with personal data get no statistics where planning does not need them: PostgreSQL keeps
#: examples of values there.
TABLES = """
CREATE TABLE gallery (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    version integer NOT NULL,
    model_sha256 text NOT NULL,
    model text NOT NULL,
    embedding_dim integer NOT NULL,
    rules text NOT NULL,
    retention_days double precision,
    created text NOT NULL,
    clock double precision NOT NULL,
    changes bigint NOT NULL DEFAULT 0,
    next_id bigint NOT NULL DEFAULT 1,
    longest double precision NOT NULL DEFAULT 0,
    removed bigint NOT NULL DEFAULT 0,
    pending boolean NOT NULL DEFAULT false
);
CREATE TABLE files (
    id bigint PRIMARY KEY,
    path bytea NOT NULL,
    size bigint NOT NULL,
    mtime_ns bigint NOT NULL,
    sha256 text NOT NULL,
    state text NOT NULL,
    found integer NOT NULL,
    width integer NOT NULL,
    height integer NOT NULL,
    seconds double precision NOT NULL,
    camera bytea,
    time double precision,
    content bigint NOT NULL,
    count integer NOT NULL,
    added double precision NOT NULL,
    rules bigint NOT NULL,
    message bytea NOT NULL
);
CREATE UNIQUE INDEX files_path ON files (sha256(path));
CREATE INDEX files_sha256 ON files (sha256);
CREATE INDEX files_content ON files (content);
CREATE INDEX files_camera ON files (camera);
CREATE TABLE people (
    file bigint NOT NULL REFERENCES files (id) ON DELETE CASCADE,
    person integer NOT NULL,
    content bigint NOT NULL,
    camera bytea,
    first_time double precision,
    last_time double precision,
    x0 real NOT NULL,
    y0 real NOT NULL,
    x1 real NOT NULL,
    y1 real NOT NULL,
    score real NOT NULL,
    frame integer NOT NULL,
    second real NOT NULL,
    first real NOT NULL,
    last real NOT NULL,
    frames integer NOT NULL,
    embedding vector(%d) NOT NULL,
    PRIMARY KEY (file, person)
);
CREATE INDEX people_camera_time ON people (camera, first_time, last_time);
CREATE INDEX people_time ON people (first_time, last_time);
CREATE INDEX people_content ON people (content);
CREATE TABLE do_not_index (
    sha256 text NOT NULL,
    x0 double precision,
    y0 double precision,
    x1 double precision,
    y1 double precision,
    "when" double precision NOT NULL
);
CREATE INDEX do_not_index_sha256 ON do_not_index (sha256);
ALTER TABLE files ALTER COLUMN path SET STATISTICS 0;
ALTER TABLE files ALTER COLUMN sha256 SET STATISTICS 0;
ALTER TABLE people ALTER COLUMN embedding SET STATISTICS 0;
"""

#: Columns of ``files`` in the order of :class:`FileRow`, without those of segments.
FILE_COLUMNS = tuple(name for name in FileRow._fields if name not in ("segment", "start"))
FILE_TYPES = (
    "int8 bytea int8 int8 text text int4 int4 int4 float8 bytea float8 int8 int4 float8 int8 bytea"
).split()
#: Columns of ``people`` that :func:`person_record` reads and :func:`person_values` writes.
RECORD_COLUMNS = "x0 y0 x1 y1 score frame second first last frames person".split()
PERSON_COLUMNS = (*"file content camera first_time last_time".split(), *RECORD_COLUMNS)
PERSON_TYPES = (
    "int8 int8 bytea float8 float8 float4 float4 float4 float4 float4 int4 float4 float4 float4 "
    "int4 int4"
).split()
_BYTES = {"path", "camera", "message"}


def columns(names: Sequence[str], table: str = "") -> str:
    """Names for a statement."""
    return ", ".join(f"{table}.{name}" if table else name for name in names)


def file_values(row: FileRow) -> tuple:
    """Values of :data:`FILE_COLUMNS`."""
    return tuple(
        stored(value) if name in _BYTES else value
        for name, value in ((name, getattr(row, name)) for name in FILE_COLUMNS)
    )


def file_row(values: Sequence[Any]) -> FileRow:
    """The row of :data:`FILE_COLUMNS`; its place says how many people it has, not where."""
    row: dict[str, Any] = {
        name: shown(value) if name in _BYTES else value for name, value in zip(FILE_COLUMNS, values)
    }
    return FileRow(**row, segment=0, start=0)


def person_values(file: FileRow, record: np.void) -> tuple:
    """Values of :data:`PERSON_COLUMNS` of a record of :data:`PEOPLE`."""
    values: Any = record.tolist()
    box, score, frame, second, first, last, frames, person = values
    times = (None, None) if file.time is None else (file.time + first, file.time + last)
    of_file = file.id, file.content, stored(file.camera), *times
    return (*of_file, *box, score, frame, second, first, last, frames, person)


def person_record(values: Sequence[Any]) -> np.void:
    """A record of :data:`PEOPLE` from :data:`RECORD_COLUMNS`."""
    record: Any = np.array((values[:4], *values[4:]), PEOPLE)[()]
    return record


def read_manifest(connection: Connection) -> Optional[Manifest]:
    """The manifest of a database; ``None`` if it holds no gallery.

    Raises:
        GalleryError: its tables are of another version.
    """
    if connection.rows("SELECT to_regclass('gallery')") == [(None,)]:
        return None
    rows = connection.rows(
        "SELECT version, model_sha256, model, embedding_dim, rules, retention_days, created "
        "FROM gallery"
    )
    if not rows:
        return None
    ((version, sha256, model, dim, rules, retention, created),) = rows
    if version != VERSION:
        raise GalleryError(
            f"{connection.name}: tables of version {version}, this kd_search reads {VERSION}: "
            "update it"
        )
    return Manifest(sha256, model, dim, json.loads(rules), retention, created=created)
