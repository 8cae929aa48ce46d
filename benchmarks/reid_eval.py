"""Re-ID evaluation of a test set of MARS's size against the per-pair definition; peak memory."""

import json
import resource
import subprocess
import sys
import time

import numpy as np
from _reid_reference import ReIDEntry, search_one_reid_query

from kd_search.evaluation.reid.metric import DISTRACTOR, ReIDSet, evaluate_reid

# MARS: 1,980 queries of 626 people, which are in the gallery of 12,180 tracklets, too; 6 cameras.
NUM_QUERIES = 1980
NUM_TRACKLETS = 12180
NUM_IDENTITIES = 626
NUM_CAMERAS = 6
EMBEDDING_DIM = 2048
# Share of the gallery that is nobody's.
DISTRACTORS = 0.25
# Length of the identity's direction in an embedding, beside noise of length 1: people are found,
# but not all of them first.
SIGNAL = 0.27

SAMPLED_QUERIES = 20
SPEED_UP = 50.0
TOLERANCE = 1e-9
MEMORY_GB = 1.5


def make_test_set(seed=0):
    """Queries and gallery (float32 embeddings of any length) of MARS's size."""
    rng = np.random.default_rng(seed)
    directions = _normalise(rng.standard_normal((NUM_IDENTITIES, EMBEDDING_DIM), dtype=np.float32))
    person = rng.integers(NUM_IDENTITIES, size=NUM_TRACKLETS)
    person[rng.random(NUM_TRACKLETS) < DISTRACTORS] = DISTRACTOR
    camera = rng.integers(NUM_CAMERAS, size=NUM_TRACKLETS)
    noise = _normalise(rng.standard_normal((NUM_TRACKLETS, EMBEDDING_DIM), dtype=np.float32))
    signal = np.where(person[:, None] >= 0, directions[person], 0) * np.float32(SIGNAL)
    lengths = rng.uniform(5, 20, (NUM_TRACKLETS, 1)).astype(np.float32)
    gallery = ReIDSet((noise + signal) * lengths, person, camera, items=np.arange(NUM_TRACKLETS))
    queries = rng.choice(np.flatnonzero(person >= 0), NUM_QUERIES, replace=False)
    return gallery.select(queries), gallery


def run(harness):
    peak_gb = _peak_memory_gb()
    queries, gallery = make_test_set()
    harness.say(f"{len(queries)} queries, {len(gallery)} tracklets")
    result = evaluate_reid(queries, gallery)

    rng = np.random.default_rng(1)
    sampled = len(queries) if harness.full else SAMPLED_QUERIES
    sample = np.sort(rng.choice(len(queries), sampled, replace=False))
    entries = _entries(gallery)
    asked = _entries(queries.select(sample))
    reference = []

    def run_reference():
        reference[:] = [search_one_reid_query(query, entries) for query in asked]

    harness.say(f"per-pair definition on {sampled} queries; this takes a while")
    timing = harness.compare(
        lambda: evaluate_reid(queries, gallery),
        run_reference,
        repeats=1 if harness.full else min(3, harness.repeats),
        warmup=0,
    )
    harness.say("the usual loop over queries")
    usual_s, usual_map = _usual_loop(queries, gallery)

    ap_difference = max(abs(a.ap - b) for a, b in zip(reference, result.ap[sample]))
    ranks_equal = [a.first_hit_rank for a in reference] == list(result.first_hit_rank[sample])
    timed_on = "all" if sampled == len(queries) else f"{sampled} of"
    return [
        harness.row(
            f"{len(queries):,} queries, {len(gallery):,} tracklets, {EMBEDDING_DIM:,}-d; seconds "
            "per query; the per-pair definition is timed, and AP and rank of each query compared, "
            f"on {timed_on} {len(queries):,} queries",
            ours_s=timing.ours_s / len(queries),
            reference_s=timing.reference_s / sampled,
            equal=ap_difference <= TOLERANCE and ranks_equal,
            limit=SPEED_UP,
            ratio_is="speed-up",
            mAP=100 * result.mean_ap(),
            top1=100 * result.top_k_accuracy(1),
            max_AP_difference=ap_difference,
            ours_total_s=timing.ours_s,
            reference_queries=sampled,
            # One float32 matrix of distances, then an argsort and a few set operations per query.
            usual_loop_s=usual_s / len(queries),
            usual_loop_mAP=100 * usual_map,
        ),
        harness.value_row(
            "peak memory of a process that makes this test set and evaluates it, imports included",
            value=peak_gb,
            unit="GB",
            limit=MEMORY_GB,
        ),
    ]


def _entries(rows):
    return [
        ReIDEntry(embedding, *numbers)
        for embedding, *numbers in zip(
            rows.embeddings.astype(np.float64),
            *(rows.person_ids.tolist(), rows.camera_ids.tolist()),
            *(rows.frame_ids.tolist(), rows.items.tolist()),
        )
    ]


def _usual_loop(queries, gallery):
    """Seconds and mAP of what re-ID code commonly does, float32 as it is there."""
    begin = time.perf_counter()
    similarity = _normalise(queries.embeddings) @ _normalise(gallery.embeddings).T
    total = 0.0
    for q in range(len(queries)):
        same = gallery.person_ids == queries.person_ids[q]
        kept = ~(same & (gallery.camera_ids == queries.camera_ids[q]))
        order = np.argsort(-similarity[q], kind="stable")
        right = same[order][kept[order]]
        ranks = np.flatnonzero(right) + 1
        hits = np.arange(1, len(ranks) + 1)
        above = np.where(ranks > 1, (hits - 1) / np.maximum(ranks - 1, 1), 1.0)
        total += ((hits / ranks + above) / 2).mean() if len(ranks) else 0.0
    return time.perf_counter() - begin, total / len(queries)


def _normalise(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _peak_memory_gb():
    """Run the evaluation in a process of its own and return its peak resident memory, 1e9 bytes."""
    code = f"import sys; sys.path[:0] = {sys.path!r}; import reid_eval; reid_eval.report_peak()"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])["peak_gb"]


def report_peak():
    """Evaluate once and print the peak resident memory of this process as JSON."""
    evaluate_reid(*make_test_set())
    try:
        # Linux hands ru_maxrss on from the parent to a new program; this counter starts afresh.
        with open("/proc/self/status") as lines:
            status = dict(line.split(":", 1) for line in lines)
        peak = int(status["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):
        # Bytes on macOS, kilobytes elsewhere.
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(json.dumps({"peak_gb": peak / 1e9}))
