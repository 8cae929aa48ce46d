"""Connections to PostgreSQL, their errors, and how embeddings travel."""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Optional

import numpy as np

from ..manifest import GalleryError

try:
    import psycopg
except ImportError:
    psycopg: Any = None  # type: ignore[no-redef]


def shown_name(url: str) -> str:
    """A database as it may be printed: without its password."""
    if psycopg is None:
        return "postgresql://..."
    try:
        parts = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.Error:
        return "postgresql://..."
    host = str(parts.get("host", ""))
    place = host if not host.startswith("/") else ""
    port = f":{parts['port']}" if place and parts.get("port") else ""
    return f"postgresql://{place}{port}/{parts.get('dbname', '')}"


class Connection:
    """A connection that several threads may use, one at a time."""

    def __init__(self, url: str, *, reopens: bool = True):
        """
        Args:
            url: ``postgresql://USER@HOST/DATABASE``, with the parameters of libpq.
            reopens: connect again where the server has closed the connection. A writer must not:
                its lock ends with the connection.

        Raises:
            ImportError: psycopg is not installed.
            GalleryError: the server cannot be reached; names it without the password.
        """
        if psycopg is None:
            raise ImportError("psycopg is not installed: pip install 'psycopg[binary]'")
        self._url, self._reopens, self.name = url, reopens, shown_name(url)
        self.lock = threading.RLock()
        self._open: Any = None
        self._vector_oid = 0

    def close(self) -> None:
        with self.lock, contextlib.suppress(psycopg.Error):
            if self._open is not None:
                self._open.close()

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Make errors of the server one line that names the database."""
        try:
            yield
        except psycopg.Error as error:
            text = (str(error).strip() or type(error).__name__).splitlines()
            remedy = ""
            if isinstance(error, psycopg.errors.DiskFull):
                remedy = (
                    "; free space on the server's disk and run it again: what was acknowledged is "
                    "safe"
                )
            raise GalleryError(f"{self.name}: {text[0]}{remedy}") from None

    @contextlib.contextmanager
    def transaction(self, *, read_only: bool = False) -> Iterator[Any]:
        """A cursor whose statements see one state, and are committed together or not at all."""
        with self.lock, self.errors():
            connection = self.opened()
            with connection.transaction(), connection.cursor() as cursor:
                if read_only:
                    cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                yield cursor

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple]:
        """Result of one statement."""
        with self.lock, self.errors(), self.opened().cursor() as cursor:
            cursor.execute(query, values)
            return cursor.fetchall() if cursor.description else []

    def opened(self) -> Any:
        """The connection of psycopg, opened (again) where it is not."""
        if self._open is not None and self._open.closed and not self._reopens:
            raise GalleryError(
                f"{self.name}: the connection was lost; run it again: what was acknowledged is safe"
            )
        if self._open is None or self._open.closed:
            # Statements that are prepared get plans for any value after some calls, which are wrong
            # for filters.
            self._open = psycopg.connect(
                self._url, autocommit=True, prepare_threshold=None, application_name="kd_search"
            )
            self._open.execute("SET client_encoding = 'UTF8'; SET jit = off")
            self._vector_oid = 0
        return self._open

    @property
    def vector_oid(self) -> int:
        """Number of pgvector's type in this database."""
        with self.lock:
            connection = self.opened()
            if not self._vector_oid:
                found = connection.execute("SELECT to_regtype('vector')::oid::int8").fetchone()[0]
                if found is None:
                    raise GalleryError(f"{self.name}: pgvector is not installed in that database")
                self._vector_oid = found
                connection.adapters.register_dumper(Vector, _dumper(found))
            return self._vector_oid


class Vector:
    """An embedding (D,) as a parameter of a statement, after :attr:`Connection.vector_oid`."""

    def __init__(self, row: np.ndarray):
        self.row = row


def _dumper(type_oid: int) -> type:
    from psycopg.adapt import Dumper

    class VectorDumper(Dumper):
        """The binary form of pgvector: number of values, 0, values; big endian."""

        format = psycopg.pq.Format.BINARY
        oid = type_oid

        def dump(self, obj: Vector) -> bytes:
            return len(obj.row).to_bytes(2, "big") + b"\0\0" + obj.row.astype(">f4").tobytes()

    return VectorDumper


def rows_of_vectors(contents: Sequence[bytes], embedding_dim: int) -> np.ndarray:
    """(N, D) float32 of what ``vector_send`` returns."""
    rows = np.frombuffer(b"".join(content[4:] for content in contents), ">f4")
    return rows.astype(np.float32).reshape(len(contents), embedding_dim)


def stored(text: Optional[str]) -> Optional[bytes]:
    """A text with parts of paths, whose bytes need not be valid UTF-8."""
    return None if text is None else os.fsencode(text)


def shown(content: Optional[bytes]) -> Optional[str]:
    """The text of :func:`stored`."""
    return None if content is None else os.fsdecode(bytes(content))
