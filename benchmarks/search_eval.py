"""Search evaluation of a gallery of PRW's size against the per-pair definition; peak memory."""

import json
import resource
import subprocess
import sys

import numpy as np
from _search_reference import search_one_query, split_by_image

from kd_search.evaluation import Detections, GroundTruth, Queries, evaluate_search

NUM_IMAGES = 6112
NUM_QUERIES = 2057
NUM_IDENTITIES = 450
EMBEDDING_DIM = 256
PEOPLE_PER_IMAGE = 4.2
FALSE_ALARMS_PER_IMAGE = 0.8
# Share of the people who carry an identity, share of them whom the detector finds.
LABELLED = 0.8
FOUND = 0.93
# Length of the identity's direction in an embedding, before normalisation, beside noise of length
# 1: people are found, but not all of them first.
SIGNAL = 0.45

SAMPLED_QUERIES = 100
SPEED_UP = 90.0
TOLERANCE = 1e-9
MEMORY_GB = 1.5


def make_test_set(seed=0):
    """Detections (float32), ground truth and queries of a test set of PRW's size."""
    rng = np.random.default_rng(seed)
    directions = _normalise(rng.standard_normal((NUM_IDENTITIES, EMBEDDING_DIM)))

    people_in_image = rng.poisson(PEOPLE_PER_IMAGE, NUM_IMAGES)
    image = np.repeat(np.arange(NUM_IMAGES), people_in_image)
    # A person is in an image at most once: consecutive numbers from a random start.
    place = np.arange(len(image)) - np.repeat(
        np.cumsum(people_in_image) - people_in_image, people_in_image
    )
    person = (rng.integers(NUM_IDENTITIES, size=NUM_IMAGES)[image] + place) % NUM_IDENTITIES
    person[rng.random(len(person)) >= LABELLED] = -1
    boxes = _random_boxes(rng, len(image))
    ground_truth = GroundTruth(boxes, person, image)

    found = np.flatnonzero(rng.random(len(image)) < FOUND)
    alarms = rng.integers(NUM_IMAGES, size=int(FALSE_ALARMS_PER_IMAGE * NUM_IMAGES))
    size = boxes[found, 2:] - boxes[found, :2]
    shift = rng.normal(0, 0.05, (len(found), 2)) * size
    scores = np.concatenate([rng.uniform(0.5, 1, len(found)), rng.uniform(0.5, 1, len(alarms))])
    detected_image = np.concatenate([image[found], alarms])
    order = np.argsort(detected_image, kind="stable")
    detected_boxes = np.concatenate(
        [boxes[found] + np.tile(shift, 2), _random_boxes(rng, len(alarms))]
    )
    detected_person = np.concatenate([person[found], np.full(len(alarms), -1)])
    detections = Detections(
        boxes=detected_boxes[order].astype(np.float32),
        scores=scores[order].astype(np.float32),
        image_index=detected_image[order],
        embeddings=_embeddings(rng, detected_person[order], directions),
    )
    asked = rng.choice(np.flatnonzero(person >= 0), NUM_QUERIES, replace=False)
    queries = Queries(_embeddings(rng, person[asked], directions), person[asked], image[asked])
    return detections, ground_truth, queries


def run(harness):
    peak_gb = _peak_memory_gb()
    detections, ground_truth, queries = make_test_set()
    harness.say(f"{NUM_IMAGES} images, {len(detections)} detections, {len(queries)} queries")
    result = evaluate_search(detections, ground_truth, queries)

    rng = np.random.default_rng(1)
    sampled = len(queries) if harness.full else SAMPLED_QUERIES
    sample = np.sort(rng.choice(len(queries), sampled, replace=False))
    gallery = split_by_image(detections, ground_truth, NUM_IMAGES)
    reference = []

    def run_reference():
        reference[:] = [
            search_one_query(
                queries.embeddings[q].astype(np.float64),
                queries.person_ids[q],
                queries.image_index[q],
                gallery,
            )
            for q in sample
        ]

    harness.say(f"per-pair definition on {sampled} queries; this takes a while")
    timing = harness.compare(
        lambda: evaluate_search(detections, ground_truth, queries),
        run_reference,
        repeats=1 if harness.full else min(3, harness.repeats),
        warmup=0,
    )

    reference_ap = np.array([query.ap for query in reference])
    map_difference = abs(float(reference_ap.mean() - result.ap[sample].mean()))
    ap_difference = float(np.abs(reference_ap - result.ap[sample]).max())
    ranks_equal = [query.first_hit_rank for query in reference] == list(
        result.first_hit_rank[sample]
    )
    timed_on = "all" if sampled == len(queries) else f"{sampled} of"
    return [
        harness.row(
            f"{NUM_IMAGES:,} images, {len(queries):,} queries, {len(detections):,} detections, "
            f"{EMBEDDING_DIM}-d; seconds per query; the per-pair definition is timed, and mAP "
            f"compared, on {timed_on} {len(queries):,} queries",
            ours_s=timing.ours_s / len(queries),
            reference_s=timing.reference_s / sampled,
            equal=map_difference <= TOLERANCE and ap_difference <= TOLERANCE and ranks_equal,
            limit=SPEED_UP,
            ratio_is="speed-up",
            mAP=100 * result.mean_ap(),
            top1=100 * result.top_k_accuracy(1),
            mAP_difference=map_difference,
            max_AP_difference=ap_difference,
            ours_total_s=timing.ours_s,
            reference_queries=sampled,
        ),
        harness.value_row(
            "peak memory of a process that makes this test set and evaluates it, imports included",
            value=peak_gb,
            unit="GB",
            limit=MEMORY_GB,
        ),
    ]


def _embeddings(rng, person, directions):
    noise = _normalise(rng.standard_normal((len(person), EMBEDDING_DIM)))
    signal = np.where(person[:, None] >= 0, directions[person], 0) * SIGNAL
    return _normalise(noise + signal).astype(np.float32)


def _normalise(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _random_boxes(rng, count):
    """People in a frame of 1920 x 1080: twice to three times as tall as wide."""
    width = rng.uniform(20, 120, count)
    height = width * rng.uniform(2, 3, count)
    x, y = rng.uniform(0, 1800, count), rng.uniform(0, 900, count)
    return np.stack([x, y, x + width, y + height], axis=1)


def _peak_memory_gb():
    """Run the evaluation in a process of its own and return its peak resident memory, 1e9 bytes."""
    code = f"import sys; sys.path[:0] = {sys.path!r}; import search_eval; search_eval.report_peak()"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])["peak_gb"]


def report_peak():
    """Evaluate once and print the peak resident memory of this process as JSON."""
    evaluate_search(*make_test_set())
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
