"""A gallery of 100,000 people (1,000,000 with --scale), D 256, against the flat index of FAISS."""

import os
import resource
import shutil
import tempfile
import time
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
#: Seconds that storing or removing a picture may take: 5 % of those of a fast network.
OF_A_PICTURE = 0.05 * 0.05


def run(harness):
    rows = []
    count = 1_000_000 if harness.scale else 100_000
    folder = Path(tempfile.mkdtemp(prefix="gallery_benchmark."))
    try:
        harness.say(f"writing a gallery of {count:,} people")
        seconds = write(folder / "gallery", count)
        limit = OF_A_PICTURE * count / PEOPLE_OF_A_PICTURE
        rows.append(seconds_row(harness, f"adding {count:,} people", seconds, limit))
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
        rows += removals(harness, folder / "gallery", count)
        rows.append(throughput(harness, folder))
    finally:
        shutil.rmtree(folder)
    return rows


def seconds_row(harness, case, seconds, limit):
    return harness.value_row(case, value=seconds, unit="s", limit=limit)


def unit_rows(rng, count):
    rows = rng.standard_normal((count, DIM), np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write(folder, count):
    """Fill a gallery of ten cameras; returns the seconds that the gallery took."""
    rng = np.random.default_rng(0)
    people = np.zeros(PEOPLE_OF_A_PICTURE, PEOPLE)
    people["person"] = np.arange(PEOPLE_OF_A_PICTURE)
    people["frame"], people["score"], people["frames"] = -1, 0.9, 1
    per_commit = COMMIT // PEOPLE_OF_A_PICTURE
    seconds = 0.0
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
            began = time.perf_counter()
            writer.add(batch)
            seconds += time.perf_counter() - began
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


def removals(harness, folder, count):
    with GalleryWriter(folder) as writer:
        files = list(writer.files())[: count // 100]
        began = time.perf_counter()
        writer.forget([file.sha256 for file in files])
        forgot = time.perf_counter()
        removed = writer.compact()
        compacted = time.perf_counter()
        assert removed == len(files) * PEOPLE_OF_A_PICTURE
    return [
        seconds_row(
            harness,
            f"forgetting {len(files):,} pictures",
            forgot - began,
            OF_A_PICTURE * len(files),
        ),
        seconds_row(harness, "compaction after it", compacted - forgot, 20e-6 * count),
    ]


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

    timing = harness.compare(ours, bare, repeats=3)
    return harness.row(
        f"indexing {PICTURES} pictures over reading, decoding and the network alone",
        ours_s=timing.ours_s,
        reference_s=timing.reference_s,
        equal=None,
        limit=1 / 0.85,
        ratio_is="overhead",
    )


def anonymous_memory():
    """Bytes of this process that are no files; the peak where the system does not say."""
    try:
        with open("/proc/self/status") as lines:
            found = [line.split()[1] for line in lines if line.startswith("RssAnon")]
        return int(found[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
