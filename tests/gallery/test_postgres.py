"""A gallery in a database: the same state and answers as one in a folder, on a real server."""

import contextlib
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kd_search.cli import main
from kd_search.gallery import Filter, Gallery, GalleryError, GalleryWriter, NewFile
from kd_search.gallery.capture import Capture, CaptureRules
from kd_search.gallery.indexing import Indexer, Settings
from kd_search.gallery.opening import open_gallery, open_writer
from kd_search.gallery.postgres import PostgresGallery, PostgresWriter, push
from kd_search.gallery.postgres.connection import Connection, shown_name
from tests.gallery.fake_searcher import FakeSearcher, save
from tests.gallery.gallery_inputs import (
    DIM,
    copy_of,
    embeddings,
    filled,
    manifest,
    new_file,
    people,
    sha,
)
from tests.gallery.postgres_server import Server

QUERIES = np.eye(DIM)[:3]


@pytest.fixture
def url(server):
    return server.new_schema()


def execute(url, statement, *values):
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement, values)
        return cursor.fetchall() if cursor.description else None


def state(name):
    """All that readers and writers know, without where rows are and when they came."""
    with open_writer(name) as writer:
        files = {
            row.path: row._replace(segment=0, start=0, added=0.0, count=len(writer.people(row)))
            for row in writer.files()
        }
        records = {row.path: writer.people(row).tolist() for row in writer.files()}
        forgotten = [writer.forgotten(sha(n)) for n in range(20)]
        rows = writer.rows
        assert all(writer.file(path).path == path for path in files)
    reader = open_gallery(str(name))
    assert len(reader) == rows and {row.path for row in reader.files} == set(files)
    hits = [reader.search(query, 30, per=per) for query in QUERIES for per in ("person", "camera")]
    ids = [reader.ids_of(sha(n)) for n in range(20)]
    return files, str(records), forgotten, rows, reader.cameras, hits, ids


def test_every_change_gives_the_same_state_as_in_a_folder(tmp_path, url):
    tracklet = people(2)
    tracklet["frame"], tracklet["first"], tracklet["second"] = 7, 2.5, 3.25
    tracklet["last"] = 6.125
    strange = "/footage/" + os.fsdecode(b"caf\xe9\xff.jpg")
    changes = [
        lambda w: w.add([new_file(n, (3, 0, 1, 4)[n % 4]) for n in range(12)]),
        lambda w: w.add([copy_of(4, "/other/copy.jpg", camera="cam9"), copy_of(1, "/other/none")]),
        lambda w: w.add([NewFile("/bad.jpg", 9, 9, sha(15), message="/bad.jpg: is no picture")]),
        lambda w: w.add([new_file(16, 2, people=tracklet, seconds=10.0, time=50.0)]),
        lambda w: w.add([new_file(17, 2, path=strange, camera=None, time=None)]),
        lambda w: w.add([new_file(3, 2, content=18)]),  # another content of the same path
        lambda w: w.forget([sha(8), sha(19)], [(w.file("/footage/cam0/0004.jpg"), 2)]),
        lambda w: w.remove([w.file("/footage/cam3/0007.jpg"), w.file("/bad.jpg")]),
        lambda w: w.remove([w.file("/footage/cam0/0004.jpg")]),  # its copy keeps the people
        lambda w: w.compact(),
        lambda w: w.add([new_file(7, 1)]),
    ]
    for name in (tmp_path / "g", url):
        with open_writer(name if name == url else str(name), manifest()) as writer:
            results = [change(writer) for change in changes]
        assert results[6] == (1, 4)
    folder, database = state(str(tmp_path / "g")), state(url)
    for ours, expected in zip(database, folder):
        assert ours == expected


def test_a_closed_writer_has_released_the_gallery_already(url, monkeypatch):
    writer = PostgresWriter(url, manifest())
    # The server notices the end of a connection later.
    monkeypatch.setattr(writer._connection, "close", lambda: None)
    writer.close()
    with PostgresWriter(url) as other:
        with pytest.raises(GalleryError, match="another process writes"):
            PostgresWriter(url)
        other.add([new_file(1)])
    monkeypatch.undo()
    writer.close()


def test_what_is_refused_leaves_nothing(url):
    with PostgresWriter(url, manifest()) as writer:
        writer.add([new_file(1)])
        with pytest.raises(ValueError, match="0003.jpg.*unit length"):
            writer.add([new_file(2), new_file(3, 3, embeddings=2 * embeddings(3, 3))])
        with pytest.raises(GalleryError, match="another process writes"):
            PostgresWriter(url)
        broken = new_file(5)
        broken.seconds = "ten"
        with pytest.raises((GalleryError, TypeError)):
            writer.add([new_file(4), broken])
        assert [row.path for row in writer.files()] == ["/footage/cam1/0001.jpg"]
    with PostgresWriter(url) as writer:  # the lock is free again
        writer.add([new_file(2)])
    assert len(PostgresGallery(url)) == 6


def test_databases_that_cannot_be_used(server, url, monkeypatch):
    with pytest.raises(GalleryError, match="holds no gallery"):
        PostgresGallery(url)
    with pytest.raises(GalleryError, match="holds no gallery"):
        PostgresWriter(url)
    gone = url.replace("/postgres?", "/nothing?")
    with pytest.raises(GalleryError, match="nothing") as refused:
        PostgresGallery(gone)
    assert "\n" not in str(refused.value) and "secret" not in str(refused.value)
    with PostgresWriter(url, manifest()):
        pass
    execute(url, "UPDATE gallery SET version = 99")
    with pytest.raises(GalleryError, match="version 99"):
        PostgresGallery(url)
    monkeypatch.setattr("kd_search.gallery.postgres.connection.psycopg", None)
    with pytest.raises(ImportError, match="pip install 'psycopg"):
        PostgresGallery(url)


def test_a_password_is_never_shown():
    assert shown_name("postgresql://me:secret@db.example:5433/g") == (
        "postgresql://db.example:5433/g"
    )
    assert "secret" not in shown_name("postgresql://me:secret@[/g")


def explained(reader, where, top_k=5, per="picture"):
    """Names of the nodes and indices of the plan of a search."""
    plans = []
    connection = reader._connection.opened()
    execute_plainly = connection.cursor_factory.execute

    class Explaining(connection.cursor_factory):
        def execute(self, query, values=None, **options):
            if "vector_send" in query:
                execute_plainly(self, "EXPLAIN (FORMAT JSON) " + query, values)
                plans.append(json.dumps(self.fetchall()))
            return super().execute(query, values, **options)

    connection.cursor_factory = Explaining
    try:
        reader.search(embeddings(1, 1)[0], top_k, where, per=per)
    finally:
        connection.cursor_factory = Explaining.__mro__[1]
    return plans[0]


@pytest.fixture(scope="module")
def large(server):
    """4,000 people of ten cameras with the index of an approximate search."""
    url = server.new_schema()
    with PostgresWriter(url, manifest()) as writer:
        writer.add([new_file(n, 4, camera=f"cam{n % 10}", time=1000.0 * n) for n in range(1000)])
        writer.build_approximate_index()
    execute(url, "ANALYZE")
    return url


NARROW = Filter(cameras=["cam3"], start=400_000.0, end=499_000.0)


def test_a_narrow_filter_reads_the_b_tree_of_camera_and_time(large):
    for approximate in (False, True):
        plan = explained(PostgresGallery(large, approximate=approximate), NARROW)
        assert "people_camera_time" in plan and "people_embedding" not in plan
        # Both ends of the time bound what is read of the index.
        assert plan.count("first_time >=") and plan.count("first_time <=")


def test_only_an_approximate_search_uses_its_index(large):
    exact, approximate = PostgresGallery(large), PostgresGallery(large, approximate=True)
    assert "people_embedding" not in explained(exact, None)
    assert "people_embedding" in explained(approximate, None)
    assert "people_embedding" not in explained(approximate, None, per="camera")
    # With a filter that keeps most, the graph is followed until enough was found.
    wide = Filter(start=0.0, end=900_000.0)
    assert "people_embedding" in explained(approximate, wide)
    for query in QUERIES:
        found = approximate.search(query, 300, wide, per="person")
        expected = exact.search(query, 300, wide, per="person")
        assert len(found) == 300
        assert len({h.id for h in found} & {h.id for h in expected}) > 270


def test_an_approximate_search_that_finds_too_few_is_repeated_exactly(large):
    reader = PostgresGallery(large, approximate=True)
    everybody = reader.search(QUERIES[0], 5000, per="person")
    assert len(everybody) == 4000


def test_an_approximate_search_needs_its_index(url):
    with PostgresWriter(url, manifest()) as writer:
        writer.add([new_file(1)])
    with pytest.raises(GalleryError, match="--approximate"):
        PostgresGallery(url, approximate=True)


# -- copying ---------------------------------------------------------------------------------------


def answers(reader):
    """Hits without the ids, which are of each store."""
    return [
        [replace(hit, id="") for hit in reader.search(query, 100, per="person")]
        for query in QUERIES
    ]


def test_push_copies_what_is_new_and_what_was_forgotten(tmp_path, url):
    filled(tmp_path / "g", range(12))
    gallery = Gallery(tmp_path / "g")
    with PostgresWriter(url, gallery.manifest) as writer:
        assert push(gallery, writer).copied == 12
        report = push(gallery, writer)
        assert (report.unchanged, report.copied) == (12, 0)
    assert answers(PostgresGallery(url)) == answers(gallery)
    with GalleryWriter(tmp_path / "g") as writer:
        writer.forget([sha(8)], [(writer.file("/footage/cam3/0003.jpg"), 2)])
        writer.add([new_file(20, 2), new_file(4, 1), copy_of(7, "/copy.jpg")])
    with PostgresWriter(url) as writer:
        report = push(gallery, writer)
        assert (report.copied, report.forgotten, report.unchanged) == (3, 1, 10)
        writer.compact(if_worth_it=True)
        assert writer.forgotten(sha(8)) is None and len(writer.forgotten(sha(3))) == 1
        assert push(gallery, writer).copied == 0
    gallery.refresh()
    reader = PostgresGallery(url)
    assert answers(reader) == answers(gallery) and len(reader) == len(gallery)


def test_push_brings_nobody_back_whom_the_database_has_forgotten(tmp_path, url):
    filled(tmp_path / "g", range(12))
    gallery = Gallery(tmp_path / "g")
    with PostgresWriter(url, gallery.manifest) as writer:
        writer.add([new_file(3, 4, path="/elsewhere.jpg")])
        writer.forget([sha(8)], [(writer.file("/elsewhere.jpg"), 2)])
        report = push(gallery, writer)
        assert (report.do_not_index, report.do_not_index_people) == (1, 1)
        assert writer.file("/footage/cam0/0008.jpg") is None
        people_left = writer.people(writer.file("/footage/cam3/0003.jpg"))
        assert people_left["person"].tolist() == [0, 1, 3]
        assert writer.content(sha(3)).content == writer.file("/footage/cam3/0003.jpg").content


def test_push_asks_for_many_files_at_once(tmp_path, url, monkeypatch):
    filled(tmp_path / "g", range(100), per_commit=100)
    gallery, asked = Gallery(tmp_path / "g"), []
    rows = Connection.rows

    def counted(self, query, values=()):
        asked.append(query)
        return rows(self, query, values)

    with PostgresWriter(url, gallery.manifest) as writer:
        monkeypatch.setattr(Connection, "rows", counted)
        assert push(gallery, writer).copied == 100
        assert push(gallery, writer).unchanged == 100
        assert len(asked) < 20


def test_push_refuses_another_network(tmp_path, url):
    filled(tmp_path / "g", range(2))
    with PostgresWriter(url, replace(manifest(), model_sha256="cd" * 32)) as writer:
        with pytest.raises(GalleryError, match="was indexed with"):
            push(Gallery(tmp_path / "g"), writer)
        assert writer.rows == 0


def test_a_server_that_is_killed_loses_nothing_acknowledged():
    server = Server()
    try:
        url = server.new_schema()
        with PostgresWriter(url, manifest()) as writer:
            writer.add([new_file(n) for n in range(50)])
            reader = PostgresGallery(url)
            before = answers(reader)
            server.stop(signal.SIGQUIT)  # all its processes end at once, without a checkpoint
            with pytest.raises(GalleryError):
                writer.add([new_file(51)])
            server.start()
            # A writer has lost its lock with its connection: it must not go on.
            with pytest.raises(GalleryError, match="run it again"):
                writer.add([new_file(51)])
        assert answers(reader) == before
        with PostgresWriter(url) as writer:
            writer.add([new_file(51)])
        assert len(reader.files) == 51
    finally:
        server.remove()


# -- forgetting ------------------------------------------------------------------------------------


def test_nothing_of_what_was_forgotten_is_left_in_any_file_of_the_server():
    """Data files, write-ahead log and statistics, after the compaction of a forgotten picture."""
    server = Server()
    try:
        url = server.new_schema()
        rows = [embeddings(n, 3) for n in range(200)]
        secrets = [b"/footage/cam1/secret-path.jpg", b"a secret camera", *_as_stored(rows[1])]
        execute(url, "SELECT pg_switch_wal()")  # what follows fits into one file of the log
        with PostgresWriter(url, manifest()) as writer:
            writer.add([new_file(n, 3, embeddings=rows[n]) for n in range(200) if n != 1])
            writer.add(
                [
                    new_file(
                        1,
                        3,
                        embeddings=rows[1],
                        path="/footage/cam1/secret-path.jpg",
                        camera="a secret camera",
                    )
                ]
            )
            writer.build_approximate_index()
            execute(url, "ANALYZE")
            execute(url, "CHECKPOINT")
            there = server.contents()
            assert all(secret in there for secret in secrets)
            assert writer.forget([sha(1)]) == (1, 3)
            assert writer.compact() == 3
        left = server.contents()
        assert [secret for secret in secrets if secret in left] == []
        assert _as_stored(rows[2])[0] in left and sha(1).encode() in left  # the search can find
        assert len(PostgresGallery(url, approximate=True).search(rows[2][0], 5)) == 5
    finally:
        server.remove()


def _as_stored(rows):
    return [row.astype("<f4").tobytes() for row in rows]


def test_what_must_be_gone_is_removed_by_a_later_run(url):
    with PostgresWriter(url, manifest()) as writer:
        writer.add([new_file(n) for n in range(4)])
        writer.remove([writer.file("/footage/cam0/0000.jpg")], for_good=True)
    with PostgresWriter(url) as writer:
        assert writer.compact(if_worth_it=True) == 3
        assert writer.compact(if_worth_it=True) == 0


# -- commands --------------------------------------------------------------------------------------


def test_a_role_that_may_not_make_a_checkpoint_is_told(url):
    with PostgresWriter(url, manifest()) as writer:
        writer.add([new_file(1)])
    execute(url, "DROP ROLE IF EXISTS clerk")
    execute(url, "CREATE ROLE clerk LOGIN")
    schema = execute(url, "SELECT current_schema()")[0][0]
    execute(url, f"GRANT ALL ON SCHEMA {schema} TO clerk")
    for table in ("gallery", "files", "people", "do_not_index"):
        execute(url, f"ALTER TABLE {table} OWNER TO clerk")
    with PostgresWriter(url.replace("kd:secret@", "clerk@")) as writer:
        writer.forget([sha(1)])
        with pytest.raises(GalleryError, match="GRANT pg_checkpoint"):
            writer.compact()
        assert writer.rows == 0
    execute(url, "REASSIGN OWNED BY clerk TO kd")
    execute(url, "DROP OWNED BY clerk")
    execute(url, "DROP ROLE clerk")


@pytest.fixture
def network(monkeypatch):
    class Runtime:
        @staticmethod
        def load(path, threads=None):
            return FakeSearcher()

    monkeypatch.setattr("kd_search.runtime.PersonSearcher", Runtime, raising=False)


def test_the_commands_take_a_database(tmp_path, url, network, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(4):
        save(tmp_path / "f" / f"{i}.png", (i, i + 10), height=40 + i)
    model = ["--model", "student.onnx"]
    assert main(["index", "f", *model, "--gallery", "people"]) == 0
    assert main(["push", "--gallery", "people", "--to", url]) == 0
    out, err = capsys.readouterr()
    assert "4 copied with 8 people" in out and "8 people to search" in out
    save(tmp_path / "f" / "4.png", (4, 1), height=50)
    assert main(["index", "f", *model, "--gallery", url]) == 0  # straight into it
    out, err = capsys.readouterr()
    assert "4 unchanged, 1 new with 2 people" in out and "10 people to search" in out
    search = ["search", "--gallery", url, *model, "--query", "f/1.png", "--box", "0", "0", "20"]
    assert main([*search, "20", "--output", "found.json", "--top-k", "2"]) == 0
    first, *_ = json.loads(Path("found.json").read_text())["results"]
    assert first["path"] == str(tmp_path / "f" / "4.png") and first["similarity"] > 0.999
    assert main(["forget", "--gallery", url, "--person", first["id"]]) == 0
    assert main(["forget", "--gallery", url, "--picture", "f/0.png"]) == 0
    assert main(["index", "f", *model, "--gallery", url]) == 0
    out, err = capsys.readouterr()
    assert "1 files left out" in out and "7 people to search" in out
    assert "secret" not in out + err  # the password
    assert main(["push", "--gallery", "people", "--to", "mysql://somewhere"]) == 2
    assert "--to" in capsys.readouterr().err


def test_indexing_into_a_database_goes_on_where_it_stopped(tmp_path, url):
    for i in range(6):
        save(tmp_path / f"{i}.png", (i,), height=40 + i)
    with PostgresWriter(url, manifest()) as writer:

        class Interrupted(FakeSearcher):
            def detect(self, rgb):
                if self.seen == 3:
                    raise KeyboardInterrupt
                return super().detect(rgb)

        for searcher, seen in ((Interrupted(), 3), (FakeSearcher(), 3)):
            indexer = Indexer(writer, searcher, Capture(CaptureRules()), Settings())
            with contextlib.suppress(KeyboardInterrupt):
                indexer.run([str(tmp_path)])
            assert searcher.seen == seen
        assert writer.rows == 6

        asked, rows = [], writer._connection.rows

        def counted(query, values=()):
            asked.append(query)
            return rows(query, values)

        writer._connection.rows = counted
        report = Indexer(writer, FakeSearcher(), Capture(CaptureRules()), Settings()).run(
            [str(tmp_path)]
        )
        assert report.unchanged == 6
        # One question for the states of all of them.
        assert sum("sha256(path)" in query for query in asked) == 1
