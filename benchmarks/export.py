"""The exported student in onnxruntime against Detectron2, from file bytes to embeddings."""

import os
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from _export_networks import (
    SIZES,
    as_tensor,
    decoded_size,
    first_result,
    picture_bytes,
    scene,
    student_config,
    teacher_config,
    trained,
)

from kd_search.export import export_model
from kd_search.runtime import PersonSearcher
from kd_search.runtime.pictures import network_input, read_picture

#: Largest share of eager time, by the shorter side.
OF_EAGER = {256: 0.5, 608: 0.75}
LEAST_SPEED_UP = 8.0
MOST_OF_READING = 0.25
SECONDS_TO_FIRST_RESULT = 2.0
#: Checkpoint of the student of configs/generated; by default one is trained for a minute.
WEIGHTS = os.environ.get("KD_SEARCH_BENCHMARK_STUDENT", "")


def run(harness):
    rows = []
    harness.say("training or loading the student")
    student = trained(student_config(SIZES[0]), WEIGHTS)
    teacher = trained(teacher_config(), steps=1)
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            path = Path(folder, f"student{size[0]}.onnx")
            harness.say(f"exporting and comparing, {size[0]}x{size[1]}")
            export_model(student, path, cfg=student_config(size))
            rows += of_one_size(harness, size, student, teacher, path)
        rows += start_up(harness, path, picture_bytes(SIZES[1]), Path(folder))
    return rows


def of_one_size(harness, size, student, teacher, path):
    searcher = PersonSearcher.load(path, threads=harness.threads)
    pixels, _ = scene(size)
    batch = [{"image": as_tensor(pixels)}]
    label = f"{size[0]}x{size[1]}"

    def exported():
        return searcher.detect_pixels(pixels)

    def eager(model):
        with torch.no_grad():
            return model(batch)[0]["instances"]

    timing = harness.compare(exported, lambda: eager(student))
    same = len(exported().scores) == len(eager(student))
    people = {"people": len(exported().scores)}
    yield harness.row(
        f"student, ONNX over eager, {label}",
        ours_s=timing.ours_s,
        reference_s=timing.reference_s,
        equal=same,
        limit=OF_EAGER[min(size)],
        ratio_is="overhead",
        processor=timing.processor_overhead,
        **people,
    )
    timing = harness.compare(exported, lambda: eager(teacher))
    yield harness.row(
        f"student, ONNX, over R-50 FPN-256 teacher, eager, {label}",
        ours_s=timing.ours_s,
        reference_s=timing.reference_s,
        equal=None,
        limit=LEAST_SPEED_UP,
        ratio_is="speed-up",
    )
    yield from reading(harness, searcher, size, label)


def reading(harness, searcher, size, label):
    """Share of decoding and resizing in the time from the bytes of a file to embeddings."""
    content, limit = picture_bytes(size), searcher.manifest["max_pixels"]
    shares = []
    for _ in range(harness.repeats + 1):
        start = time.perf_counter()
        rgb = read_picture(content, limit)
        decoded = time.perf_counter()
        network_input(rgb, searcher.manifest)
        resized = time.perf_counter()
        searcher.detect(content)
        whole = time.perf_counter() - resized
        shares.append(((decoded - start) / whole, (resized - decoded) / whole, whole))
    decode, resize, whole = (median(column) for column in zip(*shares[1:]))
    height, width = decoded_size(content)
    yield harness.value_row(
        f"decoding and resizing, share of the whole, JPEG of {height}x{width} to {label}",
        value=decode + resize,
        unit="of the whole",
        limit=MOST_OF_READING,
        decoding=decode,
        resizing=resize,
        whole_s=whole,
    )


def start_up(harness, path, picture, folder):
    runs = [first_result(path, picture, folder, harness.threads) for _ in range(harness.repeats)]
    peak = median(run["peak_mib"] for run in runs)
    yield harness.value_row(
        f"start to first result (peak memory {peak:.0f} MiB)",
        value=median(run["seconds"] for run in runs),
        unit="s",
        limit=SECONDS_TO_FIRST_RESULT,
        peak_mib=peak,
    )
