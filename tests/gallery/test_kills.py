"""Processes that are killed while they write: nothing acknowledged is lost, and nothing is twice.

GALLERY_KILLS=50 in the environment kills each of them fifty times.
"""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kd_search.gallery import Gallery, GalleryError
from kd_search.gallery.capture import Capture, CaptureRules
from kd_search.gallery.indexing import Indexer, Settings
from kd_search.gallery.opening import is_database, open_gallery
from kd_search.gallery.postgres import PostgresGallery, push
from tests.gallery.fake_searcher import FakeSearcher, colour_of, embedding_of, save
from tests.gallery.gallery_inputs import DIM, filled
from tests.gallery.killed_worker import patiently_open
from tests.gallery.postgres_server import Server

KILLS = int(os.environ.get("GALLERY_KILLS", "2"))
WORKER = Path(__file__).with_name("killed_worker.py")
PICTURES, FILES = 40, 300


def kill(what: str, source, gallery: str, log: Path, seconds: float, victim=None) -> bool:
    """Start a worker and kill it, or the server, after so many seconds.

    Returns whether it had not ended before. ``log`` has what it was acknowledged.
    """
    log.write_text("")
    command = [sys.executable, str(WORKER), what, str(source), gallery, str(log)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and log.stat().st_size == 0:
        time.sleep(0.001)
    time.sleep(seconds)
    early = process.poll() is None
    if victim is None:
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors
        return process.returncode != 0
    victim.stop(signal.SIGQUIT)  # all its processes end at once, without a checkpoint
    _, errors = process.communicate()
    assert process.returncode == 0 or "GalleryError" in errors, errors
    victim.start()
    return early


@pytest.fixture(params=["folder", "database"])
def new_gallery(request, tmp_path):
    """Makes names of galleries that do not exist yet."""
    if request.param == "database":
        return request.getfixturevalue("server").new_schema
    return lambda: str(tmp_path / f"g{random.getrandbits(64):x}")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(PICTURES):
        save(folder / f"{i:03}.png", (i,) if i % 5 else (), height=40 + i)  # no two alike
    return folder


def names(gallery: str) -> set[str]:
    """Paths of its files; none for one whose creation was interrupted."""
    try:
        reader = open_gallery(gallery)
    except GalleryError as error:
        assert "gallery (kd-search" in str(error), error
        return set()
    paths = [row.path for row in reader.files]
    assert len(set(paths)) == len(paths)
    _close(reader)
    return set(paths)


def _close(reader) -> None:
    if isinstance(reader, PostgresGallery):
        reader.close()


def check_people(gallery: str, paths) -> None:
    """Everybody of these pictures, and nobody twice."""
    if not paths:
        return
    reader, numbers = open_gallery(gallery), [int(Path(path).stem) for path in paths]
    assert len(reader) == sum(1 for i in numbers if i % 5)
    for path, i in zip(paths, numbers):
        if i % 5:
            hit = reader.search(embedding_of(colour_of(i)), 1)[0]
            assert hit.path == path and hit.similarity > 0.999
    _close(reader)


def finish(gallery: str, pictures) -> int:
    """Index the rest; returns the number of pictures that the network had to see."""
    searcher = FakeSearcher()
    with patiently_open(gallery) as writer:
        Indexer(writer, searcher, Capture(CaptureRules()), Settings()).run([str(pictures)])
    return searcher.seen


def test_indexing(tmp_path, pictures, new_gallery):
    rng, log, kills, gallery = random.Random(1), tmp_path / "log", 0, new_gallery()
    before: set[str] = set()
    while kills < KILLS:
        killed = kill("index", pictures, gallery, log, rng.uniform(0, 0.4))
        kills += killed
        indexed = names(gallery)
        acknowledged = {line for line in log.read_text().split() if line != "ready"}
        assert before | acknowledged <= indexed and not before & acknowledged
        check_people(gallery, indexed)
        before = indexed
        if not killed or rng.random() < 0.2:
            assert finish(gallery, pictures) == PICTURES - len(indexed)
            assert len(names(gallery)) == PICTURES
            before, gallery = set(), new_gallery()


def test_forgetting_and_compacting(tmp_path, pictures, new_gallery):
    rng, log, kills, before = random.Random(2), tmp_path / "log", 0, set()
    while kills < KILLS:
        if len(before) < 10:
            gallery = new_gallery()
            finish(gallery, pictures)
            before = names(gallery)
        kills += kill("forget", pictures, gallery, log, rng.uniform(0, 0.3))
        forgotten = {line for line in log.read_text().split() if line != "ready"}
        left = names(gallery)
        # Of the last file the kill may have kept the acknowledgement from the log.
        assert left <= before - forgotten and len(left) >= len(before) - len(forgotten) - 1
        check_people(gallery, left)
        before = left
    with patiently_open(gallery) as writer:
        writer.compact()
        assert writer.rows_to_remove == 0
    check_people(gallery, left)
    if not is_database(gallery):
        contents = b"".join(p.read_bytes() for p in Path(gallery).rglob("*") if p.is_file())
        for number in range(PICTURES):
            secrets = f"{number:03}.png".encode(), embedding_of(colour_of(number)).tobytes()
            there = str(pictures / f"{number:03}.png") in left
            assert [s in contents for s in secrets] == [there, there and number % 5 > 0]
        # A folder of a compaction that did not finish is gone.
        assert len(list(Path(gallery).glob("generation-*"))) == 1


def answers(gallery):
    """Hits without the ids, which are of each store."""
    return [
        [replace(hit, id="") for hit in gallery.search(query, 100, per="person")]
        for query in np.eye(DIM)[:3]
    ]


@pytest.mark.parametrize("victim", ["the process", "the server"])
def test_pushing(tmp_path, request, victim):
    filled(tmp_path / "g", range(FILES), per_commit=100)
    source, own = Gallery(tmp_path / "g"), Server() if victim == "the server" else None
    server = own or request.getfixturevalue("server")
    rng, log, kills, url, before = random.Random(3), tmp_path / "log", 0, server.new_schema(), 0
    try:
        while kills < KILLS:
            killed = kill("push", tmp_path / "g", url, log, rng.uniform(0, 0.2), own)
            kills += killed
            paths = names(url)
            acknowledged = log.read_text().split()[-1]
            there = 0 if acknowledged == "ready" else int(acknowledged)
            assert len(paths) >= max(before, there)
            before = len(paths)
            if paths:
                reader = PostgresGallery(url)
                assert len(reader) == sum((3, 0, 1, 4)[int(Path(p).stem) % 4] for p in paths)
                reader.close()
            if not killed or rng.random() < 0.2:
                with patiently_open(url) as writer:
                    report = push(source, writer)
                assert (report.unchanged, report.copied) == (before, FILES - before)
                assert answers(PostgresGallery(url)) == answers(source)
                url, before = server.new_schema(), 0
    finally:
        if own is not None:
            own.remove()
