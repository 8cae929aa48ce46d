"""Search evaluation at the sizes of PRW and CUHK-SYSU against the per-pair definition; memory.

``--scale`` shows instead how time and memory grow up to 100,000 images and 10,000 queries.
"""

import ctypes
import gc
import json
import resource
import subprocess
import sys
import time

import numpy as np
from _search_reference import search_one_query, split_by_image
from _search_sets import EMBEDDING_DIM, cuhk_set, prw_set

from kd_search.evaluation import (
    Gallery,
    GalleryProtocol,
    Protocol,
    RankingSettings,
    TableOptions,
    rank_gallery,
)
from kd_search.evaluation.search.galleries import MODES, complete_gallery
from kd_search.evaluation.search.protocol_table import table_rows

SAMPLED_QUERIES = 100
SPEED_UP = 90.0
ALL_TABLES = 4.0
TOLERANCE = 1e-9
MEMORY_GB = 1.5
# (images, queries); each step is a process of its own.
SCALE = ((1000, 1000), (6250, 2500), (25000, 5000), (50000, 10000), (100000, 10000))
# Memory beyond the set itself may grow by this factor from the first step that is worked on in
# blocks, of embeddings too, to the last; smaller sets fit into one.
BLOCKED = 2
FLAT = 2.0


def run(harness):
    if harness.scale:
        return scale_rows(harness)
    rows = [_prw_row(harness)]
    data = cuhk_set()
    harness.say(f"CUHK-SYSU size: {data.num_images} images, {len(data.detections)} detections")
    rows += _cuhk_rows(harness, data)
    rows.append(_all_tables_row(harness, data))
    del data
    for case, name in (
        ("PRW size, one table", "prw"),
        ("CUHK-SYSU size, all tables of detected and ground-truth boxes", "cuhk"),
    ):
        rows.append(
            harness.value_row(
                f"peak memory of a process that makes the set and evaluates it: {case}",
                value=_measure(name)["peak_gb"],
                unit="GB",
                limit=MEMORY_GB,
            )
        )
    return rows


def _prw_row(harness):
    data = prw_set()
    harness.say(f"PRW size: {data.num_images} images, {len(data.detections)} detections")
    return _against_definition(
        harness,
        "PRW size, whole gallery",
        data,
        lambda: _one_table(data),
        [None],
        SPEED_UP,
    )


def _cuhk_rows(harness, data):
    g100 = next(gallery for gallery in data.galleries if gallery.name == "G100")
    protocols = [GalleryProtocol(Gallery()), GalleryProtocol(g100)]

    def both():
        return rank_gallery(data.detections, data.ground_truth, data.queries, protocols)

    def alone():
        return rank_gallery(data.detections, data.ground_truth, data.queries, protocols[1:])

    return [
        _against_definition(
            harness, "CUHK-SYSU size, whole pool and G100", data, both, [None, g100], SPEED_UP
        ),
        # One pass costs nearly the same whatever the gallery: a small list alone gains little.
        _against_definition(harness, "CUHK-SYSU size, G100 alone", data, alone, [g100], 1.0),
    ]


def _against_definition(harness, case, data, ours, galleries, limit):
    """A row: ``ours`` gives a result per gallery (None: all images), the definition too."""
    results = ours()
    count = len(data.queries)
    sampled = count if harness.full else SAMPLED_QUERIES
    sample = np.sort(np.random.default_rng(1).choice(count, sampled, replace=False))
    images = split_by_image(data.detections, data.ground_truth, data.num_images)
    reference = []

    def definition():
        reference[:] = [
            [_search_by_definition(data, images, q, gallery) for q in sample]
            for gallery in galleries
        ]

    harness.say(f"per-pair definition on {sampled} queries; this takes a while")
    timing = harness.compare(
        ours, definition, repeats=1 if harness.full else min(3, harness.repeats), warmup=0
    )
    difference, ranks_equal = 0.0, True
    for result, expected in zip(results, reference):
        ap = np.array([query.ap for query in expected])
        difference = max(difference, float(np.abs(ap - result.ap[sample]).max()))
        ranks = [query.first_hit_rank for query in expected]
        ranks_equal &= ranks == result.first_hit_rank[sample].tolist()
    counted = results[0].num_gt > 0
    return harness.row(
        f"{case}: {data.num_images:,} images, {count:,} queries, {len(data.detections):,} "
        f"detections, {EMBEDDING_DIM}-d; seconds per query; the per-pair definition is timed, and "
        f"AP compared, on {'all' if sampled == count else f'{sampled} of'} {count:,} queries",
        ours_s=timing.ours_s / count,
        reference_s=timing.reference_s / sampled,
        equal=difference <= TOLERANCE and ranks_equal,
        limit=limit,
        ratio_is="speed-up",
        mAP=100 * float(results[0].ap[counted].mean()),
        top1=100 * float((results[0].first_hit_rank[counted] == 1).mean()),
        max_AP_difference=difference,
        ours_total_s=timing.ours_s,
        reference_queries=sampled,
    )


def _search_by_definition(data, images, query, gallery):
    embedding = data.queries.embeddings[query].astype(np.float64)
    person, own = data.queries.person_ids[query], data.queries.image_index[query]
    if gallery is None:
        return search_one_query(embedding, person, own, images)
    # These lists hold all images of the person, and no image twice; in the order of the set, as
    # equal similarities have it.
    listed = np.sort(gallery.images[gallery.offsets[query] : gallery.offsets[query + 1]])
    return search_one_query(embedding, person, -1, [images[i] for i in listed if i != own])


def _all_tables_row(harness, data):
    rows = all_tables(data)
    timing = harness.compare(
        lambda: all_tables(data),
        lambda: _one_table(data),
        repeats=min(3, harness.repeats),
        warmup=1,
    )
    return harness.row(
        f"all {len(rows)} rows of the table of protocols (7 galleries and 2 subsets, detected and "
        "ground-truth boxes, plain and re-ranked, both modes, intervals) over the one of the whole "
        "pool; seconds",
        ours_s=timing.ours_s,
        reference_s=timing.reference_s,
        equal=None,
        limit=ALL_TABLES,
        ratio_is="overhead",
    )


def all_tables(data):
    """Every row of the table of protocols of a set, both kinds of boxes."""
    options = TableOptions()
    full = [gallery for gallery in data.galleries if gallery.queries is None]
    protocols = [
        GalleryProtocol(gallery, "all", mode, reranked)
        for mode in MODES
        for gallery in [*data.galleries, complete_gallery(full[0]) if full else Gallery()]
        for reranked in (False, True)
    ]
    rows = []
    for boxes, detections in (("detected", data.detections), ("ground_truth", data.given)):
        results = rank_gallery(
            detections,
            data.ground_truth,
            data.queries,
            protocols,
            RankingSettings(num_matches=0, k1=options.cbgm_k1),
            contexts=data.contexts,
        )
        rows += table_rows(results, boxes, options, Protocol(), data.subsets)
    return rows


def scale_rows(harness):
    """Time and memory of one table of sets that grow; rows for people, and one with a limit."""
    measured = []
    for images, queries in SCALE:
        harness.say(f"{images:,} images, {queries:,} queries")
        measured.append(_measure("scale", images, queries))
    rows = []
    for (images, queries), numbers in zip(SCALE, measured):
        seconds, detections = numbers["seconds"], numbers["detections"]
        rows.append(
            harness.value_row(
                f"{images:,} images, {queries:,} queries, {detections:,} detections: {seconds:.1f} "
                f"s, {1e9 * seconds / (detections * queries):.2f} ns per pair of query and "
                f"detection; memory beyond the {numbers['set_gb']:.2f} GB of imports and set",
                value=numbers["peak_gb"] - numbers["set_gb"],
                unit="GB",
                limit=MEMORY_GB,
                **numbers,
            )
        )
    extra = [numbers["peak_gb"] - numbers["set_gb"] for numbers in measured]
    grown = SCALE[-1][0] * SCALE[-1][1] / (SCALE[BLOCKED][0] * SCALE[BLOCKED][1])
    rows.append(
        harness.value_row(
            f"growth of the memory beyond the set from {SCALE[BLOCKED][0]:,} images on, where "
            f"pairs of query and image become {grown:.0f} times as many",
            value=extra[-1] / extra[BLOCKED],
            unit="times",
            limit=FLAT,
        )
    )
    return rows


def _measure(*arguments):
    """Evaluate in a process of its own; what :func:`report` prints."""
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; import search_eval; "
        f"search_eval.report(*{arguments!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def report(name, num_images=None, num_queries=None):
    """Make a set, evaluate it once, and print seconds and memory of this process as JSON."""
    if name == "cuhk":
        data = cuhk_set()
        evaluate = all_tables
    elif name == "prw":
        data = prw_set()
        evaluate = _one_table
    else:
        # Identities in proportion, so that a person is in as many images as in PRW.
        identities = max(2, num_images * 450 // 6112)
        data = prw_set(0, num_images, num_queries, identities, with_given=False)
        evaluate = _one_table
        _forget_peak()
    set_gb = _memory("VmRSS")
    start = time.perf_counter()
    evaluate(data)
    seconds = time.perf_counter() - start
    print(
        json.dumps(
            {
                "detections": len(data.detections),
                "seconds": seconds,
                "set_gb": set_gb,
                "peak_gb": _memory("VmHWM"),
            }
        )
    )


def _one_table(data):
    return rank_gallery(data.detections, data.ground_truth, data.queries)


def _forget_peak():
    """Count the peak from here on, where the system can; the making of a set is not of interest."""
    gc.collect()
    try:
        # What was freed, but is kept for later, would hide what the evaluation takes.
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        pass
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def _memory(field):
    """Resident memory of this process now (VmRSS) or at its peak (VmHWM), 1e9 bytes."""
    try:
        # Linux hands ru_maxrss on from the parent to a new program; these start afresh.
        with open("/proc/self/status") as lines:
            status = dict(line.split(":", 1) for line in lines)
        return int(status[field].split()[0]) * 1024 / 1e9
    except (OSError, KeyError):
        # Bytes on macOS, kilobytes elsewhere; the peak stands for both.
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
