"""A full disk of the server: one line that says so, and a gallery without half of a change."""

import contextlib
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from kd_search.cli import main
from kd_search.gallery import Gallery, GalleryError
from kd_search.gallery.postgres import PostgresGallery, PostgresWriter
from tests.gallery.gallery_inputs import filled, manifest, new_file, sha
from tests.gallery.postgres_server import Server, give, programs


@contextlib.contextmanager
def small_disk(kilobytes: int):
    """A folder on a file system of its own, and a function that gives it another size."""
    with tempfile.TemporaryDirectory(prefix="kd_search_disk.") as folder:
        Path(folder).chmod(0o755)

        def mount(options: str, *words: str) -> None:
            command = ["mount", "-t", "tmpfs", "-o", options, *words, folder]
            try:
                done = subprocess.run(command, capture_output=True, text=True)
            except FileNotFoundError:
                pytest.skip("there is no mount")
            if done.returncode:
                pytest.skip(f"a file system cannot be mounted: {done.stderr.strip()}")

        mount(f"size={kilobytes}k", "kd_search_test")
        try:
            yield Path(folder), lambda size: mount(f"remount,size={size}k", "kd_search_test")
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def add_until_it_is_full(writer, first: int) -> tuple[set[str], str]:
    """Add batches; returns the paths that were acknowledged, and what refused the next."""
    done: set[str] = set()
    for start in range(first, 100_000, 20):
        batch = [new_file(n) for n in range(start, start + 20)]
        try:
            writer.add(batch)
        except GalleryError as error:
            return done, str(error)
        done |= {file.path for file in batch}
    raise AssertionError("the disk is large")


def check(url, paths) -> None:
    """These files are in the gallery, with three people each, and no other."""
    reader = PostgresGallery(url)
    assert {row.path for row in reader.files} == paths and len(reader) == 3 * len(paths)
    reader.close()


def test_a_full_disk_of_the_tables(tmp_path, server, capsys):
    import psycopg

    programs()
    with small_disk(1500) as (disk, resize):
        give(disk)
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(f"CREATE TABLESPACE little LOCATION '{disk}'")
        try:
            schema = server.new_schema()
            url = f"{schema}%20-cdefault_tablespace%3Dlittle"
            with PostgresWriter(url, manifest()) as writer:
                done, refused = add_until_it_is_full(writer, 0)
                assert len(done) > 20
                assert writer.folder in refused and "\n" not in refused
                assert "free space" in refused and "run it again" in refused
                check(url, done)
                for change in (lambda: writer.forget([sha(0)]), writer.compact):
                    with pytest.raises(GalleryError, match="free space"):
                        change()
                    check(url, done)
            filled(tmp_path / "g", range(5000, 5100), counts=(3,))
            assert main(["push", "--gallery", str(tmp_path / "g"), "--to", url]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert "free space" in line
            check(url, done)
            resize(100_000)
            assert main(["push", "--gallery", str(tmp_path / "g"), "--to", url]) == 0
            check(url, done | {row.path for row in Gallery(tmp_path / "g").files})
            with PostgresWriter(url) as writer:
                assert writer.forget([sha(0)]) == (1, 3) and writer.compact() == 3
        finally:
            with psycopg.connect(schema, autocommit=True) as connection:
                connection.execute("DROP TABLE gallery, files, people, do_not_index")
                connection.execute("DROP TABLESPACE little")


def test_a_full_disk_of_the_log():
    """PostgreSQL ends then: it goes on when there is space, with all that was acknowledged."""
    programs()
    with small_disk(100_000) as (disk, resize):
        wal = disk / "wal"
        wal.mkdir()
        give(wal)
        server = Server("--wal-segsize=1", f"--waldir={wal}")
        try:
            url = server.new_schema()
            used = sum(path.stat().st_size for path in wal.rglob("*"))
            resize(used // 1024 + 2500)
            with PostgresWriter(url, manifest()) as writer:
                done, refused = add_until_it_is_full(writer, 0)
                assert len(done) > 20
                assert writer.folder in refused and "\n" not in refused
            server.stop(signal.SIGQUIT)
            resize(100_000)
            server.start()
            check(url, done)
            with PostgresWriter(url) as writer:
                writer.add([new_file(90_000)])
            check(url, done | {new_file(90_000).path})
        finally:
            server.remove()
